//! One step: look at all gradients, decide, move all weights.
//!
//! 1. **measure** reads every gradient (and what a constraint needs beside it) and writes only partial sums. A
//!    gradient that is not finite ends the step here, with nothing changed.
//! 2. **decide** turns the sums into a few numbers per tensor.
//! 3. **move**: the rule updates moments and weights; where a constraint needs the norm of what came out, a row is
//!    pulled back as soon as it is complete, while it is in cache. Units that are cut into several pieces, and
//!    radii that need all rows first, are pulled back in a pass of their own; tensors are taken in *waves* small
//!    enough that this pass still finds them in the last-level cache.

use rayon::prelude::*;

use super::kernels::{self, AdamWStep, BLOCK, Mix, SgdStep};
use super::lanes::Lanes;
use super::operand::{Operand, Operands, blocks, load};
use super::pull::{self, NormRange, Pull, is_tpgm};
use super::simd::Simd;
use super::{Cpu, Workspace};
use crate::backend::{Job, StepReport};
use crate::constraint::{Constraint, Coupling, DigrapTest, Ftp, FtpMemory, RADIUS_FLOOR};
use crate::element::{DType, Element, Real};
use crate::error::{Error, Result};
use crate::norm::Norm;
use crate::optimizer::{Projection, StepOptions};
use crate::params::{Settings, TensorSpec};
use crate::plan::{Piece, Plan, TensorPlan};
use crate::rule::{Decay, Rule};
use crate::scalars::TensorScalars;
use crate::state::Slot;

/// Elements of the tensors that are moved before their second pass, if they need one: their weights and anchors (8 bytes
/// each in f32) should still be in the last-level cache.
const WAVE: usize = 1 << 20;

/// Which sums [`measure`] takes of a tensor beside the check for finite gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sums {
    /// None.
    Check,
    /// `<g, W - W0>` and `|W - W0|^2`, over the tensor.
    Displacement,
    /// As `Displacement`, and `<g, slot>`.
    DisplacementAndPrevious,
    /// `<g, slot>` of each row times its row scale.
    ScaledPrevious,
    /// `<g, W - W0>` of each row times its row scale.
    ScaledDisplacement,
}

/// What [`measure`] found in one piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceSums {
    pub(super) finite: bool,
    square: f64,
    pub(super) dot: f64,
    displacement: f64,
    previous: f64,
}

impl PieceSums {
    /// Of nothing.
    pub(super) const NONE: Self = Self {
        finite: true,
        square: 0.0,
        dot: 0.0,
        displacement: 0.0,
        previous: 0.0,
    };

    fn total(pieces: &[Self]) -> Self {
        let mut total = Self::NONE;
        pieces.iter().for_each(|piece| total.join(piece));
        total
    }

    fn join(&mut self, other: &Self) {
        self.finite &= other.finite;
        self.square += other.square;
        self.dot += other.dot;
        self.displacement += other.displacement;
        self.previous += other.previous;
    }
}

/// What [`advance`] reports of one piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceNorms {
    norms: NormRange,
    ratio: f64,
    pulled: usize,
}

impl PieceNorms {
    pub(super) const EMPTY: Self = Self {
        norms: NormRange::EMPTY,
        ratio: 1.0,
        pulled: 0,
    };

    #[inline(always)]
    fn add(&mut self, norm: f64, ratio: f64) {
        self.norms.add(norm);
        self.ratio = self.ratio.min(ratio);
        self.pulled += usize::from(ratio < 1.0);
    }

    fn join(&mut self, other: &Self) {
        self.norms = self.norms.join(other.norms);
        self.ratio = self.ratio.min(other.ratio);
        self.pulled += other.pulled;
    }
}

