//! Sums of gradients in the memory of a tensor.

use candle_core::{CpuStorage, InplaceOp2, Layout};
use rayon::prelude::*;
use tpgm_core::{Real, Slice};

use super::cpu_slice;

/// Elements that one task adds up: with its operands it fits a core's cache.
pub(crate) const BLOCK: usize = 1 << 14;

/// `sum = grad` or `sum = sum + grad`.
pub(crate) enum Add {
    /// The sum begins.
    First,
    /// The sum goes on.
    More,
}

impl Add {
    fn run<C: Real>(&self, sum: &mut [C], grad: Slice<'_>) {
        sum.par_chunks_mut(BLOCK).enumerate().for_each(|(i, sum)| {
            let grad = grad.sub(i * BLOCK..i * BLOCK + sum.len());
            match self {
                Add::First => C::load(grad, sum),
                Add::More => match C::direct(grad) {
                    Some(grad) => add(sum, grad),
                    None => {
                        let mut wide = [C::ZERO; 1 << 10];
                        for (j, sum) in sum.chunks_mut(wide.len()).enumerate() {
                            let start = j * wide.len();
                            let wide = &mut wide[..sum.len()];
                            C::load(grad.sub(start..start + sum.len()), wide);
                            add(sum, wide);
                        }
                    }
                },
            }
        });
    }
}

fn add<C: Real>(sum: &mut [C], grad: &[C]) {
    sum.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += *grad);
}

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "gradient accumulation"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let strided = candle_core::Error::RequiresContiguous { op: "gradient accumulation" };
        let offsets = (layout.contiguous_offsets(), grad_layout.contiguous_offsets());
        let (Some((start, end)), Some((grad_start, grad_end))) = offsets else { return Err(strided) };
        let Some(grad) = cpu_slice(grad) else { candle_core::bail!("gradients must be floating point") };
        let grad = grad.sub(grad_start..grad_end);
        match sum {
            CpuStorage::F64(sum) => self.run(&mut sum[start..end], grad),
            CpuStorage::F32(sum) => self.run(&mut sum[start..end], grad),
            _ => candle_core::bail!("gradients are summed in f32 or f64"),
        }
        Ok(())
    }
}
