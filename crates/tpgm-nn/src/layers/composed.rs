//! The same functions, composed of candle's differentiable operations.
//!
//! You need these when you compare: they are what the [layers](crate) compute where they have no code of their own, on Metal and
//! partly on CUDA, and what tests and benchmarks hold the fused operations against. They keep every intermediate tensor for the backward
//! pass. Arguments are those of the fused functions, and unlike there are not checked beyond what candle checks itself.

mod activation;

use candle_core::{D, DType, Result, Tensor};

pub use self::activation::{
    gelu, gelu_tanh, hard_sigmoid, hard_swish, quick_gelu, relu, relu6, sigmoid, silu,
};
use super::conv::{Axis, Padding};

/// The type in which a tensor is computed.
fn compute_dtype(x: &Tensor) -> DType {
    if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

/// In the type that it is computed in: f32 for half precision.
pub(crate) fn widened(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(compute_dtype(x))
}

/// [`LayerNorm`](super::LayerNorm), or [`RmsNorm`](super::RmsNorm) if the mean is not removed.
///
/// # Errors
///
/// If candle fails.
pub fn norm(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
    remove_mean: bool,
) -> Result<Tensor> {
    let wide = widened(x)?;
    let centered = if remove_mean { wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)? } else { wide };
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centered.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(&widened(weight)?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&widened(bias)?)?,
        None => y,
    };
    y.to_dtype(x.dtype())
}

/// [`softmax_last_dim`](super::softmax_last_dim).
///
/// # Errors
///
/// If candle fails.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    let wide = widened(x)?;
    // The result does not depend on what is subtracted, so no gradient has to flow through the maximum.
    let e = wide.broadcast_sub(&wide.detach().max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(x.dtype())
}

/// [`masked_softmax`](super::masked_softmax).
///
/// # Errors
///
/// If candle fails.
pub fn masked_softmax(scores: &Tensor, scale: f64, mask: Option<&Tensor>, causal: bool) -> Result<Tensor> {
    let mut s = widened(scores)?;
    if scale != 1.0 {
        s = (s * scale)?;
    }
    if let Some(mask) = mask {
        s = s.broadcast_add(&widened(mask)?)?;
    }
    if causal {
        let (_, _, queries, keys) = scores.dims4()?;
        let hidden = |query: usize, key: usize| key + queries > query + keys;
        let hidden = (0..queries).flat_map(|query| (0..keys).map(move |key| u8::from(hidden(query, key))));
        let hidden = Tensor::from_vec(hidden.collect::<Vec<_>>(), (1, 1, queries, keys), s.device())?;
        let nothing = Tensor::full(f32::NEG_INFINITY, s.shape(), s.device())?.to_dtype(s.dtype())?;
        s = hidden.broadcast_as(s.shape())?.where_cond(&nothing, &s)?;
    }
    softmax_last_dim(&s)?.to_dtype(scores.dtype())
}

/// [`log_softmax_last_dim`](super::log_softmax_last_dim).
///
/// # Errors
///
/// If candle fails.
pub fn log_softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    let wide = widened(x)?;
    let shifted = wide.broadcast_sub(&wide.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_sum)?.to_dtype(x.dtype())
}

/// [`cross_entropy_smoothed`](super::cross_entropy_smoothed) of logits of shape (rows, classes).
///
/// # Errors
///
/// If candle fails.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    let log_p = log_softmax_last_dim(&widened(logits)?)?;
    let of_label = log_p.gather(&labels.to_dtype(DType::U32)?.unsqueeze(1)?.contiguous()?, 1)?.sum_all()?;
    if smoothing == 0.0 {
        return of_label / -(rows as f64);
    }
    let of_all = (log_p.sum_all()? * (smoothing / classes as f64))?;
    ((of_label * (1.0 - smoothing))? + of_all)? / -(rows as f64)
}

