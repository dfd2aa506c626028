//! Channels of batch normalization, forward and backward.
//!
//! A plane is what one image has in one channel. Statistics read every element once: a plane's mean and the squares around
//! it are taken while it is in the cache, and planes are put together in order, in f64. So are the sums of the backward
//! pass. Then forward and backward read and write each element once more.

use tpgm_core::{Buffer, Element, Slice};

use crate::layers::float::{Float, sum, sum2, vectorized};
use crate::layers::storage::{
    PIECE, by_dtype, fill, for_pieces, load, rows_per_piece, scratch, store, widen,
};

/// Mean and variance of each channel.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    pub(super) mean: Vec<f64>,
    /// Divided by the number of elements.
    pub(super) variance: Vec<f64>,
}

/// How a contiguous tensor of shape (batch, channels, ...) is cut into planes.
#[derive(Debug, Clone, Copy)]
struct Planes {
    batch: usize,
    channels: usize,
    size: usize,
}

impl Planes {
    fn new(dims: &[usize]) -> Self {
        Self { batch: dims[0], channels: dims[1], size: dims[2..].iter().product() }
    }

    /// Elements of a channel.
    fn count(&self) -> usize {
        self.batch * self.size
    }

    /// A value for each channel, from its planes in the order of images.
    fn per_channel<R: Send>(&self, f: impl Fn(&mut dyn Iterator<Item = usize>) -> R + Sync) -> Vec<R> {
        let channels_per_piece = (PIECE / self.count().max(1)).max(1);
        let pieces = for_pieces(self.channels, channels_per_piece, |channels| {
            let starts = |channel: usize| {
                (0..self.batch).map(move |image| (image * self.channels + channel) * self.size)
            };
            channels.map(|channel| f(&mut starts(channel))).collect::<Vec<R>>()
        });
        pieces.into_iter().flatten().collect()
    }
}

/// Mean and variance of each channel of `x`; NaN without elements.
pub(super) fn moments(x: Slice<'_>, dims: &[usize]) -> Moments {
    let planes = Planes::new(dims);
    let channels = by_dtype!(x.dtype(), T, C => planes.per_channel(|starts| {
        let mut x_scratch = scratch::<T, C>(planes.size);
        // Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm" (1979): means and squares around them of two
        // sets give those of both. Nothing cancels, however large the mean.
        let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
        let n = planes.size as f64;
        for start in starts {
            let x = load(x.sub(start..start + planes.size), &mut x_scratch);
            let (plane_mean, plane_squares) = plane_moments::<C>(x);
            let difference = plane_mean - mean;
            let total = count + n;
            mean += difference * n / total;
            squares += plane_squares + difference * difference * count * n / total;
            count = total;
        }
        (mean, squares / count)
    }));
    let (mean, variance) = channels.into_iter().unzip();
    Moments { mean, variance }
}

vectorized! {
    /// Mean, and sum of squares around it.
    fn plane_moments<C>(x: &[C]) -> (f64, f64) {
        let n = C::from_f64(x.len() as f64);
        let mean = sum(x, |x| x) / n;
        // The mean is rounded; the sum around it says by how much.
        let rest = sum(x, |x| x - mean).to_f64();
        let squares = sum(x, |x| (x - mean) * (x - mean)).to_f64();
        (mean.to_f64() + rest / x.len() as f64, squares - rest * rest / x.len() as f64)
    }
}

/// The operation: statistics are given.
#[derive(Debug)]
pub(super) struct Normalize {
    mean: Vec<f64>,
    /// One over the standard deviation.
    scale: Vec<f64>,
    /// Whether the statistics are those of the input, and change with it.
    of_batch: bool,
}

/// Sums over each channel.
pub(super) struct Sums {
    /// Of the result's gradient.
    pub(super) of_gradients: Vec<f64>,
    /// Of its products with the normalized input.
    pub(super) of_products: Vec<f64>,
}

impl Normalize {
    pub(super) fn new(moments: &Moments, eps: f64, of_batch: bool) -> Self {
        let scale = moments.variance.iter().map(|variance| (variance + eps).sqrt().recip()).collect();
        Self { mean: moments.mean.clone(), scale, of_batch }
    }

    pub(super) fn values(&self, x: Slice<'_>, dims: &[usize], weight: Slice<'_>, bias: Slice<'_>) -> Buffer {
        by_dtype!(x.dtype(), T, C => T::buffer(self.forward_as::<T, C>(x, dims, weight, bias)))
    }

