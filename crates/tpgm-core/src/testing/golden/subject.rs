//! What is tested.

use crate::constraint::{Constraint, Tpgm};
use crate::element::DType;
use crate::error::Result;
use crate::oracle;
use crate::params::ParamSet;
use crate::rule::Rule;

/// An implementation of the methods. Everything passes as f64 on the host; the element type in which the run happens is
/// that of the set's tensors, and an implementation keeps the weights in it.
pub trait Subject {
    /// Name for reports.
    fn name(&self) -> &str;

    /// Starts a training run.
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn optimizer(
        &self,
        set: &ParamSet,
        rule: Rule,
        constraint: Constraint,
    ) -> Result<Box<dyn OptimizerSubject>>;

    /// Starts a TPGM run.
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn projector(&self, set: &ParamSet, tpgm: Tpgm) -> Result<Box<dyn ProjectorSubject>>;

    /// Interpolates two versions of one tensor. [`Observed::Hidden`] if the implementation has no interpolation.
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn interpolate(
        &self,
        dtype: DType,
        theta0: &[f64],
        theta1: &[f64],
        alpha: f64,
        fisher: Option<&Fisher>,
    ) -> Result<Observed>;
}

/// Fisher weights of two versions of one tensor; absent ones are all 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fisher {
    /// Of the first version.
    pub fisher0: Option<Vec<f64>>,
    /// Of the second version.
    pub fisher1: Option<Vec<f64>>,
    /// Every given value is raised to at least this.
    pub floor: f64,
}

/// A training run of a [`Subject`].
pub trait OptimizerSubject {
    /// Takes a step in place; operands are in set order, as for [`oracle::Optimizer::step`].
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn step(
        &mut self,
        weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
        lr: f64,
    ) -> Result<()>;

    /// What the latest step left in a tensor's state.
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn observe(&self, tensor: usize, quantity: Quantity) -> Result<Observed>;
}