/// The rule's constants for one tensor and step, in f64.
#[derive(Debug, Clone, Copy)]
enum RuleStep {
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
    skip: bool,
    rule: RuleStep,
    mix: Mix<f64>,
    /// The displacement before the step goes to [`Slot::Displacement`] (DiGraP).
    keep_before: bool,
    /// The displacement after the step goes to [`Slot::Displacement`] (FTP).
    keep_after: bool,
    /// The norm of the displacement after the step is taken.
    norm: Option<Norm>,
    pull: Pull,
    /// Pulling back waits for a pass of its own.
    deferred: bool,
    /// FTP: what the row scale is one over; the norm, or with low memory the smaller of norm and radius.
    row_scale: Option<FtpMemory>,
    /// Bound of the per-element rule.
    scale_radius: Option<f64>,
}

impl Move {
    pub(super) const SKIP: Self = Self {
        skip: true,
        rule: RuleStep::Hold,
        mix: Mix {
            clip: 0.0,
            decay: 0.0,
            pull: 0.0,
            lr_decay: 0.0,
            lr_pull: 0.0,
        },
        keep_before: false,
        keep_after: false,
        norm: None,
        pull: Pull::Keep,
        deferred: false,
        row_scale: None,
        scale_radius: None,
    };
}

/// Runs `$body` with the compute type of `$dtype` as `$real`.
macro_rules! with_real {
    ($dtype:expr, $real:ident => $body:expr) => {
        match $dtype.compute() {
            DType::F64 => {
                type $real = f64;
                $body
            }
            _ => {
                type $real = f32;
                $body
            }
        }
    };
}
pub(super) use with_real;

pub(super) fn step(
    cpu: &Cpu,
    job: Job<'_, '_, Cpu>,
    rule: &Rule,
    options: &StepOptions,
) -> Result<StepReport> {
    let Job {
        set,
        settings,
        plan,
        io,
        slots,
        scalars,
        workspace,
    } = job;
    workspace.bind(io, slots, settings, scalars);
    let Workspace {
        operands,
        moves,
        sums,
        ..
    } = workspace;

    let clipping = options.max_grad_norm.is_some();
    cpu.run(|| {
        sums.par_iter_mut().zip(&plan.pieces).for_each(|(out, piece)| {
            let (operands, settings) = (&operands[piece.tensor], &settings[piece.tensor]);
            let wanted = sums_wanted(settings, &scalars[piece.tensor]);
            let tensor = &plan.tensors[piece.tensor];
            *out = if operands.grad.is_some() {
                with_real!(operands.weight.dtype(), C => measure::<C>(cpu.simd, operands, tensor, piece, wanted, clipping))
            } else {
                PieceSums::NONE
            };
        });
    });

    check_finite(set.tensors(), plan, sums)?;
    let total = |t: usize| PieceSums::total(&sums[plan.tensors[t].pieces.clone()]);
    let square = || (0..set.len()).map(|t| total(t).square).sum::<f64>();
    let grad_norm = clipping.then(|| square().sqrt() * options.grad_scale);
    let clip = match (grad_norm, options.max_grad_norm) {
        (Some(norm), Some(max)) => options.grad_scale * (max / (norm + 1e-6)).min(1.0),
        _ => options.grad_scale,
    };
    // Finite gradients can still overflow a product with what is remembered of earlier steps.
    for t in 0..set.len() {
        let total = total(t);
        if !(total.dot.is_finite() && total.displacement.is_finite() && total.previous.is_finite()) {
            let tensor = set.tensors()[t].name.clone();
            return Err(Error::NonFiniteValue {
                tensor,
                what: "product of gradient and displacement",
            });
        }
    }

    // Nothing fails from here on.
    let base_lr = options.lr.unwrap_or(rule.lr());
    moves.clear();
    for (t, spec) in set.tensors().iter().enumerate() {
        let (settings, tensor) = (&settings[t], &plan.tensors[t]);
        let has_grad = operands[t].grad.is_some();
        moves.push(
            if tensor.units == 0 || !(has_grad || is_tpgm(&settings.constraint)) {
                Move::SKIP
            } else {
                let lr = base_lr * settings.lr_scale;
                let context = Decide {
                    settings,
                    tensor,
                    dtype: spec.dtype,
                    lr,
                    clip,
                    projection: options.projection,
                };
                context.decide(&mut scalars[t], &total(t), has_grad.then_some(rule))
            },
        );
    }

    let report = StepReport { grad_norm };
    move_all(cpu, set.tensors(), plan, settings, scalars, workspace);
    Ok(report)
}

