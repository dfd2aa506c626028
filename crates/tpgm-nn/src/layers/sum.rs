//! The sum of two tensors, and features times factors: what joins the branches of a block.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::float::{Float, add, vectorized};
use super::fused::{Arg, Fused};
#[cfg(any(feature = "cuda", test))]
use super::gpu::{Fresh, Home, Input, joins};
use super::heads::on_devices;
use super::storage::{
    BLOCK, Columns, Operand, PIECE, by_dtype, fill, into_storage, into_tensor, load, round, rows_per_piece,
    scratch, store, sum_in_order, widen,
};

/// `x + y`, of one shape. candle's own is on one thread on the CPU.
#[derive(Debug)]
pub(super) struct Sum;

impl Sum {
    fn values<T: Element, C: Float>(x: Slice<'_>, y: Slice<'_>) -> Buffer {
        let (z, _) = fill::<T, ()>(x.len(), PIECE, |range, piece| {
            let [mut x_scratch, mut y_scratch, mut z_scratch] = [(); 3].map(|()| scratch::<T, C>(BLOCK));
            for (i, z) in piece.chunks_mut(BLOCK).enumerate() {
                let start = range.start + i * BLOCK;
                let x = load(x.sub(start..start + z.len()), &mut x_scratch);
                let y = load(y.sub(start..start + z.len()), &mut y_scratch);
                store(z, &mut z_scratch, |z: &mut [C]| add(x, y, z));
            }
        });
        T::buffer(z)
    }
}

impl Fused<2> for Sum {
    on_devices!(2, sum);

    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, [x, y]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let shape = x.shape().clone();
        let (x, y) = (x.slice()?, y.slice()?);
        Ok((into_storage(by_dtype!(x.dtype(), T, C => Self::values::<T, C>(x, y))), shape))
    }

    fn backward(&self, _: [&Tensor; 2], _: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        Ok([Some(grad.clone()), Some(grad.clone())])
    }
}

/// `x * factors`, one factor for each column of `x` of shape (..., features).
#[derive(Debug)]
pub(super) struct ScaleFeatures;

impl ScaleFeatures {
    fn values<T: Element, C: Float>(x: Slice<'_>, factors: Slice<'_>) -> Buffer {
        let width = factors.len();
        let factors = widen::<C>(factors);
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(width) * width, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(width), scratch::<T, C>(width));
            for (row, y) in piece.chunks_mut(width).enumerate() {
                let start = range.start + row * width;
                let x = load(x.sub(start..start + width), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| multiply(x, &factors, y));
            }
        });
        T::buffer(y)
    }

    /// Gradients of x and of the factors, the latter if it is wanted, in one pass.
    fn gradients<T: Element, C: Float>(
        [x, factors, grad]: [Slice<'_>; 3],
        of_factors: bool,
    ) -> (Buffer, Option<Buffer>) {
        let width = factors.len();
        let factors = widen::<C>(factors);
        let (dx, parts) = fill::<T, Vec<f64>>(x.len(), rows_per_piece(width) * width, |range, piece| {
            let [mut x_scratch, mut grad_scratch, mut dx_scratch] = [(); 3].map(|()| scratch::<T, C>(width));
            let mut sum = Columns::<C>::new(if of_factors { width } else { 0 });
            for (row, dx) in piece.chunks_mut(width).enumerate() {
                let start = range.start + row * width;
                let grad = load(grad.sub(start..start + width), &mut grad_scratch);
                store(dx, &mut dx_scratch, |dx: &mut [C]| multiply(grad, &factors, dx));
                if of_factors {
                    let x = load(x.sub(start..start + width), &mut x_scratch);
                    sum.row(|sum| accumulate_products(x, grad, sum));
                }
            }
            sum.finish()
        });
        let d_factors = of_factors.then(|| T::buffer(round(&sum_in_order(width, &parts))));
        (T::buffer(dx), d_factors)
    }
}

impl Fused<2> for ScaleFeatures {
    fn name(&self) -> &'static str {
        "scale-features"
    }

    fn forward(&self, [x, factors]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let shape = x.shape().clone();
        let (x, factors) = (x.slice()?, factors.slice()?);
        Ok((into_storage(by_dtype!(x.dtype(), T, C => Self::values::<T, C>(x, factors))), shape))
    }

    fn backward(&self, [x, factors]: [&Tensor; 2], _: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let operands = [x, factors, grad].map(|tensor| Operand::new("scale-features", tensor));
        let data = [operands[0].slice()?, operands[1].slice()?, operands[2].slice()?];
        let wanted = factors.track_op();
        let (dx, d_factors) = by_dtype!(data[0].dtype(), T, C => Self::gradients::<T, C>(data, wanted));
        let d_factors = d_factors.map(|d_factors| into_tensor(d_factors, factors.shape())).transpose()?;
        Ok([Some(into_tensor(dx, x.shape())?), d_factors])
    }
}

vectorized! {
    fn multiply<C>(x: &[C], y: &[C], z: &mut [C]) {
        for ((z, &x), &y) in z.iter_mut().zip(x).zip(y) {
            *z = x * y;
        }
    }
}

vectorized! {
    fn accumulate_products<C>(x: &[C], y: &[C], sum: &mut [C]) {
        for ((sum, &x), &y) in sum.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
}
