//! Moving averages and interpolation.

use rayon::prelude::*;

use super::Cpu;
use super::kernels;
use super::operand::{Operand, Stage, load};
use crate::backend::Blend;
use crate::blocks::with_real;
use crate::element::{Element, Slice, SliceMut};
use crate::plan::{Plan, blocks};

/// Reads 8 and writes 4 bytes per f32 parameter.
pub(super) fn blend(
    cpu: &Cpu,
    plan: &Plan,
    targets: &mut [SliceMut<'_>],
    sources: &[Slice<'_>],
    shares: Blend,
) {
    let targets: Vec<Operand> = targets.iter_mut().map(|target| Operand::write(target.reborrow())).collect();
    let sources: Vec<Operand> = sources.iter().map(|source| Operand::read(*source)).collect();
    cpu.run(|| {
        plan.pieces.par_iter().for_each(|piece| {
            let (target, source) = (targets[piece.tensor], sources[piece.tensor]);
            with_real!(target.dtype(), C => {
                let (mut sources, mut targets) = (Stage::EMPTY, Stage::<C>::EMPTY);
                let (keep, take) = (C::from_f64(shares.keep), C::from_f64(shares.take));
                for range in blocks(piece.start..piece.end) {
                    // SAFETY: every element belongs to one piece; sources are never written.
                    unsafe {
                        let from = load::<C>(Some(source), range.clone(), &mut sources);
                        target.update(range, &mut targets, |to| match shares.keep {
                            // What is not kept may be anything, also NaN.
                            0.0 => to.iter_mut().zip(from).for_each(|(to, &from)| *to = take * from),
                            _ => kernels::blend(cpu.simd, to, from, keep, take),
                        });
                    }
                }
            });
        });
    });
}
