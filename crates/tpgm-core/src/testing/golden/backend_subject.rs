//! A backend as a subject.

use super::subject::{Fisher, Observed, OptimizerSubject, ProjectorSubject, Quantity, Subject};
use crate::backend::Slot;
use crate::backend::{Backend, TensorIo};
use crate::constraint::{Constraint, RADIUS_FLOOR, Tpgm};
use crate::element::{Buffer, DType};
use crate::error::Result;
use crate::optimizer::Optimizer;
use crate::params::{ParamSet, Settings};
use crate::projector::Projector;
use crate::rule::{Rule, Sgd};
use crate::scalars::TensorScalars;
use crate::state::StateDict;
use crate::step::StepOptions;
use crate::weight_space::{Interpolator, WiseEntry, WiseFt};

/// [`Optimizer`] and [`Projector`] on any backend.
///
/// Operands are rounded to the run's element type and uploaded for every call; what the backend wrote is downloaded.
#[derive(Debug, Clone)]
pub struct BackendSubject<B> {
    name: String,
    backend: B,
}

impl<B: Backend + Clone + 'static> BackendSubject<B> {
    /// A backend under a name for reports.
    pub fn new(name: impl Into<String>, backend: B) -> Self {
        Self { name: name.into(), backend }
    }
}

impl<B: Backend + Clone + 'static> Subject for BackendSubject<B> {
    fn name(&self) -> &str {
        &self.name
    }

    fn optimizer(
        &self,
        set: &ParamSet,
        rule: Rule,
        constraint: Constraint,
    ) -> Result<Box<dyn OptimizerSubject>> {
        Ok(Box::new(Stepping {
            settings: set.settings(&rule, &constraint)?,
            optimizer: Optimizer::new(self.backend.clone(), set, rule, constraint)?,
            host: Host { backend: self.backend.clone(), set: set.clone() },
            scalars: Vec::new(),
        }))
    }

    fn projector(&self, set: &ParamSet, tpgm: Tpgm) -> Result<Box<dyn ProjectorSubject>> {
        let projector = Projector::new(self.backend.clone(), set, tpgm)?;
        Ok(Box::new(Projecting {
            settings: set.settings(&Rule::from(Sgd::default()), &tpgm.into())?,
            scalars: projector.scalars()?,
            projector,
            host: Host { backend: self.backend.clone(), set: set.clone() },
        }))
    }

    fn interpolate(
        &self,
        dtype: DType,
        theta0: &[f64],
        theta1: &[f64],
        alpha: f64,
        fisher: Option<&Fisher>,
    ) -> Result<Observed> {
        if fisher.is_none() {
            return self.interpolate_plain(dtype, theta0, theta1, alpha);
        }
        // With Fisher information it runs on the host, whatever the backend of the steps.
        let round = |values: &[f64]| Buffer::from_f64(dtype, values);
        let (theta0, theta1) = (round(theta0), round(theta1));
        let mut merged = Buffer::zeros(dtype, theta0.len());
        // A golden case may have Fisher information of one version only; a missing one counts as ones.
        let ones = vec![1.0; theta0.len()];
        let information = fisher.map(|fisher| {
            let or_ones = |f: &Option<Vec<f64>>| round(f.as_deref().unwrap_or(&ones));
            (or_ones(&fisher.fisher0), or_ones(&fisher.fisher1))
        });
        let mut entry = WiseEntry::new("entry", theta0.as_slice(), theta1.as_slice(), merged.as_mut());
        let mut wise = WiseFt { alpha, ..WiseFt::default() };
        if let (Some(fisher), Some((f0, f1))) = (fisher, &information) {
            wise.fisher_floor = fisher.floor;
            entry = entry.fisher(f0.as_slice(), f1.as_slice());
        }
        wise.merge(&mut [entry])?;
        Ok(Observed::Value(merged.to_f64()))
    }
}

