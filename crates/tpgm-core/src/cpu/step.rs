//! One step: look at all gradients, then decide and move tensor by tensor.
//!
//! 1. **measure** reads every gradient (and what a constraint needs beside it) and writes only partial sums. A
//!    gradient that is not finite ends the step here, with nothing changed. Where gradients are trusted, it is the first thing
//!    that happens to each tensor instead, and what follows finds them in a cache.
//! 2. **decide** turns the sums of a tensor into a few numbers.
//! 3. **move**: the rule updates moments and weights; where a constraint needs the norm of what came out, a row is
//!    pulled back as soon as it is complete, while it is in cache. Units that are cut into several pieces, and
//!    radii that need all rows first, are pulled back in a pass of their own over the tensor.

use rayon::prelude::*;

use super::advance::{Advance, PieceNorms};
use super::decide::{Decide, Move};
use super::measure::{self, PieceSums, Sums};
use super::operand::{Operand, Operands};
use super::pull::is_tpgm;
use super::settle::Settle;
use super::tensors::{self, Own};
use super::{Cpu, Workspace};
use crate::backend::{Job, StepReport};
use crate::blocks::with_real;
use crate::error::{Error, Result};
use crate::params::{ParamSet, Settings};
use crate::plan::Plan;
use crate::rule::Rule;
use crate::scalars::TensorScalars;
use crate::step::{Gradients, StepOptions, StepSums};

/// `known` has sums of tensors that this set holds some rows of: those of all rows.
pub(crate) fn step(
    cpu: &Cpu,
    job: Job<'_, '_, Cpu>,
    rule: &Rule,
    options: &StepOptions,
    known: &[Option<StepSums>],
) -> Result<StepReport> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);

    let clipping = options.max_grad_norm.is_some();
    let trusted = options.gradients == Gradients::Trust && !clipping;
    let (mut grad_norm, mut clip) = (None, options.grad_scale);
    if !trusted {
        workspace.look(cpu, set, plan, settings, scalars, clipping)?;
        if let Some(max) = options.max_grad_norm {
            let norm = workspace.squares(plan).sum::<f64>().sqrt() * options.grad_scale;
            grad_norm = Some(norm);
            clip *= (max / (norm + 1e-6)).min(1.0);
        }
    }

    // Nothing fails from here on.
    let set_numel = set.numel();
    let base_lr = options.lr.unwrap_or(rule.lr());
    workspace.move_all(cpu, set, plan, settings, scalars, |t, operands, scalars, sums| {
        let (settings, tensor) = (&settings[t], &plan.tensors[t]);
        let has_grad = operands.grad.is_some();
        if tensor.units == 0 || !(has_grad || is_tpgm(&settings.constraint)) {
            return Move::SKIP;
        }
        let wanted = measure::sums_wanted(settings, scalars);
        let known = known.get(t).copied().flatten();
        if trusted && (known.is_some() || !has_grad || wanted == Sums::Check) {
            // Not those of an earlier step.
            sums.fill(PieceSums::NONE);
        } else if trusted {
            sums.par_iter_mut().zip(&plan.pieces[tensor.pieces.clone()]).for_each(|(out, piece)| {
                *out = measure::piece(cpu.simd, operands, plan, piece, wanted, false);
            });
        }
        let (dtype, lr) = (set.tensors()[t].dtype, base_lr * settings.lr_scale);
        let context = Decide { settings, tensor, set_numel, dtype, lr, clip, projection: options.projection };
        let total = known.map_or_else(|| PieceSums::total(sums), PieceSums::of);
        context.decide(scalars, &total, has_grad.then_some(rule))
    });
    Ok(StepReport { grad_norm })
}

/// The sum of the squares of every gradient, as a step with clipping adds them up. Changes nothing.
pub(crate) fn grad_squares(cpu: &Cpu, job: Job<'_, '_, Cpu>) -> Result<Vec<f64>> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);
    workspace.look(cpu, set, plan, settings, scalars, true)?;
    Ok(workspace.squares(plan).collect())
}

