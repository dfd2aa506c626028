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

use super::advance::{Advance, PieceNorms};
use super::decide::{Decide, Move};
use super::measure::{self, PieceSums};
use super::operand::Operand;
use super::pull::is_tpgm;
use super::settle::Settle;
use super::{Cpu, Workspace};
use crate::backend::{Job, StepReport};
use crate::blocks::with_real;
use crate::error::{Error, Result};
use crate::optimizer::{Gradients, StepOptions};
use crate::params::{Settings, TensorSpec};
use crate::plan::{Plan, TensorPlan};
use crate::rule::Rule;
use crate::scalars::TensorScalars;

/// Elements of the tensors that are moved before their second pass, if they need one: their weights and anchors (together
/// 8 bytes an element in f32) should still be in the last-level cache.
const WAVE: usize = 1 << 18;

pub(super) fn step(
    cpu: &Cpu,
    job: Job<'_, '_, Cpu>,
    rule: &Rule,
    options: &StepOptions,
) -> Result<StepReport> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);
    let Workspace { operands, moves, sums, .. } = workspace;

    let clipping = options.max_grad_norm.is_some();
    let trusted = options.gradients == Gradients::Trust && !clipping;
    cpu.run(|| {
        sums.par_iter_mut().zip(&plan.pieces).for_each(|(out, piece)| {
            let (operands, settings) = (&operands[piece.tensor], &settings[piece.tensor]);
            let wanted = measure::sums_wanted(settings, &scalars[piece.tensor]);
            let tensor = &plan.tensors[piece.tensor];
            *out = if operands.grad.is_some() && !(trusted && wanted == measure::Sums::Check) {
                with_real!(operands.weight.dtype(), C => measure::measure::<C>(cpu.simd, operands, tensor, piece, wanted, clipping))
            } else {
                PieceSums::NONE
            };
        });
    });

    measure::check_finite(set.tensors(), plan, sums)?;
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
            return Err(Error::NonFiniteValue { tensor, what: "product of gradient and displacement" });
        }
    }

    // Nothing fails from here on.
    let base_lr = options.lr.unwrap_or(rule.lr());
    moves.clear();
    for (t, spec) in set.tensors().iter().enumerate() {
        let (settings, tensor) = (&settings[t], &plan.tensors[t]);
        let has_grad = operands[t].grad.is_some();
        moves.push(if tensor.units == 0 || !(has_grad || is_tpgm(&settings.constraint)) {
            Move::SKIP
        } else {
            let lr = base_lr * settings.lr_scale;
            let context =
                Decide { settings, tensor, dtype: spec.dtype, lr, clip, projection: options.projection };
            context.decide(&mut scalars[t], &total(t), has_grad.then_some(rule))
        });
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
    let Workspace { operands, moves, piece_norms, parts, norms, wave_ends, .. } = workspace;
    let parts = Operand::write(parts.as_mut_slice().into());
    let norms = Operand::write(norms.as_mut_slice().into());
    cut_waves(&plan.tensors, moves, wave_ends);
    let mut start = 0;
    for &end in wave_ends.iter() {
        let wave = std::mem::replace(&mut start, end)..end;
        let pieces = plan.tensors[wave.start].pieces.start..plan.tensors[wave.end - 1].pieces.end;
        cpu.run(|| {
            let work = piece_norms[pieces.clone()].par_iter_mut().zip(&plan.pieces[pieces.clone()]);
            work.for_each(|(out, piece)| {
                let (operands, tensor) = (&operands[piece.tensor], &plan.tensors[piece.tensor]);
                let context =
                    Advance { simd: cpu.simd, operands, step: &moves[piece.tensor], tensor, parts, norms };
                *out = with_real!(operands.weight.dtype(), C => context.advance::<C>(piece));
            });
        });
        for t in wave.clone() {
            let mut out = PieceNorms::EMPTY;
            piece_norms[plan.tensors[t].pieces.clone()].iter().for_each(|piece| out.join(piece));
            let (operands, settings, tensor) = (&operands[t], &settings[t], &plan.tensors[t]);
            let context = Settle { operands, settings, tensor, dtype: specs[t].dtype, parts, norms };
            context.settle(&mut moves[t], &mut scalars[t], out);
        }
        if moves[wave].iter().any(|step| step.deferred) {
            cpu.run(|| {
                plan.pieces[pieces].par_iter().rev().for_each(|piece| {
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