/// [`cross_entropy_soft_smoothed`](super::cross_entropy_soft_smoothed) of logits and targets of shape (rows, classes), targets
/// in the type that is computed in.
///
/// # Errors
///
/// If candle fails.
pub fn cross_entropy_soft(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    let log_p = log_softmax_last_dim(&widened(logits)?)?;
    // Where the target is 0 the logarithm may be minus infinity.
    let wanted = targets.ne(0.0)?.where_cond(&log_p, &log_p.zeros_like()?)?;
    let of_targets = (wanted * targets)?.sum_all()?;
    if smoothing == 0.0 {
        return of_targets / -(rows as f64);
    }
    let of_all = (log_p.sum_all()? * (smoothing / classes as f64))?;
    ((of_targets * (1.0 - smoothing))? + of_all)? / -(rows as f64)
}

/// [`gated_silu`](super::gated_silu).
///
/// # Errors
///
/// If candle fails.
pub fn gated_silu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    silu(gate)? * up
}

/// [`rope`](super::rope).
///
/// # Errors
///
/// If candle fails.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let wide = widened(x)?;
    let (first, second) = (wide.narrow(D::Minus1, 0, half)?, wide.narrow(D::Minus1, half, half)?);
    let (first, second) = rotated(x, &first, &second, cos, sin)?;
    Tensor::cat(&[first, second], D::Minus1)?.to_dtype(x.dtype())
}

/// [`rope_i`](super::rope_i).
///
/// # Errors
///
/// If candle fails.
pub fn rope_i(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, heads, steps, width) = x.dims4()?;
    let pairs = widened(x)?.reshape((batch, heads, steps, width / 2, 2))?;
    let (first, second) = (
        pairs.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?,
        pairs.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?,
    );
    let (first, second) = rotated(x, &first, &second, cos, sin)?;
    Tensor::stack(&[first, second], D::Minus1)?.reshape(x.shape())?.to_dtype(x.dtype())
}

/// Rotates pairs given as two tensors of shape (batch, heads, steps, pairs).
fn rotated(
    x: &Tensor,
    first: &Tensor,
    second: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let steps = x.dim(D::Minus2)?;
    let table = |t: &Tensor| {
        let t = widened(t)?.narrow(D::Minus2, 0, steps)?;
        // (steps, pairs) or (batch, steps, pairs), the same for all heads.
        if t.rank() == 3 { t.unsqueeze(1) } else { Ok(t) }
    };
    let (cos, sin) = (table(cos)?, table(sin)?);
    let y_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let y_second = (first.broadcast_mul(&sin)? + second.broadcast_mul(&cos)?)?;
    Ok((y_first, y_second))
}

/// [`max_pool2d`](super::max_pool2d): the maximum over as many strided views as the window has elements. Among equal
/// elements, the gradient goes to the first.
///
/// # Errors
///
/// If candle fails.
pub fn max_pool2d(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let rows = window_indices(height, kernel.0, stride.0, padding.0);
    let columns = window_indices(width, kernel.1, stride.1, padding.1);
    let (out_height, out_width) = (rows.len() / kernel.0, columns.len() / kernel.1);
    let index = |indices: Vec<u32>| {
        let len = indices.len();
        Tensor::from_vec(indices, len, x.device())
    };
    // All windows side by side, with the elements of each in its last dimension.
    let windows = padded(&padded(x, 2, padding.0)?, 3, padding.1)?
        .index_select(&index(rows)?, 2)?
        .index_select(&index(columns)?, 3)?
        .reshape(vec![batch, channels, out_height, kernel.0, out_width, kernel.1])?
        .permute(vec![0, 1, 2, 4, 3, 5])?
        .contiguous()?
        .reshape((batch, channels, out_height, out_width, kernel.0 * kernel.1))?;
    let first_largest = windows.detach().argmax_keepdim(D::Minus1)?;
    windows.gather(&first_largest, D::Minus1)?.squeeze(D::Minus1)
}

