//! Softmax and its logarithm over the last dimension.

use candle_core::{CpuStorage, Layout, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, last_dim, same_kind, shape_error};
use super::composed;
use super::float::{Float, largest, sum, sum2, vectorized};
use super::fused::{Arg, Fused, apply1};
use super::gpu::on_gpu;
use super::storage::{
    Operand, by_dtype, data, fill, into_storage, into_tensor, load, rows_per_piece, scratch, store,
};
use crate::error::Error;

/// `e^x / sum(e^x)` over the last dimension of `x`, of any shape (..., n).
///
/// Use it in place of `candle_nn::ops::softmax_last_dim`, which has no gradient. Half-precision inputs are computed in f32
/// and rounded once. A row of minus infinities, as a mask that forbids everything makes it, gives NaN.
///
/// # Errors
///
/// If `x` is a scalar or not of a floating point type.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    apply(Softmax::Probability(Scores::default()), x)
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

/// The weights of an attention: softmax over the keys of `scale * scores + mask`, for scores of shape (batch, heads, queries,
/// keys). Scores are read once and written once; scaling and adding before would go through them two times more.
///
/// `scale` is usually one over the root of a head's width. `mask` broadcasts to the scores and has their element type: a number
/// for each key, minus infinity (or one that is very low) for what is not seen. Under `causal`, query `i` sees the keys up to
/// `i + keys - queries` alone, so the last query sees all. A row that sees nothing is NaN.
///
/// A mask that wants a gradient gets one: the weights are composed of candle's operations then.
///
/// # Errors
///
/// If the scores have other than four dimensions, the mask does not fit them, types or devices differ, or the scale is not
/// finite.
pub fn masked_softmax(scores: &Tensor, scale: f64, mask: Option<&Tensor>, causal: bool) -> Result<Tensor> {
    const NAME: &str = "masked-softmax";
    let args: Vec<_> = [Some(scores), mask].into_iter().flatten().collect();
    same_kind(NAME, &args)?;
    if scores.rank() != 4 {
        return Err(shape_error(NAME, "the scores must be (batch, heads, queries, keys)", &args));
    }
    if !scale.is_finite() {
        return Err(
            Error::LayerOption { op: NAME, option: "the scale", value: scale, range: "finite" }.into()
        );
    }
    let broadcast = |mask: &Tensor| mask.contiguous()?.broadcast_as(scores.shape());
    let Ok(added) = mask.map(broadcast).transpose() else {
        return Err(shape_error(NAME, "the mask must broadcast to the scores", &args));
    };
    if Path::with_kernels(scores) == Path::Composed || mask.is_some_and(Tensor::track_op) {
        return composed::masked_softmax(scores, scale, mask, causal);
    }
    // Keys must lie one behind the other; the other dimensions may be the same number again and again.
    let added = added.map(|added| match added.stride()[3] {
        1 => Ok(added),
        _ => added.contiguous(),
    });
    apply1(Softmax::Probability(Scores { scale, mask: added.transpose()?, causal }), scores)
}

fn apply(op: Softmax, x: &Tensor) -> Result<Tensor> {
    last_dim(op.name(), x)?;
    same_kind(op.name(), &[x])?;
    match (Path::with_kernels(x), &op) {
        (Path::Fused, _) => apply1(op, x),
        (Path::Composed, Softmax::Probability(_)) => composed::softmax_last_dim(x),
        (Path::Composed, Softmax::Logarithm) => composed::log_softmax_last_dim(x),
    }
}

/// The operation. Backward needs the result only.
#[derive(Debug)]
pub(super) enum Softmax {
    Probability(Scores),
    Logarithm,
}

/// What is done to scores first.
#[derive(Debug)]
pub(super) struct Scores {
    pub(super) scale: f64,
    /// Of the shape of the scores; keys are neighbors.
    pub(super) mask: Option<Tensor>,
    pub(super) causal: bool,
}

impl Default for Scores {
    fn default() -> Self {
        Self { scale: 1.0, mask: None, causal: false }
    }
}

impl Scores {
    /// True if they stay as they are.
    fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.mask.is_none() && !self.causal
    }
}

