//! The projection-update loop of TPGM.

use super::check::{check_finite, check_len, check_operand, check_operands};
use super::measure::{displacement, held, norms, round_to};
use super::project::{clip_radius, initial_radius, project, radius_adam, radius_gradient, ratios};
use super::state::{Radius, Trace};
use crate::constraint::{Constraint, Tpgm};
use crate::error::{Error, Result};
use crate::params::{AnchorKind, ParamSet, Settings, TensorSpec};
use crate::rule::{AdamW, Rule};

/// TPGM's radii, with any optimizer or after training (arXiv 2303.10720).
///
/// Tensors without a TPGM constraint (excluded, or without an anchor) are never touched. Order of a loop:
/// [`begin`](Projector::begin), then any number of [`apply`](Projector::apply) and [`update`](Projector::update), then
/// [`finish`](Projector::finish). A tensor's radius is initialized the first time it is traversed, by whichever call.
#[derive(Debug, Clone, PartialEq)]
pub struct Projector {
    tensors: Vec<Member>,
    looping: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Member {
    spec: TensorSpec,
    anchor: AnchorKind,
    /// `None`: not projected.
    tpgm: Option<Tpgm>,
    radius: Radius,
    initialized: bool,
    /// Remembered weights, and their displacement, during a loop.
    weight: Vec<f64>,
    displacement: Vec<f64>,
    trace: Trace,
}

impl Projector {
    /// Makes a projector of the tensors that `tpgm`, or their group, gives a TPGM constraint.
    ///
    /// # Errors
    ///
    /// What [`ParamSet::settings`] says.
    pub fn new(set: &ParamSet, tpgm: impl Into<Constraint>) -> Result<Self> {
        // The rule decides nothing here.
        let settings = set.settings(&Rule::from(AdamW::default()), &tpgm.into())?;
        Ok(Self::from_settings(set.tensors(), &settings))
    }

    pub(super) fn from_settings(specs: &[TensorSpec], settings: &[Settings]) -> Self {
        let tensors = specs
            .iter()
            .zip(settings)
            .map(|(spec, settings)| Member {
                spec: spec.clone(),
                anchor: settings.anchor,
                tpgm: match settings.constraint {
                    Constraint::Tpgm(tpgm) => Some(tpgm),
                    _ => None,
                },
                radius: Radius::default(),
                initialized: false,
                weight: Vec::new(),
                displacement: Vec::new(),
                trace: Trace::default(),
            })
            .collect();
        Self { tensors, looping: false }
    }

    /// True if the tensor is projected.
    pub fn projects(&self, tensor: usize) -> bool {
        self.tensors.get(tensor).is_some_and(|t| t.tpgm.is_some())
    }

    /// True between [`begin`](Projector::begin) and [`finish`](Projector::finish).
    pub fn is_looping(&self) -> bool {
        self.looping
    }

    /// The radius of a tensor. `None` if it is not projected.
    pub fn radius(&self, tensor: usize) -> Option<Radius> {
        self.tensors.get(tensor).filter(|t| t.tpgm.is_some()).map(|t| t.radius)
    }

    /// What the latest traversal and update computed for a tensor. `None` outside the set.
    pub fn trace(&self, tensor: usize) -> Option<&Trace> {
        self.tensors.get(tensor).map(|t| &t.trace)
    }

    /// Projects the weights in place with the current radii, outside a loop.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`], [`Error::LengthMismatch`], [`Error::MissingAnchor`], [`Error::NonFiniteValue`] for
    /// weights or anchors that are not finite; [`Error::OutOfOrder`] during a loop.
    pub fn project(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        self.expect_looping(false, "project")?;
        let projected = self.traverse(weights, anchors, |_| true)?;
        for (weight, new) in weights.iter_mut().zip(projected) {
            *weight = new;
        }
        Ok(())
    }

