//! What every layer asks of its arguments, and who computes it.

use candle_core::{Result, Shape, Tensor};

use super::gpu;
use crate::error::Error;

/// Who computes a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// The fused operation of this module, on the CPU or by kernels.
    Fused,
    /// The composition of candle's own operations in [`super::composed`].
    Composed,
}

impl Path {
    /// Of a layer without kernels: fused on the CPU, composed on every other device.
    pub(super) fn of(x: &Tensor) -> Self {
        if x.device().is_cpu() { Path::Fused } else { Path::Composed }
    }

    /// Of a layer with kernels: also fused on a GPU, unless [`gpu`] says that there is no kernel for such tensors.
    pub(super) fn with_kernels(x: &Tensor) -> Self {
        match gpu::takes(x) {
            Some(true) => Path::Fused,
            Some(false) => Path::Composed,
            None => Self::of(x),
        }
    }
}

/// The arguments of an operation must have one floating point type and lie on one device.
pub(super) fn same_kind(op: &'static str, args: &[&Tensor]) -> Result<()> {
    let first = args[0];
    if !first.dtype().is_float() || args.iter().any(|arg| arg.dtype() != first.dtype()) {
        return Err(Error::LayerDType { op, dtypes: args.iter().map(|arg| arg.dtype()).collect() }.into());
    }
    if args.iter().any(|arg| !arg.device().same_device(first.device())) {
        return Err(Error::LayerDevice { op }.into());
    }
    Ok(())
}

/// An error that lists the shapes of the arguments.
pub(crate) fn shape_error(op: &'static str, expected: &'static str, args: &[&Tensor]) -> candle_core::Error {
    let shapes: Vec<Shape> = args.iter().map(|arg| arg.shape().clone()).collect();
    Error::LayerShape { op, expected, shapes }.into()
}

/// The size of the last dimension.
pub(super) fn last_dim(op: &'static str, x: &Tensor) -> Result<usize> {
    x.dims()
        .last()
        .copied()
        .ok_or_else(|| shape_error(op, "the input must have at least one dimension", &[x]))
}
