//! Rows of layer and RMS normalization, forward and backward.
//!
//! Forward reads and writes each element once. Backward reads input and gradient and writes one gradient, once each: the
//! statistics of a row are computed anew while it is in the cache, so nothing but the input is kept for it.

use tpgm_core::{Buffer, Element, Slice};

use crate::layers::float::{Float, accumulate, sum, sum2, vectorized};
use crate::layers::storage::{
    Columns, by_dtype, fill, load, round, rows_per_piece, scratch, store, sum_in_order, widen,
};

/// The operation, without its tensors.
#[derive(Debug, Clone, Copy)]
pub(in crate::layers) struct Normalize {
    /// What is added to the variance.
    pub(in crate::layers) eps: f64,
    /// Whether the mean is subtracted: layer norm, or RMS norm.
    pub(in crate::layers) remove_mean: bool,
}

/// One thing each for input, weight and bias.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Grads<T> {
    pub(super) x: T,
    pub(super) weight: T,
    pub(super) bias: T,
}

impl Normalize {
    /// `x` holds rows of the weight's length.
    pub(super) fn values(&self, x: Slice<'_>, weight: Slice<'_>, bias: Option<Slice<'_>>) -> Buffer {
        by_dtype!(x.dtype(), T, C => T::buffer(self.forward_as::<T, C>(x, weight, bias)))
    }

    fn forward_as<T: Element, C: Float>(
        &self,
        x: Slice<'_>,
        weight: Slice<'_>,
        bias: Option<Slice<'_>>,
    ) -> Vec<T> {
        let features = weight.len();
        let (weight, bias) = (widen::<C>(weight), bias.map(widen::<C>));
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(features) * features, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(features), scratch::<T, C>(features));
            for (row, y) in piece.chunks_mut(features).enumerate() {
                let start = range.start + row * features;
                let x = load(x.sub(start..start + features), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| {
                    let (mean, scale) = statistics(x, C::from_f64(self.eps), self.remove_mean);
                    match &bias {
                        Some(bias) => normalize_biased(x, &weight, bias, mean, scale, y),
                        None => normalize(x, &weight, mean, scale, y),
                    }
                });
            }
        });
        y
    }

    /// The gradients that are wanted; `grad` is that of the result, and `carried` is added to that of x.
    pub(super) fn gradients(
        &self,
        x: Slice<'_>,
        weight: Slice<'_>,
        grad: Slice<'_>,
        carried: Option<Slice<'_>>,
        wanted: Grads<bool>,
    ) -> Grads<Option<Buffer>> {
        by_dtype!(x.dtype(), T, C => {
            let grads = self.gradients_as::<T, C>(x, weight, grad, carried, wanted);
            Grads {
                x: grads.x.map(T::buffer),
                weight: grads.weight.map(T::buffer),
                bias: grads.bias.map(T::buffer),
            }
        })
    }

    fn gradients_as<T: Element, C: Float>(
        &self,
        x: Slice<'_>,
        weight: Slice<'_>,
        grad: Slice<'_>,
        carried: Option<Slice<'_>>,
        wanted: Grads<bool>,
    ) -> Grads<Option<Vec<T>>> {
        let features = weight.len();
        let weight = widen::<C>(weight);
        let sums = wanted.weight || wanted.bias;
        let (dx, parts) =
            fill::<T, Grads<Vec<f64>>>(x.len(), rows_per_piece(features) * features, |range, piece| {
                let [mut x_scratch, mut grad_scratch, mut dx_scratch, mut carried_scratch] =
                    [(); 4].map(|()| scratch::<T, C>(features));
                let width = if sums { features } else { 0 };
                let (mut weight_sum, mut bias_sum) = (Columns::<C>::new(width), Columns::<C>::new(width));
                for (row, dx) in piece.chunks_mut(features).enumerate() {
                    let start = range.start + row * features;
                    let x = load(x.sub(start..start + features), &mut x_scratch);
                    let grad = load(grad.sub(start..start + features), &mut grad_scratch);
                    let (mean, scale) = statistics(x, C::from_f64(self.eps), self.remove_mean);
                    if wanted.x {
                        store(dx, &mut dx_scratch, |dx: &mut [C]| {
                            input_gradient(x, grad, &weight, mean, scale, self.remove_mean, dx);
                            if let Some(carried) = carried {
                                accumulate(
                                    load(carried.sub(start..start + features), &mut carried_scratch),
                                    dx,
                                );
                            }
                        });
                    }
                    if sums {
                        weight_sum.row(|dw| {
                            bias_sum.row(|db| add_parameter_gradients(x, grad, mean, scale, dw, db))
                        });
                    }
                }
                Grads { x: Vec::new(), weight: weight_sum.finish(), bias: bias_sum.finish() }
            });
        let (weights, biases): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|part| (part.weight, part.bias)).unzip();
        let total = |parts: &[Vec<f64>]| round(&sum_in_order(features, parts));
        Grads {
            x: wanted.x.then_some(dx),
            weight: wanted.weight.then(|| total(&weights)),
            bias: wanted.bias.then(|| total(&biases)),
        }
    }
}

vectorized! {
    /// Mean (zero if it is not to be removed), and one over the root of the mean square around it.
    pub(super) fn statistics<C>(x: &[C], eps: C, remove_mean: bool) -> (C, C) {
        let n = C::from_f64(x.len() as f64);
        let mean = if remove_mean { sum(x, |x| x) / n } else { C::ZERO };
        let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
        (mean, C::ONE / (variance + eps).sqrt())
    }
}

vectorized! {
    pub(super) fn normalize<C>(x: &[C], weight: &[C], mean: C, scale: C, y: &mut [C]) {
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
            *y = (x - mean) * scale * weight;
        }
    }
}

vectorized! {
    pub(super) fn normalize_biased<C>(x: &[C], weight: &[C], bias: &[C], mean: C, scale: C, y: &mut [C]) {
        for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * scale * weight + bias;
        }
    }
}

vectorized! {
    /// With n = normalized x and g = grad * weight: `scale * (g - mean(g) - n * mean(g * n))`; without removal of the
    /// mean, without `mean(g)`.
    fn input_gradient<C>(x: &[C], grad: &[C], weight: &[C], mean: C, scale: C, remove_mean: bool, dx: &mut [C]) {
        let count = C::from_f64(x.len() as f64);
        for ((dx, &grad), &weight) in dx.iter_mut().zip(grad).zip(weight) {
            *dx = grad * weight;
        }
        let g_mean = if remove_mean { sum(dx, |g| g) / count } else { C::ZERO };
        let slope = sum2(dx, x, |g, x| g * ((x - mean) * scale)) / count;
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = scale * (*dx - g_mean - (x - mean) * scale * slope);
        }
    }
}

vectorized! {
    /// Adds one row to the sums of `grad * n` and `grad`.
    fn add_parameter_gradients<C>(x: &[C], grad: &[C], mean: C, scale: C, dw: &mut [C], db: &mut [C]) {
        for (((dw, db), &x), &grad) in dw.iter_mut().zip(db).zip(x).zip(grad) {
            *dw += grad * ((x - mean) * scale);
            *db += grad;
        }
    }
}
