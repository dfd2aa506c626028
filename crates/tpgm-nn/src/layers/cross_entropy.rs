//! Softmax and negative log likelihood in one.

use std::sync::OnceLock;

use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, last_dim, same_kind, shape_error};
use super::composed;
use super::float::{Float, largest, sum, vectorized};
use super::fused::{Arg, Fused, apply1};
#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::storage::{
    Operand, by_dtype, fill, into_storage, into_tensor, load, rows_per_piece, scratch, store,
};
use crate::error::Error;

const NAME: &str = "cross-entropy";

/// Cross-entropy of class labels, averaged over the rows: the mean of `-ln(softmax(logits)[label])`.
///
/// `logits`: shape (..., classes). `labels`: u8, u32 or i64 of shape (...), each below the number of classes. The result is
/// a scalar, in f32 for half-precision logits.
///
/// Forward reads the logits once, backward reads them once more and writes their gradient; nothing of their size is kept
/// in between. `candle_nn::loss::cross_entropy` has a gradient too, and keeps several such tensors.
///
/// On a GPU that computes it by a kernel (feature `cuda`; logits of f32, bf16 or f16), labels that lie there are not looked at by
/// the host, which would have to wait for them: one that is not a class makes the loss NaN.
///
/// # Errors
///
/// If shapes do not fit, there are no rows, or a label is not a class.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    cross_entropy_smoothed(logits, labels, 0.0)
}

/// [`cross_entropy`] against a target of `1 - smoothing` on the label plus `smoothing / classes` on every class.
///
/// `smoothing` is in 0..=1. Source: Szegedy et al., "Rethinking the Inception Architecture" (2016), section 7.
///
/// # Errors
///
/// As [`cross_entropy`], or if `smoothing` is out of range.
pub fn cross_entropy_smoothed(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&smoothing) {
        let range = "in 0..=1";
        return Err(
            Error::LayerOption { op: NAME, option: "label smoothing", value: smoothing, range }.into()
        );
    }
    same_kind(NAME, &[logits])?;
    let classes = last_dim(NAME, logits)?;
    let rows = labels.elem_count();
    if labels.dims() != &logits.dims()[..logits.rank() - 1] {
        let expected = "labels must have the shape of the logits without the last dimension";
        return Err(shape_error(NAME, expected, &[logits, labels]));
    }
    if rows == 0 {
        return Err(shape_error(NAME, "there must be at least one row to average over", &[logits, labels]));
    }
    // Rows with gaps stay where they are.
    let logits = if logits.rank() == 2 { logits.clone() } else { logits.reshape((rows, classes))? };
    #[cfg(any(feature = "cuda", test))]
    if gpu::takes(&logits) == Some(true) {
        return gpu::cross_entropy::mean(&logits, &labels_beside(&logits, labels, classes)?, smoothing);
    }
    let labels = checked_labels(NAME, labels, classes)?;
    match Path::of(&logits) {
        Path::Fused => apply1(CrossEntropy { labels, smoothing, normalizers: OnceLock::new() }, &logits),
        Path::Composed => {
            let labels = Tensor::from_vec(labels, rows, logits.device())?;
            composed::cross_entropy(&logits, &labels, smoothing)
        }
    }
}

/// Labels on the device of the logits, of shape (rows). The host looks at those alone that it has.
#[cfg(any(feature = "cuda", test))]
fn labels_beside(logits: &Tensor, labels: &Tensor, classes: usize) -> Result<Tensor> {
    if labels.device().same_device(logits.device()) {
        check_type(NAME, labels)?;
        return labels.flatten_all();
    }
    let labels = checked_labels(NAME, labels, classes)?;
    let rows = labels.len();
    Tensor::from_vec(labels, rows, logits.device())
}

fn check_type(op: &'static str, labels: &Tensor) -> Result<()> {
    if !matches!(labels.dtype(), DType::U8 | DType::U32 | DType::I64) {
        candle_core::bail!("{op}: labels must be u8, u32 or i64; got {:?}", labels.dtype());
    }
    Ok(())
}

/// All labels on the host, each below `classes`.
pub(crate) fn checked_labels(op: &'static str, labels: &Tensor, classes: usize) -> Result<Vec<u32>> {
    check_type(op, labels)?;
    let labels: Vec<i64> = labels.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?;
    let check = |(row, label): (usize, i64)| match u32::try_from(label) {
        Ok(index) if (index as usize) < classes => Ok(index),
        _ => Err(Error::Label { op, row, label, classes }.into()),
    };
    labels.into_iter().enumerate().map(check).collect()
}