/// The phase that writes, over the whole set: carries out the moves in the workspace.
pub(super) fn move_all(
    cpu: &Cpu,
    specs: &[TensorSpec],
    plan: &Plan,
    settings: &[Settings],
    scalars: &mut [TensorScalars],
    workspace: &mut Workspace,
) {
    let Workspace {
        operands,
        moves,
        piece_norms,
        parts,
        norms,
        wave_ends,
        ..
    } = workspace;
    let parts = Operand::write(parts.as_mut_slice().into());
    let norms = Operand::write(norms.as_mut_slice().into());
    cut_waves(&plan.tensors, moves, wave_ends);
    let mut start = 0;
    for &end in wave_ends.iter() {
        let wave = std::mem::replace(&mut start, end)..end;
        let pieces = plan.tensors[wave.start].pieces.start..plan.tensors[wave.end - 1].pieces.end;
        cpu.run(|| {
            let work = piece_norms[pieces.clone()]
                .par_iter_mut()
                .zip(&plan.pieces[pieces.clone()]);
            work.for_each(|(out, piece)| {
                let (operands, tensor) = (&operands[piece.tensor], &plan.tensors[piece.tensor]);
                let context = Advance {
                    simd: cpu.simd,
                    operands,
                    step: &moves[piece.tensor],
                    tensor,
                    parts,
                    norms,
                };
                *out = with_real!(operands.weight.dtype(), C => context.advance::<C>(piece));
            });
        });
        for t in wave.clone() {
            let mut out = PieceNorms::EMPTY;
            piece_norms[plan.tensors[t].pieces.clone()]
                .iter()
                .for_each(|piece| out.join(piece));
            let (operands, settings, tensor) = (&operands[t], &settings[t], &plan.tensors[t]);
            let context = Settle {
                operands,
                settings,
                tensor,
                dtype: specs[t].dtype,
                parts,
                norms,
            };
            context.settle(&mut moves[t], &mut scalars[t], out);
        }
        if moves[wave].iter().any(|step| step.deferred) {
            cpu.run(|| {
                plan.pieces[pieces].par_iter().for_each(|piece| {
                    let (operands, tensor) = (&operands[piece.tensor], &plan.tensors[piece.tensor]);
                    let context = Advance {
                        simd: cpu.simd,
                        operands,
                        step: &moves[piece.tensor],
                        tensor,
                        parts,
                        norms,
                    };
                    with_real!(operands.weight.dtype(), C => context.pull_deferred::<C>(piece));
                });
            });
        }
    }
}

/// Cuts the set into waves: each ends where a second pass is due and enough elements have come together.
fn cut_waves(tensors: &[TensorPlan], moves: &[Move], ends: &mut Vec<usize>) {
    ends.clear();
    let (mut elements, mut second) = (0, false);
    for (t, tensor) in tensors.iter().enumerate() {
        elements += tensor.numel;
        second |= moves[t].deferred;
        if (second && elements >= WAVE) || t + 1 == tensors.len() {
            ends.push(t + 1);
            (elements, second) = (0, false);
        }
    }
}

/// An error that names the first tensor whose gradient is not finite.
pub(super) fn check_finite(specs: &[TensorSpec], plan: &Plan, sums: &[PieceSums]) -> Result<()> {
    let finite = |t: &usize| {
        sums[plan.tensors[*t].pieces.clone()]
            .iter()
            .all(|piece| piece.finite)
    };
    let mut affected = (0..specs.len()).filter(|t| !finite(t));
    match affected.next() {
        None => Ok(()),
        Some(t) => Err(Error::NonFiniteGradient {
            tensor: specs[t].name.clone(),
            count: 1 + affected.count(),
        }),
    }
}

