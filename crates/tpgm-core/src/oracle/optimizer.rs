//! One step of any rule under any constraint.

use super::check::{check_finite, check_len, check_operand, check_operands};
use super::constraint::{
    anneal, digrap_acts, digrap_component, digrap_gradient, ftp_clip, ftp_norms, ftp_radius_gradient,
    ftp_radius_gradient_low, importance, l2sp_pull, pull, spd_alignment, spd_ratio,
};
use super::measure::{clip_factor, displacement, dot, global_norm, held, norms};
use super::project::{add_anchor, fixed_radius, fixed_scale, project, radius_adam};
use super::projector::Projector;
use super::rule::{adamw_update, sgd_update};
use super::state::{Moments, Radius, Trace, Variances};
use crate::constraint::{Constraint, Coupling, Digrap, Ftp, FtpMemory, PullScale, RADIUS_FLOOR};
use crate::error::{Error, Result};
use crate::norm::Norm;
use crate::params::{AnchorKind, ParamSet, Settings, TensorSpec};
use crate::rule::{Rule, above_zero, at_least_zero};

/// Any rule under any constraint.
///
/// Every tensor counts its own steps: `t` is the number of steps for which it had a gradient, in the bias corrections of
/// the rule and of FTP's radius and DiGraP's strength alike (the published code of FTP counts all tensors together,
/// which is the same as long as every tensor always has a gradient). FTP and DiGraP update their scalar from `t = 2` on,
/// with the correction for `t`.
///
/// Order of a step: scale and clip the gradient; DiGraP or a coupled pull; the rule, with its weight decay; a decoupled
/// pull; then the constraint on the new displacement. TPGM projects with its current radii.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    specs: Vec<TensorSpec>,
    settings: Vec<Settings>,
    rule: Rule,
    tensors: Vec<TensorState>,
    projector: Option<Projector>,
    variances: Vec<Option<Variances>>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct TensorState {
    t: u64,
    moments: Moments,
    radius: Radius,
    /// FTP: displacement before the projection of the previous step. DiGraP: its previous `p`.
    previous: Vec<f64>,
    /// FTP: norms of the previous step.
    previous_norms: Vec<f64>,
    /// Importance of a pull, and whether it was given.
    importance: Vec<f64>,
    given: bool,
    trace: Trace,
}

impl Optimizer {
    /// Makes an optimizer of a set.
    ///
    /// # Errors
    ///
    /// What [`ParamSet::settings`] says.
    pub fn new(set: &ParamSet, rule: impl Into<Rule>, constraint: impl Into<Constraint>) -> Result<Self> {
        let rule = rule.into();
        let settings = set.settings(&rule, &constraint.into())?;
        let tpgm = settings.iter().any(|s| matches!(s.constraint, Constraint::Tpgm(_)));
        Ok(Self {
            projector: tpgm.then(|| Projector::from_settings(set.tensors(), &settings)),
            tensors: set
                .tensors()
                .iter()
                .map(|spec| TensorState { importance: vec![0.0; spec.numel()], ..TensorState::default() })
                .collect(),
            variances: vec![None; set.len()],
            specs: set.tensors().to_vec(),
            settings,
            rule,
        })
    }

    /// Sets the running variances that [`FixedScale`](crate::FixedScale) uses from now on; `None`: ones.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`], [`Error::LengthMismatch`].
    pub fn set_variances(&mut self, variances: Vec<Option<Variances>>) -> Result<()> {
        check_len("variances", self.specs.len(), variances.len())?;
        for (spec, variances) in self.specs.iter().zip(&variances) {
            if let Some(v) = variances {
                check_operand(spec, &v.current, "running variance")?;
                check_operand(spec, &v.anchor, "running variance of the anchor")?;
            }
        }
        self.variances = variances;
        Ok(())
    }

    /// Takes the importance of pulls from gradients; a tensor without one keeps what it has.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`], [`Error::LengthMismatch`], [`Error::NonFiniteGradient`].
    pub fn update_importance(&mut self, grads: &[Option<Vec<f64>>]) -> Result<()> {
        check_operands(self.specs.iter(), grads, "gradients", "gradient")?;
        check_finite(self.specs.iter(), grads)?;
        for ((state, settings), grad) in self.tensors.iter_mut().zip(&self.settings).zip(grads) {
            if let (Some(weights), Some(grad)) = (settings.constraint.importance(), grad) {
                state.importance = importance(weights, &state.importance, grad, !state.given);
                state.given = true;
            }
        }
        Ok(())
    }