/// Of a row: its largest logit, and one over the sum of `e^(logit - largest)`.
#[derive(Debug, Clone, Copy)]
struct Normalizer<C> {
    max: C,
    scale: C,
}

/// The operation on logits of shape (rows, classes); used once.
#[derive(Debug)]
struct CrossEntropy {
    labels: Vec<u32>,
    smoothing: f64,
    /// One per row, from the forward pass for the backward pass.
    normalizers: OnceLock<Vec<Normalizer<f64>>>,
}

impl CrossEntropy {
    fn loss<T: Element, C: Float>(&self, logits: Slice<'_>, classes: usize) -> C {
        // Per row, its loss: written as the output of the pieces. A row is classes elements of work.
        let piece = rows_per_piece(classes);
        let (losses, normalizers) = fill::<f64, Vec<_>>(self.labels.len(), piece, |rows, losses| {
            let mut row_scratch = scratch::<T, C>(classes);
            let one = |(row, loss): (usize, &mut f64)| {
                let x = load(logits.sub(row * classes..(row + 1) * classes), &mut row_scratch);
                let (max, total, sum) = reduce(x, self.smoothing != 0.0);
                let target = (1.0 - self.smoothing) * x[self.labels[row] as usize].to_f64()
                    + self.smoothing / classes as f64 * sum.to_f64();
                *loss = max.to_f64() + total.to_f64().ln() - target;
                Normalizer { max: max.to_f64(), scale: 1.0 / total.to_f64() }
            };
            rows.zip(losses).map(one).collect()
        });
        // The operation is made for one forward pass; if candle repeats it, the logits are the same.
        self.normalizers.get_or_init(|| normalizers.concat());
        C::from_f64(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// `factor * (softmax(logits) - target)`
    fn gradient<T: Element, C: Float>(&self, logits: Slice<'_>, classes: usize, factor: f64) -> Buffer {
        let normalizers = self.normalizers.get().expect("backward follows forward");
        let (factor, uniform) = (C::from_f64(factor), C::from_f64(factor * self.smoothing / classes as f64));
        let on_label = factor * C::from_f64(1.0 - self.smoothing);
        let (dx, _) = fill::<T, ()>(logits.len(), rows_per_piece(classes) * classes, |range, piece| {
            let (mut x_scratch, mut dx_scratch) = (scratch::<T, C>(classes), scratch::<T, C>(classes));
            for (i, dx) in piece.chunks_mut(classes).enumerate() {
                let row = range.start / classes + i;
                let x = load(logits.sub(row * classes..(row + 1) * classes), &mut x_scratch);
                let Normalizer { max, scale } = normalizers[row];
                store(dx, &mut dx_scratch, |dx: &mut [C]| {
                    scaled_exp(x, C::from_f64(max), C::from_f64(scale) * factor, uniform, dx);
                    let label = self.labels[row] as usize;
                    dx[label] = dx[label] - on_label;
                });
            }
        });
        T::buffer(dx)
    }
}

impl Fused<1> for CrossEntropy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [logits]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = logits.shape().dims2()?;
        let data = logits.slice()?;
        let loss = by_dtype!(data.dtype(), T, C => C::buffer(vec![self.loss::<T, C>(data, classes)]));
        Ok((into_storage(loss), Shape::from(())))
    }

    fn backward(&self, [logits]: [&Tensor; 1], _loss: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (rows, classes) = logits.dims2()?;
        let factor = grad.to_dtype(DType::F64)?.to_scalar::<f64>()? / rows as f64;
        let data = Operand::new(NAME, logits);
        let data = data.slice()?;
        let dx = by_dtype!(data.dtype(), T, C => self.gradient::<T, C>(data, classes, factor));
        Ok([Some(into_tensor(dx, logits.shape())?)])
    }
}

vectorized! {
    /// The largest logit, the sum of `e^(logit - largest)`, and the sum of the logits if it is wanted.
    fn reduce<C>(x: &[C], want_sum: bool) -> (C, C, C) {
        let max = largest(x);
        let total = sum(x, |x| (x - max).exp());
        (max, total, if want_sum { sum(x, |x| x) } else { C::ZERO })
    }
}

vectorized! {
    /// `e^(x - max) * scale - uniform`
    fn scaled_exp<C>(x: &[C], max: C, scale: C, uniform: C, dx: &mut [C]) {
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = (x - max).exp() * scale - uniform;
        }
    }
}
