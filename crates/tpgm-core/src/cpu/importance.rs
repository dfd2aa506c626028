//! What the elements of a pull are weighted by, taken from gradients.

use rayon::prelude::*;

use super::measure::{self, PieceSums, Sums};
use super::operand::{Stage, load};
use super::{Cpu, Workspace, kernels};
use crate::backend::{Job, Slot};
use crate::blocks::with_real;
use crate::constraint::PullWeights;
use crate::element::Real;
use crate::error::{Error, Result};
use crate::plan::blocks;

/// Bytes per f32 parameter: 4 read for the mean square; then 8 read and 4 written.
pub(super) fn update(cpu: &Cpu, job: Job<'_, '_, Cpu>) -> Result<()> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);
    let Workspace { operands, sums, .. } = workspace;
    let operands = &operands[..];
    let kept = |t: usize| settings[t].constraint.importance().filter(|_| operands[t].grad.is_some());
    sums.par_iter_mut().zip(&plan.pieces).for_each(|(out, piece)| {
        *out = match kept(piece.tensor) {
            Some(_) => measure::piece(cpu.simd, &operands[piece.tensor], plan, piece, Sums::Check, true),
            None => PieceSums::NONE,
        };
    });
    measure::check_finite(set.tensors(), plan, sums)?;
    let squares: Vec<f64> =
        plan.tensors.iter().map(|tensor| PieceSums::total(&sums[tensor.pieces.clone()]).square).collect();
    // Finite f64 gradients can still have squares that are not.
    if let Some(t) = squares.iter().position(|square| !square.is_finite()) {
        let tensor = set.tensors()[t].name.clone();
        return Err(Error::NonFiniteValue { tensor, what: "mean square of the gradient" });
    }

    // Nothing fails from here on.
    let first = |t: usize| scalars[t].initialized == 0.0;
    plan.pieces.par_iter().for_each(|piece| {
        let t = piece.tensor;
        let Some(weights) = kept(t) else { return };
        let scale = match squares[t] {
            // A gradient that is all zero says that nothing is important.
            0.0 => 0.0,
            square => plan.tensors[t].numel as f64 / square,
        };
        with_real!(operands[t].weight.dtype(), C => {
            let mut grads = Stage::<C>::EMPTY;
            for range in blocks(piece.start..piece.end) {
                // SAFETY: every element belongs to one piece; gradients are never written.
                let (f, g) = unsafe {
                    let f = operands[t].state::<C>(Slot::Importance, range.clone());
                    (f, load(operands[t].grad, range, &mut grads))
                };
                weigh(cpu, weights, f, g, scale, first(t));
            }
        });
    });
    for (t, scalars) in scalars.iter_mut().enumerate() {
        if kept(t).is_some() {
            scalars.initialized = 1.0;
        }
    }
    Ok(())
}

fn weigh<C: Real>(cpu: &Cpu, weights: PullWeights, f: &mut [C], g: &[C], scale: f64, first: bool) {
    match weights {
        PullWeights::One => {}
        PullWeights::Fisher => kernels::average_fisher(cpu.simd, f, g, scale, 0.0, 1.0),
        PullWeights::Running { .. } if first => kernels::average_fisher(cpu.simd, f, g, scale, 0.0, 1.0),
        PullWeights::Running { decay } => {
            kernels::average_fisher(cpu.simd, f, g, scale, decay, 1.0 - decay);
        }
        PullWeights::Gate { threshold } => kernels::open_gates(cpu.simd, f, g, scale, threshold),
    }
}
