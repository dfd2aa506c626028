//! From sums to a few numbers per tensor: how it will move.

use super::kernels::{AdamWStep, Mix, SgdStep, Terms};
use super::measure::PieceSums;
use super::pull::{self, Pull};
use crate::constraint::{self, Constraint, Coupling, DigrapTest, Ftp, FtpMemory, RADIUS_FLOOR};
use crate::element::DType;
use crate::norm::Norm;
use crate::params::Settings;
use crate::plan::TensorPlan;
use crate::rule::{Decay, Rule};
use crate::scalars::TensorScalars;
use crate::step::Projection;

/// The rule's constants for one tensor and step, in f64.
#[derive(Debug, Clone, Copy)]
pub(super) enum RuleStep {
    /// No gradient: the weights stay, and are only projected.
    Hold,
    AdamW {
        step: AdamWStep<f64>,
        amsgrad: bool,
    },
    Sgd {
        step: SgdStep<f64>,
        momentum: bool,
    },
}

/// Everything [`advance`] needs to know of one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    /// Nothing happens to this tensor.
    pub(super) skip: bool,
    pub(super) rule: RuleStep,
    pub(super) mix: Mix<f64>,
    /// The mix has terms beyond displacements.
    pub(super) terms: bool,
    /// The anchor takes part in the terms.
    pub(super) terms_anchored: bool,
    /// The displacement before the step goes to [`Slot::Displacement`] (DiGraP).
    pub(super) keep_before: bool,
    /// The displacement after the step goes to [`Slot::Displacement`] (FTP).
    pub(super) keep_after: bool,
    /// The norm of the displacement after the step is taken.
    pub(super) norm: Option<Norm>,
    pub(super) pull: Pull,
    /// Pulling back waits for a pass of its own.
    pub(super) deferred: bool,
    /// Units with at least this norm need not wait for others to be pulled back.
    pub(super) pulls_from: f64,
    /// Units with less than this norm are pulled back in the second pass; the others were in the first.
    pub(super) waited_below: f64,
    /// FTP: what the row scale is one over; the norm, or with low memory the smaller of norm and radius.
    pub(super) row_scale: Option<FtpMemory>,
    /// Bound of the per-element rule.
    pub(super) scale_radius: Option<f64>,
}

impl Move {
    pub(super) const SKIP: Self = Self {
        skip: true,
        rule: RuleStep::Hold,
        mix: Mix { clip: 0.0, decay: 0.0, pull: 0.0, lr_decay: 0.0, lr_pull: 0.0, terms: Terms::NONE },
        terms: false,
        terms_anchored: false,
        keep_before: false,
        keep_after: false,
        norm: None,
        pull: Pull::Keep,
        deferred: false,
        pulls_from: 0.0,
        waited_below: f64::INFINITY,
        row_scale: None,
        scale_radius: None,
    };
}

/// What is known of one tensor between measuring and moving.
pub(super) struct Decide<'a> {
    pub(super) settings: &'a Settings,
    pub(super) tensor: &'a TensorPlan,
    /// Elements of all tensors.
    pub(super) set_numel: usize,
    pub(super) dtype: DType,
    pub(super) lr: f64,
    pub(super) clip: f64,
    pub(super) projection: Projection,
}

