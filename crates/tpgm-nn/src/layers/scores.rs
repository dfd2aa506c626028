//! Attention weights: the softmax of scores, with scale and mask inside.

use candle_core::{CpuStorage, D, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::float::{Float, vectorized};
use super::fused::{Arg, Fused, apply1};
use super::gpu::on_gpu;
use super::softmax::{softmax, softmax_gradient};
use super::storage::{
    Operand, by_dtype, fill, into_storage, into_tensor, load, rows_per_piece, scratch, store, widen,
};
use crate::error::Error;

const NAME: &str = "masked-softmax";

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
    let args: Vec<_> = [Some(scores), mask].into_iter().flatten().collect();
    same_kind(NAME, &args)?;
    let &[_, heads, queries, _] = scores.dims() else {
        return Err(shape_error(NAME, "the scores must be (batch, heads, queries, keys)", &args));
    };
    if !scale.is_finite() {
        return Err(
            Error::LayerOption { op: NAME, option: "the scale", value: scale, range: "finite" }.into()
        );
    }
    if mask.is_some_and(|mask| mask.broadcast_as(scores.shape()).is_err()) {
        return Err(shape_error(NAME, "the mask must broadcast to the scores", &args));
    }
    if scores.elem_count() == 0 {
        return Ok(scores.clone());
    }
    if Path::with_kernels(scores) == Path::Composed || mask.is_some_and(Tensor::track_op) {
        return composed::masked_softmax(scores, scale, mask, causal);
    }
    apply1(Scores::new(scores, heads, queries, scale, (mask, causal))?, scores)
}

/// Which keys a query sees.
#[derive(Debug, Clone)]
pub(crate) enum AttentionMask {
    /// Those up to its own place; the last query sees all.
    Causal,
    /// By numbers that are added to the scaled scores, -inf or very small ones for what is not seen. They broadcast to (batch,
    /// heads, queries, keys) and are a constant.
    Added(Tensor),
}

impl AttentionMask {
    /// The numbers that are added, and whether keys behind a query's own place are hidden.
    pub(super) fn parts(mask: Option<&Self>) -> (Option<&Tensor>, bool) {
        match mask {
            None => (None, false),
            Some(AttentionMask::Causal) => (None, true),
            Some(AttentionMask::Added(mask)) => (Some(mask), false),
        }
    }
}

/// `softmax(scale x + mask)` over the last dimension of scores, whose rows are (batch, head, query) in that order.
#[derive(Debug)]
pub(super) struct Scores {
    pub(super) scale: f64,
    pub(super) heads: usize,
    pub(super) queries: usize,
    pub(super) causal: bool,
    /// The numbers of a mask, contiguous, and the elements from one batch, head and query to the next.
    pub(super) added: Option<(Tensor, [usize; 3])>,
}

impl Scores {
    const NAME: &'static str = NAME;

    /// Of `scores` that hold rows of (batch, heads, queries), whatever their shape is.
    pub(super) fn new(
        scores: &Tensor,
        heads: usize,
        queries: usize,
        scale: f64,
        (mask, causal): (Option<&Tensor>, bool),
    ) -> Result<Self> {
        let keys = scores.dim(D::Minus1)?;
        let batch = scores.elem_count() / (heads * queries * keys).max(1);
        let added = match mask {
            Some(mask) => {
                same_kind(Self::NAME, &[scores, mask])?;
                let mask = mask.contiguous()?;
                let Ok(wide) = mask.broadcast_as((batch, heads, queries, keys)) else {
                    let expected = "a mask must broadcast to (batch, heads, queries, keys)";
                    return Err(shape_error(Self::NAME, expected, &[scores, &mask]));
                };
                // One number for all keys is no mask; written out it is as the others.
                let wide = if keys > 1 && wide.stride()[3] != 1 { wide.contiguous()? } else { wide };
                let strides = [wide.stride()[0], wide.stride()[1], wide.stride()[2]];
                let held = if wide.is_contiguous() { wide } else { mask };
                Some((held, strides))
            }
            None => None,
        };
        Ok(Self { scale, heads, queries, causal, added })
    }

    /// The same of candle's own operations, of scores that are scaled.
    pub(super) fn composed(
        scores: &Tensor,
        heads: usize,
        queries: usize,
        mask: Option<&AttentionMask>,
    ) -> Result<Tensor> {
        let keys = scores.dim(D::Minus1)?;
        let (added, causal) = AttentionMask::parts(mask);
        let split = scores.reshape(((), heads, queries, keys))?;
        composed::masked_softmax(&split, 1.0, added, causal)?.reshape(scores.shape())
    }

