//! Softmax and cross-entropy against distributions in one.

use std::sync::OnceLock;

use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, last_dim, shape_error};
use super::composed;
use super::float::{Float, largest, sum, sum2, vectorized};
use super::fused::{Arg, Fused, apply2};
#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::storage::{
    Operand, by_dtype, fill, into_storage, into_tensor, load, rows_per_piece, scratch, store,
};
use crate::dtype::cast;
use crate::error::Error;

const NAME: &str = "soft-target cross-entropy";

/// Cross-entropy of logits against target distributions: the mean over the rows of `-sum_j target_j ln softmax(logits)_j`. Used
/// for mixed labels, for pairs that share a text, and for distillation.
///
/// `logits` and `targets`: shape (..., classes). Rows of `targets` usually sum to 1; they need not. No gradient reaches the
/// targets: they are a teacher's, or data. The result is a scalar, in f32 for half-precision logits.
///
/// Forward reads both once, backward reads them once more and writes the gradient of the logits; probabilities are not kept.
/// A class whose target is 0 adds nothing, also where its logit is minus infinity. On a GPU, half-precision logits are widened to f32
/// by a pass of their own.
///
/// # Errors
///
/// If the shapes differ, a type is not floating point, or there is nothing to average over.
pub fn cross_entropy_soft(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    cross_entropy_soft_smoothed(logits, targets, 0.0)
}

/// [`cross_entropy_soft`] against `(1 - smoothing) * target + smoothing / classes`.
///
/// `smoothing` is in 0..=1. Source: Szegedy et al., "Rethinking the Inception Architecture" (2016), section 7.
///
/// # Errors
///
/// As [`cross_entropy_soft`], or if `smoothing` is out of range.
pub fn cross_entropy_soft_smoothed(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&smoothing) {
        let range = "in 0..=1";
        return Err(
            Error::LayerOption { op: NAME, option: "label smoothing", value: smoothing, range }.into()
        );
    }
    if logits.dims() != targets.dims() {
        return Err(shape_error(NAME, "logits and targets must have one shape", &[logits, targets]));
    }
    let classes = last_dim(NAME, logits)?;
    if logits.elem_count() == 0 {
        return Err(shape_error(NAME, "there must be at least one row and one class", &[logits]));
    }
    // Targets of another type than the logits' are taken in the type that is computed in.
    if !logits.dtype().is_float() || !targets.dtype().is_float() {
        let dtypes = vec![logits.dtype(), targets.dtype()];
        return Err(Error::LayerDType { op: NAME, dtypes }.into());
    }
    let wide = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let targets = cast(&targets.detach(), wide)?.reshape(((), classes))?;
    let logits = if logits.rank() == 2 { logits.clone() } else { logits.reshape(((), classes))? };
    if !logits.device().same_device(targets.device()) {
        return Err(Error::LayerDevice { op: NAME }.into());
    }
    #[cfg(any(feature = "cuda", test))]
    if gpu::takes(&logits) == Some(true) {
        // The kernels take both in one type.
        return gpu::cross_entropy::mean(&cast(&logits, wide)?, &targets, smoothing);
    }
    match Path::of(&logits) {
        Path::Fused => apply2(SoftCrossEntropy { smoothing, rows: OnceLock::new() }, &logits, &targets),
        Path::Composed => composed::cross_entropy_soft(&logits, &targets, smoothing),
    }
}

/// Of a row: its largest logit, one over the sum of `e^(logit - largest)`, and the sum of its target after smoothing.
#[derive(Debug, Clone, Copy)]
struct Row {
    max: f64,
    scale: f64,
    mass: f64,
}

/// The operation on logits and targets of shape (rows, classes), targets in the type that is computed in; used once.
#[derive(Debug)]
struct SoftCrossEntropy {
    smoothing: f64,
    /// From the forward pass for the backward pass.
    rows: OnceLock<Vec<Row>>,
}

