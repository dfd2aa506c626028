//! What squeeze-excite blocks are made of: the mean of each channel, and a factor for each.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::float::{Float, sum, sum2, vectorized};
use super::fused::{Arg, Fused, apply1, apply2};
use super::storage::{
    Operand, by_dtype, fill, into_storage, into_tensor, load, rows_per_piece, scratch, store,
};

const POOL: &str = "global-avg-pool";
const SCALE: &str = "scale-channels";

/// The mean of each channel over all positions: `x` of shape (batch, channels, ...) becomes (batch, channels).
///
/// # Errors
///
/// If `x` is not of a floating point type, or a channel of it has no elements.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    same_kind(POOL, &[x])?;
    if x.rank() < 3 || x.dims()[2..].contains(&0) {
        let expected = "the input must be (batch, channels, ...) with at least one element per channel";
        return Err(shape_error(POOL, expected, &[x]));
    }
    match Path::of(x) {
        Path::Fused => apply1(Pool, x),
        Path::Composed => composed::global_avg_pool(x),
    }
}

/// `x` of shape (batch, channels, ...), each channel of each image times its element of `scale`, which is (batch, channels)
/// with any number of ones behind. The gradients of both take one pass.
///
/// Source: Hu et al., "Squeeze-and-Excitation Networks" (2018), equation 4.
///
/// # Errors
///
/// If shapes, element types or devices do not fit.
pub fn scale_channels(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    same_kind(SCALE, &[x, scale])?;
    let fits = x.rank() >= 2
        && scale.dims().starts_with(&x.dims()[..2])
        && scale.dims()[2..].iter().all(|&dim| dim == 1);
    if !fits {
        let expected = "input and factors must be (batch, channels, ...) and (batch, channels)";
        return Err(shape_error(SCALE, expected, &[x, scale]));
    }
    match Path::of(x) {
        Path::Fused => apply2(Scale, x, scale),
        Path::Composed => {
            let mut shape = vec![1; x.rank()];
            shape[..2].copy_from_slice(&x.dims()[..2]);
            composed::scale_channels(x, &scale.reshape(shape)?)
        }
    }
}

/// Elements of a channel of an image.
fn plane(dims: &[usize]) -> usize {
    dims[2..].iter().product()
}

struct Pool;

impl Pool {
    fn values<T: Element, C: Float>(x: Slice<'_>, planes: usize, size: usize) -> Buffer {
        let (y, _) = fill::<T, ()>(planes, rows_per_piece(size), |range, y| {
            let mut x_scratch = scratch::<T, C>(size);
            for (y, i) in y.iter_mut().zip(range) {
                let total = plane_sum(load::<C>(x.sub(i * size..(i + 1) * size), &mut x_scratch));
                *y = T::from_f64(total / size as f64);
            }
        });
        T::buffer(y)
    }

    fn gradient<T: Element, C: Float>(grad: Slice<'_>, size: usize) -> Buffer {
        let mut values = vec![C::ZERO; grad.len()];
        C::load(grad, &mut values);
        let planes = rows_per_piece(size);
        let (dx, _) = fill::<T, ()>(grad.len() * size, planes * size, |range, dx| {
            for (dx, &grad) in dx.chunks_mut(size).zip(&values[range.start / size..]) {
                dx.fill(T::from_f64(grad.to_f64() / size as f64));
            }
        });
        T::buffer(dx)
    }
}

impl Fused<1> for Pool {
    fn name(&self) -> &'static str {
        POOL
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let (data, dims) = (x.slice()?, x.dims());
        let y = by_dtype!(data.dtype(), T, C => {
            Self::values::<T, C>(data, dims[0] * dims[1], plane(dims))
        });
        Ok((into_storage(y), (dims[0], dims[1]).into()))
    }

    fn backward(&self, [x]: [&Tensor; 1], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let grad_data = Operand::new(POOL, grad);
        let grad = grad_data.slice()?;
        let dx = by_dtype!(grad.dtype(), T, C => Self::gradient::<T, C>(grad, plane(x.dims())));
        Ok([Some(into_tensor(dx, x.shape())?)])
    }
}

struct Scale;

impl Scale {
    fn values<T: Element, C: Float>(x: Slice<'_>, scale: Slice<'_>, size: usize) -> Buffer {
        let mut scales = vec![C::ZERO; scale.len()];
        C::load(scale, &mut scales);
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(size) * size, |range, y| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(size), scratch::<T, C>(size));
            for (y, start) in y.chunks_mut(size).zip(range.step_by(size)) {
                let x = load(x.sub(start..start + size), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| times(x, scales[start / size], y));
            }
        });
        T::buffer(y)
    }

    /// The gradients of `x` and of the factors.
    fn gradients<T: Element, C: Float>(
        x: Slice<'_>,
        scale: Slice<'_>,
        grad: Slice<'_>,
        size: usize,
    ) -> (Buffer, Buffer) {
        let mut scales = vec![C::ZERO; scale.len()];
        C::load(scale, &mut scales);
        let (dx, sums) = fill::<T, Vec<T>>(x.len(), rows_per_piece(size) * size, |range, dx| {
            let [mut x_scratch, mut grad_scratch, mut dx_scratch] = [(); 3].map(|()| scratch::<T, C>(size));
            let planes = dx.chunks_mut(size).zip(range.step_by(size));
            planes
                .map(|(dx, start)| {
                    let x = load(x.sub(start..start + size), &mut x_scratch);
                    let grad = load(grad.sub(start..start + size), &mut grad_scratch);
                    store(dx, &mut dx_scratch, |dx: &mut [C]| times(grad, scales[start / size], dx));
                    T::from_f64(product_sum(x, grad))
                })
                .collect()
        });
        // Without elements there are no planes, and all sums are zero.
        let mut sums = sums.concat();
        sums.resize(scale.len(), T::default());
        (T::buffer(dx), T::buffer(sums))
    }
}

impl Fused<2> for Scale {
    fn name(&self) -> &'static str {
        SCALE
    }

    fn forward(&self, [x, scale]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let (data, scale) = (x.slice()?, scale.slice()?);
        let size = plane(x.dims()).max(1);
        let y = by_dtype!(data.dtype(), T, C => Self::values::<T, C>(data, scale, size));
        Ok((into_storage(y), x.shape().clone()))
    }

    fn backward(&self, [x, scale]: [&Tensor; 2], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let [x_data, scale_data, grad_data] = [x, scale, grad].map(|tensor| Operand::new(SCALE, tensor));
        let (x_slice, scale_slice, grad) = (x_data.slice()?, scale_data.slice()?, grad_data.slice()?);
        let size = plane(x.dims()).max(1);
        let (dx, ds) = by_dtype!(grad.dtype(), T, C => {
            Self::gradients::<T, C>(x_slice, scale_slice, grad, size)
        });
        Ok([Some(into_tensor(dx, x.shape())?), Some(into_tensor(ds, scale.shape())?)])
    }
}

vectorized! {
    fn plane_sum<C>(x: &[C]) -> f64 {
        // In pieces: f32 loses nothing that matters in so few additions.
        x.chunks(1024).map(|x| sum(x, |x| x).to_f64()).sum()
    }
}

vectorized! {
    fn product_sum<C>(x: &[C], y: &[C]) -> f64 {
        x.chunks(1024).zip(y.chunks(1024)).map(|(x, y)| sum2(x, y, |x, y| x * y).to_f64()).sum()
    }
}

vectorized! {
    fn times<C>(x: &[C], factor: C, y: &mut [C]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * factor;
        }
    }
}