    /// Who computes it.
    pub(super) fn path(scores: &Tensor, mask: Option<&AttentionMask>) -> Path {
        match mask {
            // A mask that is trained has a gradient in candle's own operations.
            Some(AttentionMask::Added(mask)) if mask.track_op() => Path::Composed,
            _ => Path::with_kernels(scores),
        }
    }

    /// Where the mask's numbers for a row begin.
    fn start(&self, row: usize) -> usize {
        let Some((_, [batch, head, query])) = &self.added else { return 0 };
        let (sequence, rest) = (row / (self.heads * self.queries), row % (self.heads * self.queries));
        sequence * batch + rest / self.queries * head + rest % self.queries * query
    }

    fn values<T: Element, C: Float>(&self, x: Slice<'_>, mask: Option<Slice<'_>>, width: usize) -> Buffer {
        let scale = C::from_f64(self.scale);
        let mask = mask.map(widen::<C>);
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(width) * width, |range, piece| {
            let [mut x_scratch, mut y_scratch] = [(); 2].map(|()| scratch::<T, C>(width));
            let mut scaled = vec![C::ZERO; width];
            for (i, y) in piece.chunks_mut(width).enumerate() {
                let row = range.start / width + i;
                let seen = if self.causal { self.seen(row, width) } else { width };
                let x = load(x.sub(row * width..row * width + seen), &mut x_scratch);
                let scaled = &mut scaled[..seen];
                match &mask {
                    Some(mask) => scale_and_add(x, &mask[self.start(row)..][..seen], scale, scaled),
                    None => scale_all(x, scale, scaled),
                }
                store(y, &mut y_scratch, |y: &mut [C]| {
                    let (seen, hidden) = y.split_at_mut(seen);
                    softmax(scaled, seen);
                    // Nothing is seen: no distribution, as of a row of minus infinities.
                    hidden.fill(if seen.is_empty() { C::from_f64(f64::NAN) } else { C::ZERO });
                });
            }
        });
        T::buffer(y)
    }

    /// How many keys a row sees.
    fn seen(&self, row: usize, keys: usize) -> usize {
        (row % self.queries + 1 + keys).saturating_sub(self.queries).min(keys)
    }

    fn gradient<T: Element, C: Float>(&self, y: Slice<'_>, grad: Slice<'_>, width: usize) -> Buffer {
        let scale = C::from_f64(self.scale);
        let (dx, _) = fill::<T, ()>(y.len(), rows_per_piece(width) * width, |range, piece| {
            let [mut y_scratch, mut grad_scratch, mut dx_scratch] = [(); 3].map(|()| scratch::<T, C>(width));
            for (i, dx) in piece.chunks_mut(width).enumerate() {
                let start = range.start + i * width;
                let y = load(y.sub(start..start + width), &mut y_scratch);
                let grad = load(grad.sub(start..start + width), &mut grad_scratch);
                store(dx, &mut dx_scratch, |dx: &mut [C]| {
                    softmax_gradient(y, grad, dx);
                    multiply_all(scale, dx);
                });
            }
        });
        T::buffer(dx)
    }
}

impl Fused<1> for Scores {
    on_gpu!(1, scores);

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let data = x.slice()?;
        let width = x.dims().last().copied().unwrap_or(1);
        let mask = self.added.as_ref().map(|(mask, _)| Operand::new(Self::NAME, mask));
        let mask = mask.as_ref().map(Operand::slice).transpose()?;
        let y = by_dtype!(data.dtype(), T, C => self.values::<T, C>(data, mask, width));
        Ok((into_storage(y), x.shape().clone()))
    }

    fn backward(&self, _: [&Tensor; 1], y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let width = y.dim(D::Minus1)?;
        let (y_data, grad_data) = (Operand::new(Self::NAME, y), Operand::new(Self::NAME, grad));
        let (y_slice, grad_slice) = (y_data.slice()?, grad_data.slice()?);
        let dx = by_dtype!(y_slice.dtype(), T, C => self.gradient::<T, C>(y_slice, grad_slice, width));
        Ok([Some(into_tensor(dx, y.shape())?)])
    }
}

vectorized! {
    fn scale_all<C>(x: &[C], scale: C, y: &mut [C]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * scale;
        }
    }
}

vectorized! {
    fn scale_and_add<C>(x: &[C], mask: &[C], scale: C, y: &mut [C]) {
        for ((y, &x), &mask) in y.iter_mut().zip(x).zip(mask) {
            *y = x * scale + mask;
        }
    }
}

vectorized! {
    fn multiply_all<C>(scale: C, y: &mut [C]) {
        for y in y {
            *y = *y * scale;
        }
    }
}