/// [`Conv2d`](super::Conv2d).
///
/// # Errors
///
/// If candle fails.
pub fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: Padding, groups: usize) -> Result<Tensor> {
    let mut x = x.clone();
    // candle pads all edges alike, and goes backward only where the stride leaves the same remainders of height and width:
    // the image is brought to just the size that the windows cover.
    for dim in [2, 3] {
        let Some(axis) = Axis::new(padding, stride, x.dim(dim)?, weight.dim(dim)?) else {
            candle_core::bail!("conv2d: the padded image must be at least as large as the kernel");
        };
        let covered = (axis.out - 1) * stride + axis.kernel;
        x = x.pad_with_zeros(dim, axis.before, axis.after)?.narrow(dim, 0, covered)?;
    }
    x.conv2d(weight, 0, stride, 1, groups)
}

/// Mean and variance (divided by the number of elements) of each channel of `x` of shape (batch, channels, ...), of shape
/// (channels), in f32 or f64: what [`BatchNorm`](super::BatchNorm) normalizes with while training.
///
/// # Errors
///
/// If candle fails.
pub fn batch_statistics(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, channels) = (x.dim(0)?, x.dim(1)?);
    let rows = widened(x)?.transpose(0, 1)?.contiguous()?.reshape((channels, ()))?;
    let mean = rows.mean_keepdim(1)?;
    let variance = rows.broadcast_sub(&mean)?.sqr()?.mean(1)?;
    Ok((mean.squeeze(1)?, variance))
}

/// [`BatchNorm`](super::BatchNorm) of `x` of shape (batch, channels, ...), with a mean and a variance per channel.
///
/// # Errors
///
/// If candle fails.
pub fn batch_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[1] = x.dim(1)?;
    let per_channel = |t: &Tensor| widened(t)?.to_dtype(compute_dtype(x))?.reshape(shape.as_slice());
    let scale = (per_channel(variance)? + eps)?.sqrt()?;
    let normalized = widened(x)?.broadcast_sub(&per_channel(mean)?)?.broadcast_div(&scale)?;
    let y = normalized.broadcast_mul(&per_channel(weight)?)?.broadcast_add(&per_channel(bias)?)?;
    y.to_dtype(x.dtype())
}

/// The padded positions that all windows cover along one dimension, window after window.
fn window_indices(size: usize, kernel: usize, stride: usize, padding: usize) -> Vec<u32> {
    let windows = (size + 2 * padding - kernel) / stride + 1;
    (0..windows).flat_map(|window| (0..kernel).map(move |k| (window * stride + k) as u32)).collect()
}

/// Minus infinity on both sides of a dimension.
fn padded(x: &Tensor, dim: usize, padding: usize) -> Result<Tensor> {
    if padding == 0 {
        return Ok(x.clone());
    }
    let mut dims = x.dims().to_vec();
    dims[dim] = padding;
    let edge = Tensor::full(f32::NEG_INFINITY, dims, x.device())?.to_dtype(x.dtype())?;
    Tensor::cat(&[&edge, x, &edge], dim)
}

/// [`scale_channels`](super::scale_channels).
///
/// # Errors
///
/// If candle fails.
pub fn scale_channels(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(scale)
}

/// [`global_avg_pool`](super::global_avg_pool).
///
/// # Errors
///
/// If candle fails.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    widened(x)?.flatten_from(2)?.mean(2)?.to_dtype(x.dtype())
}

/// [`add_bias`](super::add_bias).
///
/// # Errors
///
/// If candle fails.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.broadcast_add(bias)
}

/// [`matmul`](super::matmul).
///
/// # Errors
///
/// If candle fails.
pub fn matmul(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    x.contiguous()?.matmul(&y.contiguous()?)
}

/// [`matmul_transposed`](super::matmul_transposed).
///
/// # Errors
///
/// If candle fails.
pub fn matmul_transposed(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let y = y.contiguous()?;
    x.contiguous()?.matmul(&y.transpose(D::Minus1, D::Minus2)?)
}

/// [`Linear`](super::Linear).
///
/// # Errors
///
/// If candle fails.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    shape.pop();
    // One matrix product for all leading dimensions: candle's batched one would multiply the weight by the batch.
    let y = x.reshape((shape.iter().product::<usize>(), inputs))?.matmul(&weight.t()?)?;
    shape.push(outputs);
    let y = match bias {
        Some(bias) => add_bias(&y, bias)?,
        None => y,
    };
    y.reshape(shape)
}