impl SoftCrossEntropy {
    fn loss<T: Element, C: Float>(&self, logits: Slice<'_>, targets: Slice<'_>, classes: usize) -> C {
        let targets = C::direct(targets).expect("targets are in the type that is computed in");
        let (keep, uniform) = (1.0 - self.smoothing, self.smoothing / classes as f64);
        let (losses, rows) =
            fill::<f64, Vec<_>>(logits.len() / classes, rows_per_piece(classes), |rows, losses| {
                let mut row_scratch = scratch::<T, C>(classes);
                let one = |(row, loss): (usize, &mut f64)| {
                    let range = row * classes..(row + 1) * classes;
                    let x = load(logits.sub(range.clone()), &mut row_scratch);
                    let (max, total, mass, below) = reduce(x, &targets[range]);
                    let (max, total) = (max.to_f64(), total.to_f64());
                    let (mut mass, mut below) = (keep * mass.to_f64(), keep * below.to_f64());
                    if self.smoothing != 0.0 {
                        mass += self.smoothing;
                        below += uniform * distance(x, C::from_f64(max)).to_f64();
                    }
                    *loss = below + mass * total.ln();
                    Row { max, scale: 1.0 / total, mass }
                };
                rows.zip(losses).map(one).collect()
            });
        // The operation is made for one forward pass; if candle repeats it, the operands are the same.
        self.rows.get_or_init(|| rows.concat());
        C::from_f64(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// `factor * (mass * softmax(logits) - target)`
    fn gradient<T: Element, C: Float>(
        &self,
        logits: Slice<'_>,
        targets: Slice<'_>,
        classes: usize,
        factor: f64,
    ) -> Buffer {
        let rows = self.rows.get().expect("backward follows forward");
        let targets = C::direct(targets).expect("targets are in the type that is computed in");
        let keep = C::from_f64(factor * (1.0 - self.smoothing));
        let uniform = C::from_f64(factor * self.smoothing / classes as f64);
        let (dx, _) = fill::<T, ()>(logits.len(), rows_per_piece(classes) * classes, |range, piece| {
            let (mut x_scratch, mut dx_scratch) = (scratch::<T, C>(classes), scratch::<T, C>(classes));
            for (i, dx) in piece.chunks_mut(classes).enumerate() {
                let row = range.start / classes + i;
                let at = row * classes..(row + 1) * classes;
                let x = load(logits.sub(at.clone()), &mut x_scratch);
                let Row { max, scale, mass } = rows[row];
                let scale = C::from_f64(scale * mass * factor);
                store(dx, &mut dx_scratch, |dx: &mut [C]| {
                    slope(x, &targets[at], C::from_f64(max), scale, keep, uniform, dx);
                });
            }
        });
        T::buffer(dx)
    }
}

impl Fused<2> for SoftCrossEntropy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [logits, targets]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = logits.shape().dims2()?;
        let (data, targets) = (logits.slice()?, targets.slice()?);
        let loss =
            by_dtype!(data.dtype(), T, C => C::buffer(vec![self.loss::<T, C>(data, targets, classes)]));
        Ok((into_storage(loss), Shape::from(())))
    }

    fn backward(
        &self,
        [logits, targets]: [&Tensor; 2],
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let (rows, classes) = logits.dims2()?;
        let factor = grad.to_dtype(DType::F64)?.to_scalar::<f64>()? / rows as f64;
        let (data, targets) = (Operand::new(NAME, logits), Operand::new(NAME, targets));
        let (data, targets) = (data.slice()?, targets.slice()?);
        let dx = by_dtype!(data.dtype(), T, C => self.gradient::<T, C>(data, targets, classes, factor));
        Ok([Some(into_tensor(dx, logits.shape())?), None])
    }
}

vectorized! {
    /// The largest logit, the sum of `e^(logit - largest)`, the sum of the target, and that of `target * (largest - logit)`.
    fn reduce<C>(x: &[C], target: &[C]) -> (C, C, C, C) {
        let max = largest(x);
        let total = sum(x, |x| (x - max).exp());
        // A target of 0 on a logit of minus infinity adds nothing.
        let below = sum2(x, target, |x, t| if t == C::ZERO { C::ZERO } else { t * (max - x) });
        (max, total, sum(target, |t| t), below)
    }
}

vectorized! {
    /// The sum of `max - x`.
    fn distance<C>(x: &[C], max: C) -> C {
        sum(x, |x| max - x)
    }
}

vectorized! {
    /// `e^(x - max) * scale - target * keep - uniform`
    fn slope<C>(x: &[C], target: &[C], max: C, scale: C, keep: C, uniform: C, dx: &mut [C]) {
        for ((dx, &x), &t) in dx.iter_mut().zip(x).zip(target) {
            *dx = (x - max).exp() * scale - t * keep - uniform;
        }
    }
}
