//! Softmax and its logarithm over the last dimension.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, last_dim, same_kind};
use super::composed;
use super::float::{Float, largest, sum, sum2, vectorized};
use super::fused::{Arg, Fused, apply1};
use super::gpu::on_gpu;
use super::storage::{
    Operand, by_dtype, fill, into_storage, into_tensor, load, rows_per_piece, scratch, store,
};

/// `e^x / sum(e^x)` over the last dimension of `x`, of any shape (..., n).
///
/// Use it in place of `candle_nn::ops::softmax_last_dim`, which has no gradient. Half-precision inputs are computed in f32
/// and rounded once. A row of minus infinities, as a mask that forbids everything makes it, gives NaN.
///
/// # Errors
///
/// If `x` is a scalar or not of a floating point type.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    apply(Softmax::Probability, x)
}

/// `x - ln(sum(e^x))` over the last dimension of `x`, of any shape (..., n).
///
/// For a loss over class labels, [`cross_entropy`](super::cross_entropy) does the same with less memory.
///
/// # Errors
///
/// If `x` is a scalar or not of a floating point type.
pub fn log_softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    apply(Softmax::Logarithm, x)
}

fn apply(op: Softmax, x: &Tensor) -> Result<Tensor> {
    last_dim(op.name(), x)?;
    same_kind(op.name(), &[x])?;
    match (Path::with_kernels(x), op) {
        (Path::Fused, op) => apply1(op, x),
        (Path::Composed, Softmax::Probability) => composed::softmax_last_dim(x),
        (Path::Composed, Softmax::Logarithm) => composed::log_softmax_last_dim(x),
    }
}

/// The operation. Backward needs the result only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Softmax {
    Probability,
    Logarithm,
}

impl Softmax {
    fn values<T: Element, C: Float>(self, x: Slice<'_>, width: usize) -> Buffer {
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(width) * width, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(width), scratch::<T, C>(width));
            for (row, y) in piece.chunks_mut(width).enumerate() {
                let start = range.start + row * width;
                let x = load(x.sub(start..start + width), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| match self {
                    Softmax::Probability => softmax(x, y),
                    Softmax::Logarithm => log_softmax(x, y),
                });
            }
        });
        T::buffer(y)
    }

    fn gradient<T: Element, C: Float>(self, y: Slice<'_>, grad: Slice<'_>, width: usize) -> Buffer {
        let (dx, _) = fill::<T, ()>(y.len(), rows_per_piece(width) * width, |range, piece| {
            let [mut y_scratch, mut grad_scratch, mut dx_scratch] = [(); 3].map(|()| scratch::<T, C>(width));
            for (row, dx) in piece.chunks_mut(width).enumerate() {
                let start = range.start + row * width;
                let y = load(y.sub(start..start + width), &mut y_scratch);
                let grad = load(grad.sub(start..start + width), &mut grad_scratch);
                store(dx, &mut dx_scratch, |dx: &mut [C]| match self {
                    Softmax::Probability => softmax_gradient(y, grad, dx),
                    Softmax::Logarithm => log_softmax_gradient(y, grad, dx),
                });
            }
        });
        T::buffer(dx)
    }
}

impl Fused<1> for Softmax {
    on_gpu!(1, softmax);

    fn name(&self) -> &'static str {
        match self {
            Softmax::Probability => "softmax-last-dim",
            Softmax::Logarithm => "log-softmax-last-dim",
        }
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let data = x.slice()?;
        let width = x.dims().last().copied().unwrap_or(1);
        let y = by_dtype!(data.dtype(), T, C => self.values::<T, C>(data, width));
        Ok((into_storage(y), x.shape().clone()))
    }

    fn backward(&self, _x: [&Tensor; 1], y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let width = last_dim(self.name(), y)?;
        let (y_data, grad_data) = (Operand::new(self.name(), y), Operand::new(self.name(), grad));
        let (y_slice, grad_slice) = (y_data.slice()?, grad_data.slice()?);
        let dx = by_dtype!(y_slice.dtype(), T, C => self.gradient::<T, C>(y_slice, grad_slice, width));
        Ok([Some(into_tensor(dx, y.shape())?)])
    }
}

vectorized! {
    pub(super) fn softmax<C>(x: &[C], y: &mut [C]) {
        let max = largest(x);
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - max).exp();
        }
        let scale = C::ONE / sum(y, |y| y);
        for y in y {
            *y = *y * scale;
        }
    }
}

vectorized! {
    fn log_softmax<C>(x: &[C], y: &mut [C]) {
        let max = largest(x);
        let log_sum = sum(x, |x| (x - max).exp()).ln();
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x - max - log_sum;
        }
    }
}

vectorized! {
    /// `y * (grad - sum(y * grad))`
    pub(super) fn softmax_gradient<C>(y: &[C], grad: &[C], dx: &mut [C]) {
        let mean = sum2(y, grad, |y, grad| y * grad);
        for ((dx, &y), &grad) in dx.iter_mut().zip(y).zip(grad) {
            *dx = y * (grad - mean);
        }
    }
}

vectorized! {
    /// `grad - e^y * sum(grad)`
    fn log_softmax_gradient<C>(y: &[C], grad: &[C], dx: &mut [C]) {
        let total = sum(grad, |grad| grad);
        for ((dx, &y), &grad) in dx.iter_mut().zip(y).zip(grad) {
            *dx = grad - y.exp() * total;
        }
    }
}