impl<B: Backend + Clone> BackendSubject<B> {
    /// In place and on the backend.
    fn interpolate_plain(
        &self,
        dtype: DType,
        theta0: &[f64],
        theta1: &[f64],
        alpha: f64,
    ) -> Result<Observed> {
        let set = ParamSet::builder().tensor("entry", [theta1.len()], dtype).build()?;
        let mut weight = self.backend.upload(&Buffer::from_f64(dtype, theta1))?;
        let anchor = self.backend.upload(&Buffer::from_f64(dtype, theta0))?;
        let io = TensorIo {
            weight: B::as_mut(&mut weight),
            grad: None,
            anchor: Some(B::as_ref(&anchor)),
            variance: None,
        };
        Interpolator::new(self.backend.clone(), &set)?.interpolate(&mut [io], alpha)?;
        Ok(Observed::Value(self.backend.download(&weight)?.to_f64()))
    }
}

/// Carries operands between the host and the backend.
struct Host<B> {
    backend: B,
    set: ParamSet,
}

impl<B: Backend> Host<B> {
    fn dtype(&self, tensor: usize) -> DType {
        self.set.tensors().get(tensor).map_or(DType::F32, |spec| spec.dtype)
    }

    fn upload(&self, tensors: &[Option<Vec<f64>>]) -> Result<Vec<Option<B::Buffer>>> {
        let upload = |(i, values): (usize, &Option<Vec<f64>>)| {
            let rounded = values.as_ref().map(|values| Buffer::from_f64(self.dtype(i), values));
            rounded.map(|buffer| self.backend.upload(&buffer)).transpose()
        };
        tensors.iter().enumerate().map(upload).collect()
    }