/// The moves of a projection on its own.
pub(super) fn decide_projection(
    specs: &[TensorSpec],
    plan: &Plan,
    settings: &[Settings],
    scalars: &mut [TensorScalars],
    moves: &mut Vec<Move>,
) {
    moves.clear();
    for (((spec, tensor), settings), scalars) in specs.iter().zip(&plan.tensors).zip(settings).zip(scalars) {
        moves.push(if tensor.units > 0 && is_tpgm(&settings.constraint) {
            let context = Decide {
                settings,
                tensor,
                dtype: spec.dtype,
                lr: 0.0,
                clip: 0.0,
                projection: Projection::Apply,
            };
            context.decide(scalars, &PieceSums::NONE, None)
        } else {
            Move::SKIP
        });
    }
}

fn sums_wanted(settings: &Settings, scalars: &TensorScalars) -> Sums {
    match &settings.constraint {
        Constraint::Spd(_) => Sums::Displacement,
        Constraint::Digrap(_) => Sums::DisplacementAndPrevious,
        Constraint::Ftp(_) if scalars.step == 0.0 => Sums::Check,
        Constraint::Ftp(ftp) if ftp.memory == FtpMemory::Exact => Sums::ScaledPrevious,
        Constraint::Ftp(_) => Sums::ScaledDisplacement,
        _ => Sums::Check,
    }
}

/// Bytes read per f32 parameter: 4, with `Displacement` 12, `DisplacementAndPrevious` 16, `ScaledPrevious` 8,
/// `ScaledDisplacement` 12. Nothing is written.
fn measure<C: Real>(
    simd: Simd,
    operands: &Operands,
    tensor: &TensorPlan,
    piece: &Piece,
    wanted: Sums,
    clipping: bool,
) -> PieceSums {
    let mut out = PieceSums::NONE;
    let (mut grads, mut anchors, mut weights) = ([C::ZERO; BLOCK], [C::ZERO; BLOCK], [C::ZERO; BLOCK]);
    let (mut square, mut dot, mut displacement, mut previous) =
        (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
    let scaled = matches!(wanted, Sums::ScaledPrevious | Sums::ScaledDisplacement);
    let anchored = !matches!(wanted, Sums::Check | Sums::ScaledPrevious);
    for unit in 0..piece.units {
        let range = unit_range(tensor, piece, unit);
        let mut row = Lanes::ZERO;
        for range in blocks(range) {
            // SAFETY: during this phase nobody writes to any operand.
            let (g, a, w, before) = unsafe {
                (
                    load(operands.grad, range.clone(), &mut grads),
                    if anchored {
                        load(operands.anchor, range.clone(), &mut anchors)
                    } else {
                        &[]
                    },
                    if anchored {
                        load(Some(operands.source()), range.clone(), &mut weights)
                    } else {
                        &[]
                    },
                    operands.state::<C>(Slot::Displacement, range.clone()),
                )
            };
            out.finite &= kernels::all_finite(simd, g);
            if clipping {
                kernels::add_dot(simd, g, g, &mut square);
            }
            match wanted {
                Sums::Check => {}
                Sums::ScaledPrevious => kernels::add_dot(simd, g, before, &mut row),
                Sums::ScaledDisplacement => kernels::add_dot_displacement(simd, g, w, a, &mut row),
                Sums::Displacement | Sums::DisplacementAndPrevious => {
                    kernels::add_dot_displacement(simd, g, w, a, &mut dot);
                    kernels::add_norm::<C, true>(simd, w, a, &mut displacement);
                    if wanted == Sums::DisplacementAndPrevious {
                        kernels::add_dot(simd, g, before, &mut previous);
                        if !clipping {
                            kernels::add_dot(simd, g, g, &mut square);
                        }
                    }
                }
            }
        }
        if scaled {
            let at = piece.unit + unit;
            // SAFETY: as above.
            let scale = unsafe { operands.state::<f64>(Slot::RowScale, at..at + 1) };
            out.dot += row.total() * scale[0];
        }
    }
    out.square = square.total();
    out.displacement = displacement.total();
    out.previous = previous.total();
    if !scaled {
        out.dot = dot.total();
    }
    out
}

/// The elements of the `unit`-th unit of a piece.
#[inline(always)]
pub(super) fn unit_range(tensor: &TensorPlan, piece: &Piece, unit: usize) -> std::ops::Range<usize> {
    if tensor.parts > 1 {
        piece.start..piece.end
    } else {
        let start = piece.start + unit * tensor.unit_len;
        start..start + tensor.unit_len
    }
}

/// What is known of one tensor between measuring and moving.
struct Decide<'a> {
    settings: &'a Settings,
    tensor: &'a TensorPlan,
    dtype: DType,
    lr: f64,
    clip: f64,
    projection: Projection,
}

