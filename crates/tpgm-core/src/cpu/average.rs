//! Exponential moving average.

use rayon::prelude::*;

use super::Cpu;
use super::kernels;
use super::operand::{Operand, Stage, load};
use crate::blocks::with_real;
use crate::element::{Buffer, Element, Slice};
use crate::error::Result;
use crate::plan::{Plan, blocks};

/// Reads 8 and writes 4 bytes per f32 parameter.
pub(super) fn average(
    cpu: &Cpu,
    plan: &Plan,
    averages: &mut [Buffer],
    weights: &[Slice<'_>],
    decay: f64,
) -> Result<()> {
    let averages: Vec<Operand> =
        averages.iter_mut().map(|average| Operand::write(average.as_mut())).collect();
    let weights: Vec<Operand> = weights.iter().map(|weight| Operand::read(*weight)).collect();
    cpu.run(|| {
        plan.pieces.par_iter().for_each(|piece| {
            let (average, weight) = (averages[piece.tensor], weights[piece.tensor]);
            with_real!(average.dtype(), C => {
                let mut stage = Stage::EMPTY;
                let (keep, take) = (C::from_f64(decay), C::from_f64(1.0 - decay));
                for range in blocks(piece.start..piece.end) {
                    // SAFETY: every element belongs to one piece; averages are of compute type (checked by `Ema`).
                    unsafe {
                        let w = load::<C>(Some(weight), range.clone(), &mut stage);
                        kernels::average(cpu.simd, average.typed_mut::<C>(range), w, keep, take);
                    }
                }
            });
        });
    });
    Ok(())
}
