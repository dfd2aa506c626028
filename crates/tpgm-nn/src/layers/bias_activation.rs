//! An activation of what a linear layer gives, with the layer's bias inside: one pass over memory less than the two apart.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::activation::Activation;
use super::float::{Float, accumulate, add};
use super::fused::{Arg, Fused};
use super::gpu::on_gpu;
use super::storage::{
    Columns, Operand, by_dtype, fill, into_storage, into_tensor, load, round, rows_per_piece, scratch, store,
    sum_in_order, widen,
};

/// `f(x + bias)`, with a bias for each column of `x` of shape (..., features). In half precision the sum is not rounded.
#[derive(Debug, Clone, Copy)]
pub(super) struct BiasActivation(pub(super) Activation);

impl BiasActivation {
    const NAME: &'static str = "bias-activation";

    fn has_kernel(&self) -> bool {
        self.0.has_kernel()
    }

    fn values<T: Element, C: Float>(self, x: Slice<'_>, bias: Slice<'_>) -> Buffer {
        let width = bias.len();
        let bias = widen::<C>(bias);
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(width) * width, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(width), scratch::<T, C>(width));
            let mut sum = vec![C::ZERO; width];
            for (row, y) in piece.chunks_mut(width).enumerate() {
                let start = range.start + row * width;
                add(load(x.sub(start..start + width), &mut x_scratch), &bias, &mut sum);
                store(y, &mut y_scratch, |y: &mut [C]| self.0.apply(&sum, y));
            }
        });
        T::buffer(y)
    }

    /// The gradients of x and of the bias, the latter if it is wanted.
    fn gradients<T: Element, C: Float>(
        self,
        [x, bias, grad]: [Slice<'_>; 3],
        of_bias: bool,
    ) -> (Buffer, Option<Buffer>) {
        let width = bias.len();
        let bias = widen::<C>(bias);
        let (dx, parts) = fill::<T, Vec<f64>>(x.len(), rows_per_piece(width) * width, |range, piece| {
            let [mut x_scratch, mut grad_scratch, mut dx_scratch] = [(); 3].map(|()| scratch::<T, C>(width));
            let mut sum = vec![C::ZERO; width];
            let mut columns = Columns::<C>::new(if of_bias { width } else { 0 });
            for (row, dx) in piece.chunks_mut(width).enumerate() {
                let start = range.start + row * width;
                add(load(x.sub(start..start + width), &mut x_scratch), &bias, &mut sum);
                let grad = load(grad.sub(start..start + width), &mut grad_scratch);
                store(dx, &mut dx_scratch, |dx: &mut [C]| {
                    self.0.gradient_at(&sum, grad, dx);
                    if of_bias {
                        columns.row(|columns| accumulate(dx, columns));
                    }
                });
            }
            columns.finish()
        });
        let d_bias = of_bias.then(|| T::buffer(round(&sum_in_order(width, &parts))));
        (T::buffer(dx), d_bias)
    }
}

impl Fused<2> for BiasActivation {
    on_gpu!(2, bias_activation, has_kernel);

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn forward(&self, [x, bias]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let shape = x.shape().clone();
        let (x, bias) = (x.slice()?, bias.slice()?);
        Ok((into_storage(by_dtype!(x.dtype(), T, C => self.values::<T, C>(x, bias))), shape))
    }

    fn backward(&self, [x, bias]: [&Tensor; 2], _: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let operands = [x, bias, grad].map(|tensor| Operand::new(Self::NAME, tensor));
        let data = [operands[0].slice()?, operands[1].slice()?, operands[2].slice()?];
        let (dx, d_bias) = by_dtype!(data[0].dtype(), T, C => self.gradients::<T, C>(data, bias.track_op()));
        let d_bias = d_bias.map(|d_bias| into_tensor(d_bias, bias.shape())).transpose()?;
        Ok([Some(into_tensor(dx, x.shape())?), d_bias])
    }
}