/// What a step adds up, piece by piece. Changes nothing.
pub(crate) fn sums(cpu: &Cpu, job: Job<'_, '_, Cpu>) -> Result<Vec<Vec<StepSums>>> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);
    workspace.look(cpu, set, plan, settings, scalars, true)?;
    let of = |pieces: &[PieceSums]| pieces.iter().map(PieceSums::sums).collect();
    Ok(plan.tensors.iter().map(|tensor| of(&workspace.sums[tensor.pieces.clone()])).collect())
}

impl Workspace {
    /// The phase that only reads, over operands that are bound: sums of all pieces, and whether they are finite.
    fn look(
        &mut self,
        cpu: &Cpu,
        set: &ParamSet,
        plan: &Plan,
        settings: &[Settings],
        scalars: &[TensorScalars],
        clipping: bool,
    ) -> Result<()> {
        let Self { operands, sums, .. } = self;
        cpu.run(|| {
            sums.par_iter_mut().zip(&plan.pieces).for_each(|(out, piece)| {
                let t = piece.tensor;
                *out = if operands[t].grad.is_some() {
                    let wanted = measure::sums_wanted(&settings[t], &scalars[t]);
                    measure::piece(cpu.simd, &operands[t], plan, piece, wanted, clipping)
                } else {
                    PieceSums::NONE
                };
            });
        });
        measure::check_finite(set.tensors(), plan, sums)?;
        for (tensor, spec) in plan.tensors.iter().zip(set.tensors()) {
            let total = PieceSums::total(&sums[tensor.pieces.clone()]);
            if !total.sums().products_are_finite() {
                let tensor = spec.name.clone();
                return Err(Error::NonFiniteValue { tensor, what: "product of gradient and displacement" });
            }
        }
        Ok(())
    }

    /// Of the gradients that were looked at, one per tensor.
    fn squares(&self, plan: &Plan) -> impl Iterator<Item = f64> {
        plan.tensors.iter().map(|tensor| PieceSums::total(&self.sums[tensor.pieces.clone()]).square)
    }

    /// The phase that writes, over operands that are bound: asks `decide` how each tensor moves, which may use the sums of its
    /// pieces, and moves it.
    pub(super) fn move_all(
        &mut self,
        cpu: &Cpu,
        set: &ParamSet,
        plan: &Plan,
        settings: &[Settings],
        scalars: &mut [TensorScalars],
        decide: impl Fn(usize, &Operands, &mut TensorScalars, &mut [PieceSums]) -> Move + Sync,
    ) {
        let Self { operands, sums, piece_norms, parts, norms } = self;
        let parts = Operand::write(parts.as_mut_slice().into());
        let norms = Operand::write(norms.as_mut_slice().into());
        let operands = &operands[..];
        let own = Own { scalars, sums, norms: piece_norms };
        cpu.run(|| {
            tensors::each(plan, 0..set.len(), own, &|t, own| {
                let (operands, tensor) = (&operands[t], &plan.tensors[t]);
                let scalars = &mut own.scalars[0];
                let mut step = decide(t, operands, scalars, own.sums);
                if step.skip {
                    return;
                }
                let pieces = &plan.pieces[tensor.pieces.clone()];
                let advance = Advance { simd: cpu.simd, operands, step: &step, tensor, parts, norms };
                own.norms.par_iter_mut().zip(pieces).for_each(|(out, piece)| {
                    *out = with_real!(operands.weight.dtype(), C => advance.advance::<C>(piece));
                });
                let mut out = PieceNorms::EMPTY;
                own.norms.iter().for_each(|piece| out.join(piece));
                let dtype = set.tensors()[t].dtype;
                let context = Settle { operands, settings: &settings[t], tensor, dtype, parts, norms };
                context.settle(&mut step, scalars, out);
                if step.deferred {
                    let advance = Advance { simd: cpu.simd, operands, step: &step, tensor, parts, norms };
                    // Backwards: what was written last is in the nearest cache.
                    pieces.par_iter().rev().for_each(|piece| {
                        with_real!(operands.weight.dtype(), C => advance.pull_deferred::<C>(piece));
                    });
                }
            });
        });
    }
}

#[cfg(test)]
mod tests;