impl Decide<'_> {
    /// Advances the scalars of the tensor and says how it moves. Without a rule it is only projected.
    fn decide(&self, scalars: &mut TensorScalars, sums: &PieceSums, rule: Option<&Rule>) -> Move {
        let mut step = Move {
            skip: false,
            ..Move::SKIP
        };
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
            Constraint::Tpgm(c) => {
                if self.projection == Projection::Apply {
                    step.norm = Some(c.norm);
                    scalars.radius = pull::round(self.dtype, scalars.radius.max(RADIUS_FLOOR));
                    step.pull = Pull::Learned {
                        radius: scalars.radius,
                    };
                    // In f32 clipping the radius to the largest norm changes no ratio by more than a rounding, so no row
                    // waits for the others. In f64 it does: the 1e-8 of the ratio is not rounded away.
                    let exact = self.dtype == DType::F64;
                    step.deferred = cut || exact || scalars.initialized == 0.0;
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
                step.pull = Pull::Learned {
                    radius: scalars.radius,
                };
                step.keep_after = c.memory == FtpMemory::Exact;
                step.row_scale = Some(c.memory);
                step.deferred = cut;
            }
            Constraint::Spd(c) => {
                scalars.alignment = -self.clip * sums.dot;
                if scalars.alignment < 0.0 {
                    step.norm = Some(Norm::L2);
                    step.pull = Pull::Selective {
                        strength: c.strength,
                        before: sums.displacement.sqrt(),
                    };
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
                let coefficient = if sums.displacement < 1e-30 {
                    0.0
                } else {
                    dot / sums.displacement
                };
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
        Mix {
            clip: self.clip,
            decay: coupled,
            pull: 0.0,
            lr_decay: decoupled,
            lr_pull: 0.0,
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
                let (keep, take) = if t == 1.0 {
                    (0.0, 1.0)
                } else {
                    (rule.momentum, 1.0 - rule.dampening)
                };
                let (lr_grad, lr_buf) = match (momentum, rule.nesterov) {
                    (false, _) => (self.lr, 0.0),
                    (true, false) => (0.0, self.lr),
                    (true, true) => (self.lr, self.lr * rule.momentum),
                };
                RuleStep::Sgd {
                    step: SgdStep {
                        keep,
                        take,
                        lr_grad,
                        lr_buf,
                    },
                    momentum,
                }
            }
        }
    }
}

/// The phase that writes, on one tensor.
struct Advance<'a> {
    simd: Simd,
    operands: &'a Operands,
    step: &'a Move,
    tensor: &'a TensorPlan,
    parts: Operand,
    norms: Operand,
}