    /// The importance of a tensor; zeros before it is given. `None` outside the set.
    pub fn importance(&self, tensor: usize) -> Option<&[f64]> {
        self.tensors.get(tensor).map(|t| t.importance.as_slice())
    }

    /// The gradient of the tensor's pull, if it has one.
    fn pull(&self, i: usize, state: &TensorState, weight: &[f64], before: &[f64]) -> Option<Vec<f64>> {
        let Constraint::Pull(c) = &self.settings[i].constraint else { return None };
        let n = match c.scale {
            PullScale::Sum => 1,
            PullScale::TensorMean => weight.len(),
            PullScale::SetMean => self.specs.iter().map(TensorSpec::numel).sum(),
        };
        let importance = c.weights.is_kept().then_some(state.importance.as_slice());
        Some(pull(c, weight, before, importance, n as f64))
    }

    /// Takes one step and returns the global norm of the scaled gradients, before clipping.
    ///
    /// Weights, gradients and anchors are in set order. A tensor whose gradient is `None` is skipped entirely,
    /// but for TPGM's projection, which does not ask for one. `lr` is
    /// the rule's unless given; a group's own scales along. Gradients are multiplied by `grad_scale`, then by
    /// `min(1, max_grad_norm / (norm + 1e-6))`.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`], [`Error::LengthMismatch`], [`Error::MissingAnchor`], [`Error::NonFiniteGradient`],
    /// [`Error::InvalidOption`]; [`Error::OutOfOrder`] during a loop of the projector. Nothing has changed then.
    pub fn step(
        &mut self,
        weights: &mut [Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
        lr: Option<f64>,
        grad_scale: f64,
        max_grad_norm: Option<f64>,
    ) -> Result<f64> {
        let lr = lr.unwrap_or(self.rule.lr());
        at_least_zero("StepOptions::lr", lr)?;
        above_zero("StepOptions::grad_scale", grad_scale)?;
        max_grad_norm.map_or(Ok(()), |max| above_zero("StepOptions::max_grad_norm", max))?;
        self.check(weights, grads, anchors)?;

        let mut grads = times(grad_scale, grads);
        check_finite(self.specs.iter(), &grads)?;
        let norm = global_norm(&grads);
        if let Some(max) = max_grad_norm {
            grads = times(clip_factor(norm, max), &grads);
        }

        // The TPGM projection can still refuse, so nothing is written before it has been computed.
        let mut next = self.tensors.clone();
        let mut moved = weights.to_vec();
        for (i, grad) in grads.iter().enumerate() {
            if let Some(grad) = grad {
                moved[i] = self.step_tensor(i, &mut next[i], &weights[i], grad, anchors[i].as_deref(), lr);
            }
        }
        if let Some(projector) = &mut self.projector {
            moved = projector.traverse(&moved, anchors)?;
            for (i, state) in next.iter_mut().enumerate() {
                if let (true, Some(trace)) = (projector.projects(i), projector.trace(i)) {
                    state.trace.norms.clone_from(&trace.norms);
                    state.trace.ratios.clone_from(&trace.ratios);
                    state.trace.radius_before = trace.radius_before;
                    state.trace.radius_unclipped = trace.radius_unclipped;
                }
            }
        }
        self.tensors = next;
        for ((weight, new), spec) in weights.iter_mut().zip(moved).zip(&self.specs) {
            *weight = held(new, spec.dtype);
        }
        Ok(norm)
    }

    /// The rule and every constraint but TPGM, on one tensor; returns its new weights.
    fn step_tensor(
        &self,
        i: usize,
        state: &mut TensorState,
        weight: &[f64],
        grad: &[f64],
        anchor: Option<&[f64]>,
        lr: f64,
    ) -> Vec<f64> {
        let settings = &self.settings[i];
        let shape = &self.specs[i].shape;
        let lr = lr * settings.lr_scale;
        let decay = settings.weight_decay;
        let anchor = anchor.filter(|_| settings.anchor == AnchorKind::Pretrained);
        let before = displacement(weight, anchor);
        state.t += 1;
        state.trace = Trace::default();

        let mut g = grad.to_vec();
        match &settings.constraint {
            Constraint::Digrap(digrap) => digrap_step(digrap, state, &mut g, &before),
            Constraint::L2Sp(c) if c.coupling == Coupling::Coupled => {
                g = plus(&g, &l2sp_pull(&before, c.alpha));
            }
            Constraint::Pull(c) if c.coupling == Coupling::Coupled => {
                g = plus(&g, &self.pull(i, state, weight, &before).unwrap_or_default());
            }
            _ => {}
        }

        let mut update = match &self.rule {
            Rule::AdamW(rule) => adamw_update(rule, lr, decay, state.t, weight, &g, &mut state.moments),
            Rule::Sgd(rule) => sgd_update(rule, lr, decay, weight, &g, &mut state.moments),
        };
        if let Constraint::L2Sp(c) = &settings.constraint
            && c.coupling == Coupling::Decoupled
        {
            update = plus(&update, &l2sp_pull(&before, lr * c.alpha));
        }
        if let Constraint::Pull(c) = &settings.constraint
            && c.coupling == Coupling::Decoupled
        {
            let pull = self.pull(i, state, weight, &before).unwrap_or_default();
            update = plus(&update, &pull.iter().map(|x| lr * x).collect::<Vec<_>>());
        }
        let proposed = weight.iter().zip(&update).map(|(w, u)| w - u).collect();
        let proposed = held(proposed, self.specs[i].dtype);
        state.trace.update = update;

        match &settings.constraint {
            Constraint::None
            | Constraint::Tpgm(_)
            | Constraint::Digrap(_)
            | Constraint::L2Sp(_)
            | Constraint::Pull(_) => proposed,
            Constraint::FixedRadius(c) => {
                state.trace.norms = norms(&displacement(&proposed, anchor), shape, c.norm);
                state.trace.ratios =
                    state.trace.norms.iter().map(|n| 1.0 / (n / c.radius).max(1.0)).collect();
                fixed_radius(&proposed, anchor, shape, c.norm, c.radius)
            }
            Constraint::FixedScale(c) => fixed_scale(&proposed, anchor, self.variances[i].as_ref(), c.radius),
            Constraint::Ftp(ftp) => ftp_step(ftp, state, grad, &before, &proposed, anchor, shape),
            Constraint::Spd(spd) => {
                let after = displacement(&proposed, anchor);
                let alignment = spd_alignment(grad, &before);
                state.trace.alignment = Some(alignment);
                if alignment < 0.0 {
                    let ratio = spd_ratio(&before, &after);
                    state.trace.spd_ratio = Some(ratio);
                    proposed.iter().zip(&after).map(|(w, d)| w - spd.strength * ratio * d).collect()
                } else {
                    proposed
                }
            }
        }
    }

    /// Steps a tensor has taken; 0 outside the set.
    pub fn steps(&self, tensor: usize) -> u64 {
        self.tensors.get(tensor).map_or(0, |t| t.t)
    }

    /// The moments of a tensor. `None` outside the set.
    pub fn moments(&self, tensor: usize) -> Option<&Moments> {
        self.tensors.get(tensor).map(|t| &t.moments)
    }

    /// The learned scalar of a tensor under TPGM, FTP or DiGraP; `None` under other constraints.
    pub fn radius(&self, tensor: usize) -> Option<Radius> {
        match self.settings.get(tensor)?.constraint {
            Constraint::Tpgm(_) => self.projector.as_ref()?.radius(tensor),
            Constraint::Ftp(_) | Constraint::Digrap(_) => Some(self.tensors.get(tensor)?.radius),
            _ => None,
        }
    }

    /// What the latest step computed for a tensor. `None` outside the set.
    pub fn trace(&self, tensor: usize) -> Option<&Trace> {
        self.tensors.get(tensor).map(|t| &t.trace)
    }

    /// What applies to each tensor.
    pub fn settings(&self) -> &[Settings] {
        &self.settings
    }

    /// The projector that owns the radii of TPGM tensors, to learn them; `None` without such tensors.
    pub fn projector_mut(&mut self) -> Option<&mut Projector> {
        self.projector.as_mut()
    }

    fn check(
        &self,
        weights: &[Vec<f64>],
        grads: &[Option<Vec<f64>>],
        anchors: &[Option<Vec<f64>>],
    ) -> Result<()> {
        if self.projector.as_ref().is_some_and(Projector::is_looping) {
            return Err(Error::OutOfOrder {
                call: "step",
                problem: "during a loop of the projector: call `finish` or `abort` first",
            });
        }
        check_len("weights", self.specs.len(), weights.len())?;
        for (spec, weight) in self.specs.iter().zip(weights) {
            check_operand(spec, weight, "weight")?;
        }
        check_operands(self.specs.iter(), grads, "gradients", "gradient")?;
        check_operands(self.specs.iter(), anchors, "anchors", "anchor")?;
        for ((spec, settings), anchor) in self.specs.iter().zip(&self.settings).zip(anchors) {
            if settings.constraint.is_anchored()
                && settings.anchor == AnchorKind::Pretrained
                && anchor.is_none()
            {
                return Err(Error::MissingAnchor {
                    tensor: spec.name.clone(),
                    constraint: settings.constraint.name(),
                });
            }
        }
        Ok(())
    }
}

/// DiGraP on the gradient: learns ω, then removes ω of the component along the displacement where the test says so.
fn digrap_step(digrap: &Digrap, state: &mut TensorState, g: &mut [f64], before: &[f64]) {
    let p = digrap_component(g, before);
    if state.t >= 2 {
        let q = digrap_gradient(g, &state.previous);
        let (omega, m, v) =
            radius_adam(&digrap.adam, state.radius.value, state.radius.m, state.radius.v, q, state.t);
        state.trace.radius_grad_raw = Some(q);
        state.trace.radius_grad = Some(q);
        state.trace.radius_unclipped = Some(omega);
        state.radius.value = omega.clamp(0.0, 1.0);
        (state.radius.m, state.radius.v) = (m, v);
    }
    state.radius.t = state.t;
    let dot = dot(g, before);
    state.trace.alignment = Some(-dot);
    if digrap_acts(digrap.test, dot) {
        for (g, p) in g.iter_mut().zip(&p) {
            *g -= state.radius.value * p;
        }
    }
    state.previous = p;
}

/// FTP on the proposed weights: learns the radius from the raw gradient, then projects.
fn ftp_step(
    ftp: &Ftp,
    state: &mut TensorState,
    grad: &[f64],
    before: &[f64],
    proposed: &[f64],
    anchor: Option<&[f64]>,
    shape: &[usize],
) -> Vec<f64> {
    let c = displacement(proposed, anchor);
    let n = ftp_norms(&c, shape);
    let floor = match ftp.memory {
        FtpMemory::Exact => RADIUS_FLOOR,
        FtpMemory::Low => ftp.adam.lr,
    };
    if state.t == 1 {
        state.radius.value = floor;
    } else {
        let r = &state.radius;
        let raw = match ftp.memory {
            FtpMemory::Exact => ftp_radius_gradient(grad, &state.previous, &state.previous_norms, shape),
            FtpMemory::Low => ftp_radius_gradient_low(grad, before, r.value, &state.previous_norms, shape),
        };
        let h = anneal(raw, ftp.k);
        let (unclipped, m, v) = radius_adam(&ftp.adam, r.value, r.m, r.v, h, state.t);
        state.trace.radius_grad_raw = Some(raw);
        state.trace.radius_grad = Some(h);
        state.trace.radius_unclipped = Some(unclipped);
        (state.radius.m, state.radius.v) = (m, v);
        state.radius.value = ftp_clip(unclipped, &n, floor);
    }
    state.radius.t = state.t;
    let ratios: Vec<f64> = n.iter().map(|n| (state.radius.value / n).clamp(0.0, 1.0)).collect();
    let weight = project(&c, anchor, shape, Norm::Mars, &ratios);
    state.trace.norms.clone_from(&n);
    state.trace.ratios = ratios;
    state.previous_norms = n;
    if ftp.memory == FtpMemory::Exact {
        state.previous = c;
    }
    weight
}

fn times(factor: f64, grads: &[Option<Vec<f64>>]) -> Vec<Option<Vec<f64>>> {
    let times = |g: &Vec<f64>| g.iter().map(|x| factor * x).collect();
    grads.iter().map(|g| g.as_ref().map(times)).collect()
}

fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    add_anchor(a.to_vec(), Some(b))
}