impl Decide<'_> {
    /// Advances the scalars of the tensor and says how it moves. Without a rule it is only projected.
    pub(super) fn decide(&self, scalars: &mut TensorScalars, sums: &PieceSums, rule: Option<&Rule>) -> Move {
        let mut step = Move { skip: false, ..Move::SKIP };
        // Whatever moves a tensor runs over its whole master.
        scalars.master_filled = 1.0;
        if let Some(rule) = rule {
            scalars.step += 1.0;
            step.rule = self.rule_step(rule, scalars.step);
            step.mix = self.mix(rule);
        }
        let cut = self.tensor.parts > 1;
        match &self.settings.constraint {
            Constraint::None => {}
            Constraint::FixedRadius(c) => {
                step.norm = Some(c.norm);
                step.pull = Pull::Fixed { radius: c.radius };
                step.deferred = cut;
            }
            Constraint::FixedScale(c) => step.scale_radius = Some(c.radius),
            Constraint::L2Sp(c) => match c.coupling {
                Coupling::Coupled => step.mix.pull = c.alpha,
                Coupling::Decoupled => step.mix.lr_pull = self.lr * c.alpha,
            },
            Constraint::Pull(c) => self.pull(c, &mut step),
            Constraint::Tpgm(c) => {
                if self.projection == Projection::Apply {
                    step.norm = Some(c.norm);
                    scalars.radius = pull::round(self.dtype, scalars.radius.max(RADIUS_FLOOR));
                    step.pull = Pull::Learned { radius: scalars.radius };
                    step.deferred = cut || scalars.initialized == 0.0;
                    // Rows as long as the radius do not depend on where it will be clipped; see `Settle`.
                    step.pulls_from = scalars.radius;
                }
            }
            Constraint::Ftp(c) => {
                let floor = ftp_floor(c);
                if scalars.step == 1.0 {
                    scalars.radius = floor;
                } else {
                    scalars.radius_grad_raw = self.clip * sums.dot;
                    let k = if scalars.radius_grad_raw > 0.0 { c.k } else { 1.0 };
                    pull::adam(scalars, &c.adam, k * scalars.radius_grad_raw, scalars.step);
                    scalars.radius = scalars.radius.max(floor);
                }
                scalars.radius = pull::round(self.dtype, scalars.radius);
                step.norm = Some(Norm::Mars);
                step.pull = Pull::Learned { radius: scalars.radius };
                step.keep_after = c.memory == FtpMemory::Exact;
                step.row_scale = Some(c.memory);
                step.deferred = cut;
            }
            Constraint::Spd(c) => {
                scalars.alignment = -self.clip * sums.dot;
                if scalars.alignment < 0.0 {
                    step.norm = Some(Norm::L2);
                    step.pull = Pull::Selective { strength: c.strength, before: sums.displacement.sqrt() };
                    step.deferred = cut;
                } else {
                    (scalars.norm, scalars.ratio, scalars.fire_rate) = (0.0, 1.0, 0.0);
                }
            }
            Constraint::Digrap(c) => {
                let grad_norm = self.clip * sums.square.sqrt();
                if scalars.step > 1.0 {
                    let dot = self.clip * sums.previous * scalars.previous_coefficient;
                    let previous = scalars.previous_coefficient.abs() * scalars.previous_norm;
                    scalars.radius_grad_raw = dot / (grad_norm * previous + 1e-8);
                    pull::adam(scalars, &c.adam, scalars.radius_grad_raw, scalars.step);
                    scalars.radius = scalars.radius.clamp(0.0, 1.0);
                }
                let dot = self.clip * sums.dot;
                let coefficient = if sums.displacement < 1e-30 { 0.0 } else { dot / sums.displacement };
                let projects = match c.test {
                    DigrapTest::Conflict => dot <= 0.0,
                    DigrapTest::Agreement => dot > 0.0,
                };
                if projects {
                    step.mix.pull = -scalars.radius * coefficient;
                }
                scalars.previous_coefficient = coefficient;
                scalars.previous_norm = sums.displacement.sqrt();
                scalars.norm = scalars.previous_norm;
                scalars.alignment = -dot;
                step.keep_before = true;
            }
        }
        step
    }

    fn mix(&self, rule: &Rule) -> Mix<f64> {
        let decay = self.settings.weight_decay;
        let (coupled, decoupled) = match rule.decay() {
            Decay::Coupled => (decay, 0.0),
            Decay::Decoupled => (0.0, self.lr * decay),
        };
        Mix { clip: self.clip, decay: coupled, lr_decay: decoupled, ..Move::SKIP.mix }
    }

    /// Squares alone, all elements alike, are weight decay and what L2-SP does.
    fn pull(&self, c: &constraint::Pull, step: &mut Move) {
        let factor = c.factor(self.tensor.numel, self.set_numel);
        let mix = &mut step.mix;
        if c.weights.is_kept() || c.anchor_l1 > 0.0 || c.zero_l1 > 0.0 {
            let (to_grad, to_aside) = match c.coupling {
                Coupling::Coupled => (1.0, 0.0),
                Coupling::Decoupled => (0.0, self.lr),
            };
            mix.terms = Terms {
                anchor_l2: factor * c.anchor_l2,
                anchor_l1: factor * c.anchor_l1,
                zero_l2: factor * c.zero_l2,
                zero_l1: factor * c.zero_l1,
                to_grad,
                to_aside,
            };
            step.terms = true;
            step.terms_anchored = c.is_anchored();
        } else {
            let (home, zero) = (factor * c.anchor_l2, factor * c.zero_l2);
            match c.coupling {
                Coupling::Coupled => {
                    mix.pull = home;
                    mix.decay += zero;
                }
                Coupling::Decoupled => {
                    mix.lr_pull = self.lr * home;
                    mix.lr_decay += self.lr * zero;
                }
            }
        }
    }

    fn rule_step(&self, rule: &Rule, t: f64) -> RuleStep {
        match rule {
            Rule::AdamW(rule) => RuleStep::AdamW {
                step: AdamWStep {
                    beta1: rule.beta1,
                    one_minus_beta1: 1.0 - rule.beta1,
                    beta2: rule.beta2,
                    one_minus_beta2: 1.0 - rule.beta2,
                    step_size: self.lr / (1.0 - rule.beta1.powf(t)),
                    root_scale: 1.0 / (1.0 - rule.beta2.powf(t)).sqrt(),
                    eps: rule.eps,
                },
                amsgrad: rule.amsgrad,
            },
            Rule::Sgd(rule) => {
                let momentum = rule.momentum > 0.0;
                let (keep, take) = if t == 1.0 { (0.0, 1.0) } else { (rule.momentum, 1.0 - rule.dampening) };
                let (lr_grad, lr_buf) = match (momentum, rule.nesterov) {
                    (false, _) => (self.lr, 0.0),
                    (true, false) => (0.0, self.lr),
                    (true, true) => (self.lr, self.lr * rule.momentum),
                };
                RuleStep::Sgd { step: SgdStep { keep, take, lr_grad, lr_buf }, momentum }
            }
        }
    }
}

/// The lowest radius of FTP.
pub(super) fn ftp_floor(ftp: &Ftp) -> f64 {
    match ftp.memory {
        FtpMemory::Exact => RADIUS_FLOOR,
        FtpMemory::Low => ftp.adam.lr,
    }
}
