//! Which tensors the kernels take.

use candle_core::{DType, Result, Tensor};

use super::rows::{MOST_COLUMNS, RowShape};

/// Whether kernels compute on rows of this tensor: nothing where they cannot reach it at all.
pub(in crate::layers) fn takes(x: &Tensor) -> Option<bool> {
    reaches(x).then(|| fits(x) && answers(x))
}

/// True for tensors on a device with kernels.
fn reaches(_x: &Tensor) -> bool {
    #[cfg(test)]
    if _x.device().is_cpu() && super::host::running().is_some() {
        return true;
    }
    cfg!(feature = "cuda") && _x.device().is_cuda()
}

/// True for what the kernels know: see the head of the folder.
fn fits(x: &Tensor) -> bool {
    let known = matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16);
    known && x.elem_count() > 0 && x.dims().last().is_none_or(|&width| width <= MOST_COLUMNS)
}

/// True if the device runs the kernels.
fn answers(_x: &Tensor) -> bool {
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = _x.device() {
        return super::cuda::Stream::of(device).is_ok();
    }
    true
}

/// A tensor as an operation takes it: contiguous, or as it is if the operation has kernels that read its rows with their gaps.
pub(in crate::layers) fn laid_out(kernels: bool, x: &Tensor) -> Result<Tensor> {
    if kernels && reaches(x) && RowShape::of(x.layout()).is_some() {
        return Ok(x.clone());
    }
    x.contiguous()
}
