//! Arithmetic between the tensors of ranks, on the CPU.

use candle_core::Tensor;

use super::error::Result;
use crate::memory::{Add, candle_dtype, copy_elements, core_dtype, cpu_elements, overwrite_cpu};

/// Writes the mean of tensors into `targets`, which are some of them. They have one shape and type, are contiguous and share
/// no memory.
pub(super) fn write_mean(ranks: &[&Tensor], targets: &[&Tensor]) -> Result<()> {
    copy_to(&mean(ranks)?, targets)
}

/// The mean of tensors of one shape and type, contiguous and on the host, summed in order of rank: in f32, or f64 of f64.
pub(super) fn mean(ranks: &[&Tensor]) -> Result<Tensor> {
    let first = ranks[0];
    let compute = candle_dtype(core_dtype("gradient", first.dtype())?.compute());
    let sum = Tensor::zeros(first.shape(), compute, first.device())?;
    for (rank, tensor) in ranks.iter().enumerate() {
        sum.inplace_op2(tensor, if rank == 0 { &Add::First } else { &Add::More })?;
    }
    Ok(sum.affine(1.0 / ranks.len() as f64, 0.0)?)
}

/// Copies `source` to tensors of its shape, rounding to their type.
pub(super) fn copy_to(source: &Tensor, targets: &[&Tensor]) -> Result<()> {
    let (storage, layout) = source.storage_and_layout();
    let source = cpu_elements(&storage, layout).expect("ranks work on contiguous tensors of the host");
    for target in targets {
        overwrite_cpu(target, |target| {
            copy_elements(source, target);
            Ok(())
        })?;
    }
    Ok(())
}