    /// Remembers the weights: every projection until [`finish`](Projector::finish) starts from them.
    ///
    /// # Errors
    ///
    /// As [`project`](Projector::project).
    pub fn begin(&mut self, weights: &[Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        self.expect_looping(false, "begin")?;
        self.check(weights, anchors)?;
        for ((t, weight), anchor) in self.tensors.iter_mut().zip(weights).zip(anchors) {
            if t.tpgm.is_some() {
                t.weight.clone_from(weight);
                t.displacement = displacement(weight, t.home(anchor));
            }
        }
        self.looping = true;
        Ok(())
    }

    /// Clips the radii and writes the projection of the remembered weights.
    ///
    /// # Errors
    ///
    /// As [`project`](Projector::project); [`Error::OutOfOrder`] outside a loop.
    pub fn apply(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        self.expect_looping(true, "apply")?;
        self.check(weights, anchors)?;
        let remembered: Vec<Vec<f64>> = self
            .tensors
            .iter()
            .zip(weights.iter())
            .map(|(t, weight)| match t.tpgm {
                Some(_) => t.weight.clone(),
                None => weight.clone(),
            })
            .collect();
        let projected = self.traverse(&remembered, anchors, |_| true)?;
        for (weight, new) in weights.iter_mut().zip(projected) {
            *weight = new;
        }
        Ok(())
    }

    /// One Adam step on every radius, from the gradient of the held-out loss at the projected weights. A tensor without
    /// a gradient keeps its radius and its Adam state.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`], [`Error::LengthMismatch`], [`Error::NonFiniteGradient`]; [`Error::OutOfOrder`] outside
    /// a loop.
    pub fn update(&mut self, grads: &[Option<Vec<f64>>]) -> Result<()> {
        self.expect_looping(true, "update")?;
        check_operands(self.tensors.iter().map(|t| &t.spec), grads, "gradients", "gradient")?;
        check_finite(self.tensors.iter().map(|t| &t.spec), grads)?;
        for (t, grad) in self.tensors.iter_mut().zip(grads) {
            let (Some(tpgm), Some(grad)) = (t.tpgm, grad) else {
                t.trace.radius_grad_raw = None;
                t.trace.radius_grad = None;
                continue;
            };
            let h = radius_gradient(
                grad,
                &t.displacement,
                &t.spec.shape,
                tpgm.norm,
                &t.trace.norms,
                t.radius.value,
                t.spec.dtype,
            );
            let r = &mut t.radius;
            r.t += 1;
            (r.value, r.m, r.v) = radius_adam(&tpgm.adam, r.value, r.m, r.v, h, r.t);
            t.trace.radius_grad_raw = Some(h);
            t.trace.radius_grad = Some(h);
        }
        Ok(())
    }

    /// Clips the radii, writes the projection of the remembered weights and ends the loop.
    ///
    /// # Errors
    ///
    /// As [`apply`](Projector::apply).
    pub fn finish(&mut self, weights: &mut [Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        self.expect_looping(true, "finish")?;
        self.apply(weights, anchors)?;
        self.end();
        Ok(())
    }

    /// Restores the remembered weights and ends the loop; the radii keep what they have learned.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`]; [`Error::OutOfOrder`] outside a loop.
    pub fn abort(&mut self, weights: &mut [Vec<f64>]) -> Result<()> {
        self.expect_looping(true, "abort")?;
        check_len("weights", self.tensors.len(), weights.len())?;
        for (t, weight) in self.tensors.iter().zip(weights) {
            if t.tpgm.is_some() {
                weight.clone_from(&t.weight);
            }
        }
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        for t in &mut self.tensors {
            t.weight = Vec::new();
            t.displacement = Vec::new();
        }
        self.looping = false;
    }

    fn check(&self, weights: &[Vec<f64>], anchors: &[Option<Vec<f64>>]) -> Result<()> {
        let specs = || self.tensors.iter().map(|t| &t.spec);
        check_len("weights", self.tensors.len(), weights.len())?;
        for (spec, weight) in specs().zip(weights) {
            check_operand(spec, weight, "weight")?;
        }
        check_operands(specs(), anchors, "anchors", "anchor")?;
        for (t, anchor) in self.tensors.iter().zip(anchors) {
            if t.tpgm.is_some() && t.anchor == AnchorKind::Pretrained && anchor.is_none() {
                return Err(Error::MissingAnchor {
                    tensor: t.spec.name.clone(),
                    constraint: Constraint::Tpgm(Tpgm::default()).name(),
                });
            }
        }
        Ok(())
    }

    /// Steps 1 to 5 of every projected tensor that `included` names; returns all weights.
    pub(super) fn traverse(
        &mut self,
        weights: &[Vec<f64>],
        anchors: &[Option<Vec<f64>>],
        included: impl Fn(usize) -> bool,
    ) -> Result<Vec<Vec<f64>>> {
        self.check(weights, anchors)?;
        let mut measured = Vec::with_capacity(self.tensors.len());
        for (i, t) in self.tensors.iter().enumerate() {
            let tpgm = t.tpgm.filter(|_| included(i));
            measured.push(tpgm.map(|tpgm| t.measure(&tpgm, &weights[i], &anchors[i])).transpose()?);
        }
        let mut projected = weights.to_vec();
        for (i, (t, measured)) in self.tensors.iter_mut().zip(measured).enumerate() {
            let (Some(tpgm), Some((d, norms))) = (t.tpgm, measured) else {
                continue;
            };
            t.trace.radius_before = Some(t.radius.value);
            if !t.initialized {
                t.radius.value = round_to(initial_radius(&norms), t.spec.dtype);
                t.initialized = true;
            }
            t.trace.radius_unclipped = Some(t.radius.value);
            t.radius.value = clip_radius(round_to(t.radius.value, t.spec.dtype), &norms, t.spec.dtype);
            let r = ratios(t.radius.value, &norms, t.spec.dtype);
            let new = project(&d, t.home(&anchors[i]), &t.spec.shape, tpgm.norm, &r);
            projected[i] = held(new, t.spec.dtype);
            t.trace.norms = norms;
            t.trace.ratios = r;
        }
        Ok(projected)
    }

    fn expect_looping(&self, looping: bool, call: &'static str) -> Result<()> {
        if self.looping == looping {
            return Ok(());
        }
        let problem = if looping {
            "outside a loop: call `begin` first"
        } else {
            "during a loop: call `finish` or `abort` first"
        };
        Err(Error::OutOfOrder { call, problem })
    }
}

impl Member {
    fn home<'a>(&self, anchor: &'a Option<Vec<f64>>) -> Option<&'a [f64]> {
        match self.anchor {
            AnchorKind::Pretrained => anchor.as_deref(),
            AnchorKind::Zero | AnchorKind::None => None,
        }
    }

    /// The displacement, and its norms in the compute type.
    fn measure(
        &self,
        tpgm: &Tpgm,
        weight: &[f64],
        anchor: &Option<Vec<f64>>,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let d = displacement(weight, self.home(anchor));
        if !d.iter().all(|x| x.is_finite()) {
            return Err(Error::NonFiniteValue { tensor: self.spec.name.clone(), what: "displacement" });
        }
        let norms =
            norms(&d, &self.spec.shape, tpgm.norm).iter().map(|&n| round_to(n, self.spec.dtype)).collect();
        Ok((d, norms))
    }
}