    fn forward_as<T: Element, C: Float>(
        &self,
        x: Slice<'_>,
        dims: &[usize],
        weight: Slice<'_>,
        bias: Slice<'_>,
    ) -> Vec<T> {
        let Planes { channels, size, .. } = Planes::new(dims);
        let (weight, bias) = (widen::<C>(weight), widen::<C>(bias));
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(size) * size, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(size), scratch::<T, C>(size));
            for (i, y) in piece.chunks_mut(size).enumerate() {
                let start = range.start + i * size;
                let channel = start / size % channels;
                let x = load(x.sub(start..start + size), &mut x_scratch);
                let (mean, scale) = (C::from_f64(self.mean[channel]), C::from_f64(self.scale[channel]));
                store(y, &mut y_scratch, |y: &mut [C]| {
                    normalize(x, mean, scale * weight[channel], bias[channel], y);
                });
            }
        });
        y
    }

    /// What the gradients of weight and bias are, and that of a batch's input needs.
    pub(super) fn sums(&self, x: Slice<'_>, grad: Slice<'_>, dims: &[usize]) -> Sums {
        let planes = Planes::new(dims);
        let channels = by_dtype!(x.dtype(), T, C => planes.per_channel(|starts| {
            let (mut x_scratch, mut grad_scratch) = (scratch::<T, C>(planes.size), scratch::<T, C>(planes.size));
            let mut sums = (0.0, 0.0);
            for start in starts {
                let channel = start / planes.size.max(1) % planes.channels;
                let x = load(x.sub(start..start + planes.size), &mut x_scratch);
                let grad = load(grad.sub(start..start + planes.size), &mut grad_scratch);
                let (mean, scale) = (C::from_f64(self.mean[channel]), C::from_f64(self.scale[channel]));
                let (gradients, products) = plane_sums(x, grad, mean, scale);
                sums = (sums.0 + gradients, sums.1 + products);
            }
            sums
        }));
        let (of_gradients, of_products) = channels.into_iter().unzip();
        Sums { of_gradients, of_products }
    }

    pub(super) fn input_gradient(
        &self,
        x: Slice<'_>,
        weight: Slice<'_>,
        grad: Slice<'_>,
        sums: &Sums,
        dims: &[usize],
    ) -> Buffer {
        by_dtype!(x.dtype(), T, C => {
            T::buffer(self.input_gradient_as::<T, C>(x, weight, grad, sums, dims))
        })
    }

    /// With n = normalized x: `scale * weight * (grad - mean(grad) - n * mean(grad * n))`; with given statistics, without
    /// the means.
    fn input_gradient_as<T: Element, C: Float>(
        &self,
        x: Slice<'_>,
        weight: Slice<'_>,
        grad: Slice<'_>,
        sums: &Sums,
        dims: &[usize],
    ) -> Vec<T> {
        let planes = Planes::new(dims);
        let Planes { channels, size, .. } = planes;
        let weight = widen::<C>(weight);
        let share = if self.of_batch { 1.0 / planes.count() as f64 } else { 0.0 };
        let (dx, _) = fill::<T, ()>(x.len(), rows_per_piece(size) * size, |range, piece| {
            let [mut x_scratch, mut grad_scratch, mut dx_scratch] = [(); 3].map(|()| scratch::<T, C>(size));
            for (i, dx) in piece.chunks_mut(size).enumerate() {
                let start = range.start + i * size;
                let channel = start / size % channels;
                let x = load(x.sub(start..start + size), &mut x_scratch);
                let grad = load(grad.sub(start..start + size), &mut grad_scratch);
                let factor = C::from_f64(self.scale[channel]) * weight[channel];
                let grad_mean = C::from_f64(share * sums.of_gradients[channel]);
                let slope = C::from_f64(share * sums.of_products[channel] * self.scale[channel]);
                let mean = C::from_f64(self.mean[channel]);
                store(dx, &mut dx_scratch, |dx: &mut [C]| {
                    input_gradient(x, grad, mean, factor, grad_mean, slope, dx);
                });
            }
        });
        dx
    }
}

vectorized! {
    fn normalize<C>(x: &[C], mean: C, factor: C, bias: C, y: &mut [C]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - mean) * factor + bias;
        }
    }
}

vectorized! {
    /// Sums of the gradient, and of its products with normalized x.
    fn plane_sums<C>(x: &[C], grad: &[C], mean: C, scale: C) -> (f64, f64) {
        let gradients = sum(grad, |grad| grad).to_f64();
        (gradients, sum2(grad, x, |grad, x| grad * ((x - mean) * scale)).to_f64())
    }
}

vectorized! {
    fn input_gradient<C>(x: &[C], grad: &[C], mean: C, factor: C, grad_mean: C, slope: C, dx: &mut [C]) {
        for ((dx, &x), &grad) in dx.iter_mut().zip(x).zip(grad) {
            *dx = factor * (grad - grad_mean - (x - mean) * slope);
        }
    }
}