impl Advance<'_> {
    /// Runs the rule on a piece, takes norms, and pulls back what need not wait.
    ///
    /// Bytes per f32 parameter: AdamW 16 read and 12 written, SGD with momentum 12 and 8; an anchor 4 more read;
    /// [`Slot::Displacement`] 4 more written. Pulling back reads and writes what is in cache.
    fn advance<C: Real>(&self, piece: &Piece) -> PieceNorms {
        let mut out = PieceNorms::EMPTY;
        let Self { step, tensor, .. } = *self;
        if step.skip {
            return out;
        }
        let mut stage = Stage::<C>::new();
        for unit in 0..piece.units {
            let range = unit_range(tensor, piece, unit);
            let mut sum = Lanes::ZERO;
            for range in blocks(range.clone()) {
                out.pulled += self.advance_block::<C>(range, &mut stage, &mut sum);
            }
            let Some(norm) = step.norm else { continue };
            // SAFETY: the slots of these parts, units and rows belong to this piece alone.
            let (part, norm_slot, row_scale) = unsafe {
                let part = piece.part + unit;
                let at = tensor.first_unit + piece.unit + unit;
                let row = piece.unit + unit;
                (
                    self.parts.typed_mut::<f64>(part..part + 1),
                    self.norms.typed_mut::<f64>(at..at + 1),
                    self.operands.state::<f64>(
                        Slot::RowScale,
                        if step.row_scale.is_some() && tensor.parts == 1 {
                            row..row + 1
                        } else {
                            0..0
                        },
                    ),
                )
            };
            let total = sum.total();
            if tensor.parts > 1 {
                part[0] = total;
                continue;
            }
            let norm = finish_norm(norm, total);
            norm_slot[0] = norm;
            if let ([scale], Some(memory)) = (row_scale, step.row_scale) {
                *scale = row_scale_of(memory, step.pull, norm);
            }
            let mut ratio = C::ONE;
            if !step.deferred {
                ratio = step.pull.ratio::<C>(norm);
                if ratio != C::ONE {
                    self.pull_range::<C>(range, ratio, &mut stage);
                }
            }
            out.add(norm, ratio.to_f64());
        }
        out
    }

    /// Returns how many elements the per-element rule has limited.
    #[inline(always)]
    fn advance_block<C: Real>(
        &self,
        range: std::ops::Range<usize>,
        stage: &mut Stage<C>,
        sum: &mut Lanes,
    ) -> usize {
        let Self {
            simd, operands, step, ..
        } = *self;
        let Stage {
            weights,
            grads,
            anchors,
            current,
            before,
        } = stage;
        let mix = Mix {
            clip: C::from_f64(step.mix.clip),
            decay: C::from_f64(step.mix.decay),
            pull: C::from_f64(step.mix.pull),
            lr_decay: C::from_f64(step.mix.lr_decay),
            lr_pull: C::from_f64(step.mix.lr_pull),
        };
        let mixes_anchor = step.mix.pull != 0.0 || step.mix.lr_pull != 0.0;
        let anchored = mixes_anchor || step.keep_before || step.norm.is_some() || step.scale_radius.is_some();
        let mut limited = 0;
        // SAFETY: every element belongs to one piece, and this phase runs each piece once. Gradient, anchor and variances
        // are never written.
        unsafe {
            let a = if anchored {
                load(operands.anchor, range.clone(), anchors)
            } else {
                &[]
            };
            let displacement = operands.state::<C>(Slot::Displacement, range.clone());
            operands.with_weight::<C>(range.clone(), weights, |w| {
                if step.keep_before {
                    kernels::displace(simd, displacement, w, a);
                }
                match &step.rule {
                    RuleStep::Hold => {}
                    RuleStep::AdamW { step: k, amsgrad } => {
                        let g = load(operands.grad, range.clone(), grads);
                        let m = operands.state::<C>(Slot::ExpAvg, range.clone());
                        let v = operands.state::<C>(Slot::ExpAvgSq, range.clone());
                        let v_max = operands.state::<C>(Slot::MaxExpAvgSq, range.clone());
                        let k = adamw_constants(k);
                        match (mixes_anchor, amsgrad) {
                            (false, false) => {
                                kernels::adamw::<C, false, false>(simd, &mix, &k, w, g, a, m, v, v_max)
                            }
                            (false, true) => {
                                kernels::adamw::<C, false, true>(simd, &mix, &k, w, g, a, m, v, v_max)
                            }
                            (true, false) => {
                                kernels::adamw::<C, true, false>(simd, &mix, &k, w, g, a, m, v, v_max)
                            }
                            (true, true) => {
                                kernels::adamw::<C, true, true>(simd, &mix, &k, w, g, a, m, v, v_max)
                            }
                        }
                    }
                    RuleStep::Sgd { step: k, momentum } => {
                        let g = load(operands.grad, range.clone(), grads);
                        let buf = operands.state::<C>(Slot::MomentumBuffer, range.clone());
                        let k = sgd_constants(k);
                        match (mixes_anchor, momentum) {
                            (false, false) => kernels::sgd::<C, false, false>(simd, &mix, &k, w, g, a, buf),
                            (false, true) => kernels::sgd::<C, false, true>(simd, &mix, &k, w, g, a, buf),
                            (true, false) => kernels::sgd::<C, true, false>(simd, &mix, &k, w, g, a, buf),
                            (true, true) => kernels::sgd::<C, true, true>(simd, &mix, &k, w, g, a, buf),
                        }
                    }
                }
                if let Some(radius) = step.scale_radius {
                    let (var, anchor_var) = match operands.variance {
                        Some((var, anchor)) => (
                            load(Some(var), range.clone(), current),
                            load(Some(anchor), range.clone(), before),
                        ),
                        None => (&[][..], &[][..]),
                    };
                    limited = kernels::limit_scale(simd, w, a, var, anchor_var, C::from_f64(radius));
                }
                if step.keep_after {
                    kernels::displace(simd, displacement, w, a);
                    kernels::add_abs(simd, displacement, sum);
                } else {
                    match step.norm {
                        Some(Norm::L2) => kernels::add_norm::<C, true>(simd, w, a, sum),
                        Some(Norm::Mars) => kernels::add_norm::<C, false>(simd, w, a, sum),
                        None => {}
                    }
                }
            });
        }
        limited
    }

    fn pull_range<C: Real>(&self, range: std::ops::Range<usize>, ratio: C, stage: &mut Stage<C>) {
        let Self {
            simd, operands, step, ..
        } = *self;
        // The master was filled when the rule ran.
        let operands = &Operands {
            fresh_master: false,
            ..*operands
        };
        for range in blocks(range) {
            // SAFETY: as in `advance_block`.
            unsafe {
                let a = load(operands.anchor, range.clone(), &mut stage.anchors);
                let displacement = operands.state::<C>(Slot::Displacement, range.clone());
                operands.with_weight::<C>(range, &mut stage.weights, |w| {
                    if step.keep_after {
                        kernels::place(simd, w, a, displacement, ratio);
                    } else {
                        kernels::pull(simd, w, a, ratio);
                    }
                });
            }
        }
    }

    /// The second pass of tensors that had to wait. Reads 8 and writes 4 bytes per f32 parameter where it pulls back.
    fn pull_deferred<C: Real>(&self, piece: &Piece) {
        if !self.step.deferred {
            return;
        }
        let mut stage = Stage::<C>::new();
        for unit in 0..piece.units {
            let at = self.tensor.first_unit + piece.unit + unit;
            // SAFETY: nobody writes norms in this phase.
            let norm = unsafe { self.norms.slice(at..at + 1) }.get(0);
            let ratio = self.step.pull.ratio::<C>(norm);
            if ratio != C::ONE {
                self.pull_range::<C>(unit_range(self.tensor, piece, unit), ratio, &mut stage);
            }
        }
    }
}