impl Softmax {
    /// The factor of the scores.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn scale(&self) -> f64 {
        match self {
            Softmax::Probability(scores) => scores.scale,
            Softmax::Logarithm => 1.0,
        }
    }

    fn values<T: Element, C: Float>(&self, x: Slice<'_>, dims: &[usize]) -> Result<Buffer> {
        let width = dims.last().copied().unwrap_or(1);
        let scores = match self {
            Softmax::Probability(scores) if !scores.is_plain() => Some(scores),
            _ => None,
        };
        let mask = scores.and_then(|scores| scores.mask.as_ref()).map(|mask| Operand::new(self.name(), mask));
        let mask = mask.as_ref().map(Operand::storage).transpose()?;
        let mask =
            mask.map(|(storage, layout)| Ok::<_, candle_core::Error>((data(self.name(), storage)?, layout)));
        let mask = mask.transpose()?;
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(width) * width, |range, piece| {
            let [mut x_scratch, mut mask_scratch, mut y_scratch] = [(); 3].map(|()| scratch::<T, C>(width));
            for (i, y) in piece.chunks_mut(width).enumerate() {
                let start = range.start + i * width;
                let x = load(x.sub(start..start + width), &mut x_scratch);
                let mask = mask.map(|(mask, layout)| {
                    let start = start_of_row(layout, start / width);
                    load(mask.sub(start..start + width), &mut mask_scratch)
                });
                store(y, &mut y_scratch, |y: &mut [C]| match (self, scores) {
                    (Softmax::Logarithm, _) => log_softmax(x, y),
                    (Softmax::Probability(_), None) => softmax(x, y),
                    (Softmax::Probability(_), Some(scores)) => {
                        let seen = if scores.causal { causal_end(dims, start / width) } else { width };
                        let (y, hidden) = y.split_at_mut(seen);
                        hidden.fill(if seen == 0 { C::from_f64(f64::NAN) } else { C::ZERO });
                        let scale = C::from_f64(scores.scale);
                        match mask {
                            Some(mask) => scaled_and_masked(&x[..seen], scale, &mask[..seen], y),
                            None => scaled(&x[..seen], scale, y),
                        }
                        softmax_in_place(y);
                    }
                });
            }
        });
        Ok(T::buffer(y))
    }

    fn gradient<T: Element, C: Float>(&self, y: Slice<'_>, grad: Slice<'_>, width: usize) -> Buffer {
        let (dx, _) = fill::<T, ()>(y.len(), rows_per_piece(width) * width, |range, piece| {
            let [mut y_scratch, mut grad_scratch, mut dx_scratch] = [(); 3].map(|()| scratch::<T, C>(width));
            for (row, dx) in piece.chunks_mut(width).enumerate() {
                let start = range.start + row * width;
                let y = load(y.sub(start..start + width), &mut y_scratch);
                let grad = load(grad.sub(start..start + width), &mut grad_scratch);
                store(dx, &mut dx_scratch, |dx: &mut [C]| match self {
                    Softmax::Probability(scores) => softmax_gradient(y, grad, C::from_f64(scores.scale), dx),
                    Softmax::Logarithm => log_softmax_gradient(y, grad, dx),
                });
            }
        });
        T::buffer(dx)
    }
}

/// Where a row of (batch, head, query) starts in memory.
fn start_of_row(layout: &Layout, row: usize) -> usize {
    let (&[_, heads, queries, _], &[of_batch, of_head, of_query, _]) = (layout.dims(), layout.stride())
    else {
        unreachable!("masks have four dimensions");
    };
    let (outer, query) = (row / queries, row % queries);
    layout.start_offset() + outer / heads * of_batch + outer % heads * of_head + query * of_query
}

/// The first key that a row of scores of shape (batch, heads, queries, keys) does not see.
fn causal_end(dims: &[usize], row: usize) -> usize {
    let (queries, keys) = (dims[2], dims[3]);
    (row % queries + keys + 1).saturating_sub(queries).min(keys)
}

impl Fused<1> for Softmax {
    on_gpu!(1, softmax);

    fn name(&self) -> &'static str {
        match self {
            Softmax::Probability(_) => "softmax-last-dim",
            Softmax::Logarithm => "log-softmax-last-dim",
        }
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let data = x.slice()?;
        let y = by_dtype!(data.dtype(), T, C => self.values::<T, C>(data, x.dims()))?;
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
    fn softmax<C>(x: &[C], y: &mut [C]) {
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
    fn softmax_in_place<C>(y: &mut [C]) {
        let max = largest(y);
        for y in y.iter_mut() {
            *y = (*y - max).exp();
        }
        let scale = C::ONE / sum(y, |y| y);
        for y in y {
            *y = *y * scale;
        }
    }
}

vectorized! {
    fn scaled<C>(x: &[C], scale: C, y: &mut [C]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * scale;
        }
    }
}

vectorized! {
    fn scaled_and_masked<C>(x: &[C], scale: C, mask: &[C], y: &mut [C]) {
        for ((y, &x), &mask) in y.iter_mut().zip(x).zip(mask) {
            *y = x * scale + mask;
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
    /// `scale * y * (grad - sum(y * grad))`
    fn softmax_gradient<C>(y: &[C], grad: &[C], scale: C, dx: &mut [C]) {
        let mean = sum2(y, grad, |y, grad| y * grad);
        for ((dx, &y), &grad) in dx.iter_mut().zip(y).zip(grad) {
            *dx = scale * y * (grad - mean);
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