    /// Runs `call` on the operands and takes back what it left in the weights.
    fn run<R>(
        &self,
        weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
        call: impl FnOnce(&mut [TensorIo<'_, B>]) -> Result<R>,
    ) -> Result<R> {
        let mut buffers = Vec::with_capacity(weights.len());
        for (i, weight) in weights.iter().enumerate() {
            buffers.push(self.backend.upload(&Buffer::from_f64(self.dtype(i), weight))?);
        }
        let (grads, anchors) = (self.upload(grads)?, self.upload(anchors)?);
        let mut io: Vec<TensorIo<'_, B>> = buffers
            .iter_mut()
            .zip(&grads)
            .zip(&anchors)
            .map(|((weight, grad), anchor)| TensorIo {
                weight: B::as_mut(weight),
                grad: grad.as_ref().map(B::as_ref),
                anchor: anchor.as_ref().map(B::as_ref),
                variance: None,
            })
            .collect();
        let result = call(&mut io)?;
        drop(io);
        for (weight, buffer) in weights.iter_mut().zip(&buffers) {
            *weight = self.backend.download(buffer)?.to_f64();
        }
        Ok(result)
    }
}

struct Stepping<B: Backend> {
    optimizer: Optimizer<B>,
    host: Host<B>,
    settings: Vec<Settings>,
    scalars: Vec<TensorScalars>,
}

impl<B: Backend> OptimizerSubject for Stepping<B> {
    fn step(
        &mut self,
        weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
        lr: f64,
    ) -> Result<()> {
        let options = StepOptions::lr(lr);
        let optimizer = &mut self.optimizer;
        self.host.run(weights, grads, anchors, |io| optimizer.step(io, &options))?;
        self.scalars = self.optimizer.scalars()?;
        Ok(())
    }

    fn observe(&self, tensor: usize, quantity: Quantity) -> Result<Observed> {
        let slot = match quantity {
            Quantity::ExpAvg => Slot::ExpAvg,
            Quantity::ExpAvgSq => Slot::ExpAvgSq,
            Quantity::MaxExpAvgSq => Slot::MaxExpAvgSq,
            Quantity::MomentumBuffer => Slot::MomentumBuffer,
            Quantity::Norms => {
                let norms = self.optimizer.norms(&self.host.set.tensors()[tensor].name)?;
                return Ok(Observed::Value(with_floor(&self.settings[tensor], &norms)));
            }
            // Undoing the factor below divides by the strength, which f32's rounding does not survive.
            Quantity::SpdRatio if self.host.dtype(tensor) != DType::F64 => return Ok(Observed::Hidden),
            _ => return Ok(observe_scalar(&self.scalars[tensor], &self.settings[tensor], quantity)),
        };
        let state: StateDict = self.optimizer.state()?;
        let key = format!("{}/{}", self.host.set.tensors()[tensor].name, slot.name());
        Ok(state.get(&key).map(Buffer::to_f64).into())
    }
}

struct Projecting<B: Backend> {
    projector: Projector<B>,
    host: Host<B>,
    settings: Vec<Settings>,
    scalars: Vec<TensorScalars>,
}

impl<B: Backend> Projecting<B> {
    fn call(
        &mut self,
        weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
        call: impl FnOnce(&mut Projector<B>, &mut [TensorIo<'_, B>]) -> Result<()>,
    ) -> Result<()> {
        let projector = &mut self.projector;
        self.host.run(weights, grads, anchors, |io| call(projector, io))?;
        self.scalars = self.projector.scalars()?;
        Ok(())
    }
}

impl<B: Backend> ProjectorSubject for Projecting<B> {
    fn project(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        self.call(weights, &vec![None; anchors.len()], anchors, |projector, io| projector.project(io))
    }

    fn begin(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        self.call(weights, &vec![None; anchors.len()], anchors, |projector, io| projector.begin(io))
    }

    fn apply(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        self.call(weights, &vec![None; anchors.len()], anchors, |projector, io| projector.apply(io))
    }

    fn update(
        &mut self,
        weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
    ) -> Result<()> {
        // A projector insists on a gradient of every tensor whose radius it learns. Zeros move no radius that has not
        // moved before, which is what a parameter outside the graph needs.
        let tensors = self.host.set.tensors().iter();
        let grads: Vec<Option<Vec<f64>>> = tensors
            .zip(grads)
            .map(|(t, g)| Some(g.clone().unwrap_or_else(|| vec![0.0; t.numel()])))
            .collect();
        self.call(weights, &grads, anchors, |projector, io| projector.update(io))
    }

    fn finish(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        self.call(weights, &vec![None; anchors.len()], anchors, |projector, io| projector.finish(io))
    }

    fn observe(&self, tensor: usize, quantity: Quantity) -> Result<Observed> {
        let name = &self.host.set.tensors()[tensor].name;
        Ok(match quantity {
            Quantity::Norms => Observed::Value(self.projector.norms(name)?),
            _ => observe_scalar(&self.scalars[tensor], &self.settings[tensor], quantity),
        })
    }
}

/// FTP's norms contain their 1e-8 in the golden files, and not in a backend's.
fn with_floor(settings: &Settings, norms: &[f64]) -> Vec<f64> {
    let floor = match settings.constraint {
        Constraint::Ftp(_) => RADIUS_FLOOR,
        _ => 0.0,
    };
    norms.iter().map(|norm| norm + floor).collect()
}

fn observe_scalar(scalars: &TensorScalars, settings: &Settings, quantity: Quantity) -> Observed {
    let value = |x: f64| Observed::Value(vec![x]);
    match (quantity, &settings.constraint) {
        (Quantity::Radius, _) => value(scalars.radius),
        (Quantity::RadiusM, _) => value(scalars.radius_m),
        (Quantity::RadiusV, _) => value(scalars.radius_v),
        (Quantity::RadiusGradRaw, _) => value(scalars.radius_grad_raw),
        (Quantity::RadiusGrad, _) => value(scalars.radius_grad),
        (Quantity::RadiusUnclipped, Constraint::Ftp(_)) => value(scalars.radius_unclipped),
        (Quantity::LargestNorm, _) => Observed::Value(with_floor(settings, &[scalars.norm])),
        (Quantity::SmallestRatio, _) => value(scalars.ratio),
        (Quantity::Alignment, _) => value(scalars.alignment),
        // The factor is `1 - strength * ratio`.
        (Quantity::SpdRatio, Constraint::Spd(spd)) if spd.strength > 0.0 => match scalars.alignment < 0.0 {
            true => value((1.0 - scalars.ratio) / spd.strength),
            false => Observed::Absent,
        },
        _ => Observed::Hidden,
    }
}