/// Room to convert blocks of other element types.
struct Stage<C> {
    weights: [C; BLOCK],
    grads: [C; BLOCK],
    anchors: [C; BLOCK],
    current: [C; BLOCK],
    before: [C; BLOCK],
}

impl<C: Real> Stage<C> {
    #[inline(always)]
    fn new() -> Self {
        let zero = [C::ZERO; BLOCK];
        Self {
            weights: zero,
            grads: zero,
            anchors: zero,
            current: zero,
            before: zero,
        }
    }
}

/// What follows from a tensor's norms when its rule has run: radii clipped, ratios known, telemetry written.
struct Settle<'a> {
    operands: &'a Operands,
    settings: &'a Settings,
    tensor: &'a TensorPlan,
    dtype: DType,
    parts: Operand,
    norms: Operand,
}

impl Settle<'_> {
    fn settle(&self, step: &mut Move, scalars: &mut TensorScalars, mut out: PieceNorms) {
        if step.skip {
            return;
        }
        if step.scale_radius.is_some() {
            scalars.fire_rate = out.pulled as f64 / self.tensor.numel as f64;
        }
        let Some(norm) = step.norm else { return };
        // SAFETY: between the parallel phases only this thread runs.
        let (norms, row_scale) = unsafe {
            let parts = self.parts.slice(0..self.parts.len());
            let norms = self.norms.typed_mut::<f64>(self.tensor.unit_range());
            if self.tensor.parts > 1 {
                out = PieceNorms::EMPTY;
                for (unit, slot) in norms.iter_mut().enumerate() {
                    let first = self.tensor.first_part + unit * self.tensor.parts;
                    *slot = finish_norm(
                        norm,
                        (first..first + self.tensor.parts)
                            .map(|part| parts.get(part))
                            .sum(),
                    );
                    out.norms.add(*slot);
                }
            }
            let rows = if step.row_scale.is_some() && self.tensor.parts > 1 {
                self.tensor.units
            } else {
                0
            };
            (norms, self.operands.state::<f64>(Slot::RowScale, 0..rows))
        };
        match &self.settings.constraint {
            Constraint::Tpgm(_) => {
                pull::clip_tpgm(scalars, self.dtype, out.norms);
                step.pull = Pull::Learned {
                    radius: scalars.radius,
                };
            }
            Constraint::Ftp(c) => {
                scalars.radius = scalars
                    .radius
                    .min((out.norms.max + RADIUS_FLOOR).max(ftp_floor(c)));
                scalars.radius = pull::round(self.dtype, scalars.radius);
                step.pull = Pull::Learned {
                    radius: scalars.radius,
                };
            }
            _ => {}
        }
        if let Some(memory) = step.row_scale {
            for (scale, norm) in row_scale.iter_mut().zip(norms.iter()) {
                *scale = row_scale_of(memory, step.pull, *norm);
            }
        }
        if step.deferred {
            for &norm in norms.iter() {
                let ratio = with_real!(self.dtype, C => step.pull.ratio::<C>(norm).to_f64());
                out.ratio = out.ratio.min(ratio);
                out.pulled += usize::from(ratio < 1.0);
            }
        }
        scalars.norm = out.norms.max;
        scalars.ratio = out.ratio;
        scalars.fire_rate = out.pulled as f64 / self.tensor.units as f64;
    }
}