/// A TPGM run of a [`Subject`].
pub trait ProjectorSubject {
    /// As [`oracle::Projector::project`].
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn project(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()>;

    /// As [`oracle::Projector::begin`].
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn begin(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()>;

    /// As [`oracle::Projector::apply`].
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn apply(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()>;

    /// As [`oracle::Projector::update`]; weights and anchors are those of the projected model.
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn update(
        &mut self,
        weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
    ) -> Result<()>;

    /// As [`oracle::Projector::finish`].
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn finish(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()>;

    /// What the latest call left in a tensor's state.
    ///
    /// # Errors
    ///
    /// Whatever the implementation says.
    fn observe(&self, tensor: usize, quantity: Quantity) -> Result<Observed>;
}

/// Something a golden file records of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Quantity {
    /// The radius now.
    Radius,
    /// The radius before its latest clip.
    RadiusUnclipped,
    /// Radius gradient before FTP's `k`.
    RadiusGradRaw,
    /// Radius gradient.
    RadiusGrad,
    /// First moment of the radius.
    RadiusM,
    /// Second moment of the radius.
    RadiusV,
    /// All norms of the latest projection.
    Norms,
    /// The largest of them.
    LargestNorm,
    /// All ratios of the latest projection.
    Ratios,
    /// The smallest of them.
    SmallestRatio,
    /// What the rule wanted to subtract.
    Update,
    /// SPD's alignment.
    Alignment,
    /// SPD's ratio.
    SpdRatio,
    /// First moment of AdamW.
    ExpAvg,
    /// Second moment of AdamW.
    ExpAvgSq,
    /// Its running maximum.
    MaxExpAvgSq,
    /// Momentum buffer of SGD.
    MomentumBuffer,
}

/// What a subject says about a [`Quantity`].
#[derive(Debug, Clone, PartialEq)]
pub enum Observed {
    /// Its value, one number per element, norm or tensor.
    Value(Vec<f64>),
    /// There is none: it was not computed for this tensor.
    Absent,
    /// The subject does not expose it; it is not compared.
    Hidden,
}

impl From<Option<f64>> for Observed {
    fn from(value: Option<f64>) -> Self {
        value.map_or(Observed::Absent, |x| Observed::Value(vec![x]))
    }
}

impl From<Option<Vec<f64>>> for Observed {
    fn from(value: Option<Vec<f64>>) -> Self {
        value.map_or(Observed::Absent, Observed::Value)
    }
}

/// The [`oracle`].
#[derive(Debug, Clone, Copy, Default)]
pub struct OracleSubject;

impl Subject for OracleSubject {
    fn name(&self) -> &str {
        "oracle"
    }

    fn optimizer(
        &self,
        set: &ParamSet,
        rule: Rule,
        constraint: Constraint,
    ) -> Result<Box<dyn OptimizerSubject>> {
        Ok(Box::new(oracle::Optimizer::new(set, rule, constraint)?))
    }

    fn projector(&self, set: &ParamSet, tpgm: Tpgm) -> Result<Box<dyn ProjectorSubject>> {
        Ok(Box::new(oracle::Projector::new(set, tpgm)?))
    }

    fn interpolate(
        &self,
        _dtype: DType,
        theta0: &[f64],
        theta1: &[f64],
        alpha: f64,
        fisher: Option<&Fisher>,
    ) -> Result<Observed> {
        Ok(Observed::Value(match fisher {
            None => oracle::wise(theta0, theta1, alpha),
            Some(fisher) => oracle::wise_fisher(
                theta0,
                theta1,
                fisher.fisher0.as_deref(),
                fisher.fisher1.as_deref(),
                alpha,
                fisher.floor,
            ),
        }))
    }
}

impl OptimizerSubject for oracle::Optimizer {
    fn step(
        &mut self,
        weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
        lr: f64,
    ) -> Result<()> {
        oracle::Optimizer::step(self, weights, grads, anchors, Some(lr), 1.0, None).map(drop)
    }

    fn observe(&self, tensor: usize, quantity: Quantity) -> Result<Observed> {
        let moments = self.moments(tensor);
        let moment = |pick: fn(&oracle::Moments) -> &Vec<f64>| -> Observed {
            moments.map(pick).filter(|m| !m.is_empty()).cloned().into()
        };
        Ok(match quantity {
            Quantity::ExpAvg => moment(|m| &m.exp_avg),
            Quantity::ExpAvgSq => moment(|m| &m.exp_avg_sq),
            Quantity::MaxExpAvgSq => moment(|m| &m.max_exp_avg_sq),
            Quantity::MomentumBuffer => moment(|m| &m.momentum_buffer),
            _ if self.steps(tensor) == 0 => Observed::Absent,
            _ => observe_trace(self.radius(tensor), self.trace(tensor), quantity),
        })
    }
}

impl ProjectorSubject for oracle::Projector {
    fn project(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        oracle::Projector::project(self, weights, anchors)
    }

    fn begin(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        oracle::Projector::begin(self, weights, anchors)
    }

    fn apply(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        oracle::Projector::apply(self, weights, anchors)
    }

    fn update(
        &mut self,
        _weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        _anchors: &[Option<Vec<f64>>],
    ) -> Result<()> {
        oracle::Projector::update(self, grads)
    }

    fn finish(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        oracle::Projector::finish(self, weights, anchors)
    }

    fn observe(&self, tensor: usize, quantity: Quantity) -> Result<Observed> {
        Ok(observe_trace(self.radius(tensor), self.trace(tensor), quantity))
    }
}

fn observe_trace(
    radius: Option<oracle::Radius>,
    trace: Option<&oracle::Trace>,
    quantity: Quantity,
) -> Observed {
    let Some(trace) = trace else {
        return Observed::Absent;
    };
    let all = |values: &[f64]| Some(values.to_vec()).filter(|v| !v.is_empty()).into();
    match quantity {
        Quantity::Radius => radius.map(|r| r.value).into(),
        Quantity::RadiusM => radius.map(|r| r.m).into(),
        Quantity::RadiusV => radius.map(|r| r.v).into(),
        Quantity::RadiusUnclipped => trace.radius_unclipped.into(),
        Quantity::RadiusGradRaw => trace.radius_grad_raw.into(),
        Quantity::RadiusGrad => trace.radius_grad.into(),
        Quantity::Norms => all(&trace.norms),
        Quantity::LargestNorm => trace.norms.iter().copied().reduce(f64::max).into(),
        Quantity::Ratios => all(&trace.ratios),
        Quantity::SmallestRatio => trace.ratios.iter().copied().reduce(f64::min).into(),
        Quantity::Update => all(&trace.update),
        Quantity::Alignment => trace.alignment.into(),
        Quantity::SpdRatio => trace.spd_ratio.into(),
        Quantity::ExpAvg | Quantity::ExpAvgSq | Quantity::MaxExpAvgSq | Quantity::MomentumBuffer => {
            Observed::Absent
        }
    }
}
