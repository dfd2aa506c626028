//! A sum of two tensors and its norm, in one pass each way: what a block does where its branches meet.

use candle_core::op::BackpropOp;
use candle_core::{Result, Storage, Tensor};
use tpgm_core::{Element, Slice};

use super::Normalize;
use super::kernels::{Grads, normalize, normalize_biased, statistics};
use crate::layers::float::{Float, add};
#[cfg(any(feature = "cuda", test))]
use crate::layers::gpu;
use crate::layers::storage::{
    Operand, by_dtype, fill2, into_storage, into_tensor, load, rows_per_piece, scratch, store, widen,
};

/// Arguments of the sum and its norm. All are contiguous; the tensors that it makes are outside of any graph, and marked as variables
/// if an argument is in one.
#[derive(Debug, Clone, Copy)]
pub(in crate::layers) struct AddNorm<'a> {
    pub(in crate::layers) op: Normalize,
    pub(in crate::layers) weight: &'a Tensor,
    pub(in crate::layers) bias: Option<&'a Tensor>,
}

impl AddNorm<'_> {
    /// `x + y`, rounded to the element type, and its norm.
    pub(in crate::layers) fn forward(&self, x: &Tensor, y: &Tensor) -> Result<[Tensor; 2]> {
        let wanted_sum = x.track_op() || y.track_op();
        let of_weights = self.weight.track_op() || self.bias.is_some_and(Tensor::track_op);
        let wanted = [wanted_sum, wanted_sum || of_weights];
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = x.device() {
            return gpu::norm::add_forward(self, &gpu::cuda::Stream::of(device)?, [x, y], wanted);
        }
        #[cfg(test)]
        if let Some(host) = gpu::host::running() {
            return gpu::norm::add_forward(self, &host, [x, y], wanted);
        }
        let name = self.op.op_name();
        let [x_data, y_data, weight] = [x, y, self.weight].map(|tensor| Operand::new(name, tensor));
        let bias = self.bias.map(|bias| Operand::new(name, bias));
        let (x_slice, y_slice, weight) = (x_data.slice()?, y_data.slice()?, weight.slice()?);
        let bias = bias.as_ref().map(Operand::slice).transpose()?;
        let made = by_dtype!(x_slice.dtype(), T, C => {
            self.values::<T, C>([x_slice, y_slice], weight, bias).map(T::buffer)
        });
        let [sum, normed] = made.map(|buffer| Storage::Cpu(into_storage(buffer)));
        let tensor = |storage, wanted| Tensor::from_storage(storage, x.shape(), BackpropOp::none(), wanted);
        Ok([tensor(sum, wanted[0]), tensor(normed, wanted[1])])
    }

    fn values<T: Element, C: Float>(
        &self,
        [a, b]: [Slice<'_>; 2],
        weight: Slice<'_>,
        bias: Option<Slice<'_>>,
    ) -> [Vec<T>; 2] {
        let features = weight.len();
        let (weight, bias) = (widen::<C>(weight), bias.map(widen::<C>));
        let Normalize { eps, remove_mean } = self.op;
        fill2::<T>(a.len(), rows_per_piece(features) * features, |range, [sums, normed]| {
            let mut scratches = [(); 5].map(|()| scratch::<T, C>(features));
            let [a_scratch, b_scratch, sum_scratch, y_scratch, rounded] = &mut scratches;
            for (row, (sum, y)) in sums.chunks_mut(features).zip(normed.chunks_mut(features)).enumerate() {
                let start = range.start + row * features;
                let a = load(a.sub(start..start + features), a_scratch);
                let b = load(b.sub(start..start + features), b_scratch);
                store(sum, sum_scratch, |sum: &mut [C]| add(a, b, sum));
                // What is there, rounded: backward reads the same.
                let sum = load(T::slice(sum), rounded);
                store(y, y_scratch, |y: &mut [C]| {
                    let (mean, scale) = statistics(sum, C::from_f64(eps), remove_mean);
                    match &bias {
                        Some(bias) => normalize_biased(sum, &weight, bias, mean, scale, y),
                        None => normalize(sum, &weight, mean, scale, y),
                    }
                });
            }
        })
    }

    /// The gradients of the sum, the weight and the bias, of those that want one. `grad` is that of the norm, `carried` what the sum
    /// gets from elsewhere.
    pub(in crate::layers) fn backward(
        &self,
        sum: &Tensor,
        carried: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = sum.device() {
            return gpu::norm::add_backward(self, &gpu::cuda::Stream::of(device)?, sum, carried, grad);
        }
        #[cfg(test)]
        if let Some(host) = gpu::host::running() {
            return gpu::norm::add_backward(self, &host, sum, carried, grad);
        }
        let name = self.op.op_name();
        let grads = {
            let [sum_data, weight, grad] = [sum, self.weight, grad].map(|tensor| Operand::new(name, tensor));
            let carried = carried.map(|carried| Operand::new(name, carried));
            let wanted = Grads {
                x: sum.track_op(),
                weight: self.weight.track_op(),
                bias: self.bias.is_some_and(Tensor::track_op),
            };
            let carried = carried.as_ref().map(Operand::slice).transpose()?;
            self.op.gradients(sum_data.slice()?, weight.slice()?, grad.slice()?, carried, wanted)
        };
        let tensor = |buffer: Option<_>, shape| buffer.map(|buffer| into_tensor(buffer, shape)).transpose();
        Ok([
            tensor(grads.x, sum.shape())?,
            tensor(grads.weight, self.weight.shape())?,
            tensor(grads.bias, self.weight.shape())?,
        ])
    }
}