/// The lowest radius of FTP.
fn ftp_floor(ftp: &Ftp) -> f64 {
    match ftp.memory {
        FtpMemory::Exact => RADIUS_FLOOR,
        FtpMemory::Low => ftp.adam.lr,
    }
}

fn row_scale_of(memory: FtpMemory, pull: Pull, norm: f64) -> f64 {
    let norm = norm + RADIUS_FLOOR;
    match (memory, pull) {
        (FtpMemory::Low, Pull::Learned { radius }) => 1.0 / norm.min(radius),
        _ => 1.0 / norm,
    }
}

pub(super) fn finish_norm(norm: Norm, sum: f64) -> f64 {
    match norm {
        Norm::L2 => sum.sqrt(),
        Norm::Mars => sum,
    }
}

fn adamw_constants<C: Real>(k: &AdamWStep<f64>) -> AdamWStep<C> {
    AdamWStep {
        beta1: C::from_f64(k.beta1),
        one_minus_beta1: C::from_f64(k.one_minus_beta1),
        beta2: C::from_f64(k.beta2),
        one_minus_beta2: C::from_f64(k.one_minus_beta2),
        step_size: C::from_f64(k.step_size),
        root_scale: C::from_f64(k.root_scale),
        eps: C::from_f64(k.eps),
    }
}

fn sgd_constants<C: Real>(k: &SgdStep<f64>) -> SgdStep<C> {
    SgdStep {
        keep: C::from_f64(k.keep),
        take: C::from_f64(k.take),
        lr_grad: C::from_f64(k.lr_grad),
        lr_buf: C::from_f64(k.lr_buf),
    }
}
