//! The gated product of SwiGLU.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::float::{Float, logistic, vectorized};
use super::fused::{Arg, Fused, apply2};
use super::gpu::on_gpu;
use super::storage::{
    BLOCK, Operand, PIECE, by_dtype, fill, into_storage, into_tensor, load, scratch, store,
};

const NAME: &str = "gated-silu";

/// `silu(gate) * up`, of two tensors of one shape: what Llama's feed-forward network narrows again. One pass over memory in place of
/// two, and one rounding.
///
/// Source: Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202), equation 5.
///
/// # Errors
///
/// If shapes, element types or devices differ.
pub fn gated_silu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    same_kind(NAME, &[gate, up])?;
    if gate.dims() != up.dims() {
        return Err(shape_error(NAME, "gate and factor must have one shape", &[gate, up]));
    }
    match Path::with_kernels(gate) {
        Path::Fused => apply2(GatedSilu, gate, up),
        Path::Composed => composed::gated_silu(gate, up),
    }
}

/// The operation. Backward needs both inputs.
#[derive(Debug)]
pub(super) struct GatedSilu;

impl GatedSilu {
    fn values<T: Element, C: Float>(gate: Slice<'_>, up: Slice<'_>) -> Buffer {
        let (y, _) = fill::<T, ()>(gate.len(), PIECE, |range, piece| {
            let [mut gate_scratch, mut up_scratch, mut y_scratch] = [(); 3].map(|()| scratch::<T, C>(BLOCK));
            for (i, y) in piece.chunks_mut(BLOCK).enumerate() {
                let start = range.start + i * BLOCK;
                let gate = load(gate.sub(start..start + y.len()), &mut gate_scratch);
                let up = load(up.sub(start..start + y.len()), &mut up_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| product(gate, up, y));
            }
        });
        T::buffer(y)
    }

    /// One of the two gradients, from gate, factor and the result's gradient.
    fn gradient<T: Element, C: Float>(
        [gate, up, grad]: [Slice<'_>; 3],
        slope: impl Fn(&[C], &[C], &[C], &mut [C]) + Sync,
    ) -> Buffer {
        let (out, _) = fill::<T, ()>(gate.len(), PIECE, |range, piece| {
            let mut scratches = [(); 4].map(|()| scratch::<T, C>(BLOCK));
            let [gate_scratch, up_scratch, grad_scratch, out_scratch] = &mut scratches;
            for (i, out) in piece.chunks_mut(BLOCK).enumerate() {
                let start = range.start + i * BLOCK;
                let gate = load(gate.sub(start..start + out.len()), gate_scratch);
                let up = load(up.sub(start..start + out.len()), up_scratch);
                let grad = load(grad.sub(start..start + out.len()), grad_scratch);
                store(out, out_scratch, |out: &mut [C]| slope(gate, up, grad, out));
            }
        });
        T::buffer(out)
    }
}

impl Fused<2> for GatedSilu {
    on_gpu!(2, gated);

    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [gate, up]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let (gate_data, up) = (gate.slice()?, up.slice()?);
        let y = by_dtype!(up.dtype(), T, C => Self::values::<T, C>(gate_data, up));
        Ok((into_storage(y), gate.shape().clone()))
    }

    fn backward(&self, [gate, up]: [&Tensor; 2], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let operands = [gate, up, grad].map(|tensor| Operand::new(NAME, tensor));
        let data = [operands[0].slice()?, operands[1].slice()?, operands[2].slice()?];
        let d_gate = gate
            .track_op()
            .then(|| by_dtype!(data[0].dtype(), T, C => Self::gradient::<T, C>(data, gate_slope)));
        let d_up =
            up.track_op().then(|| by_dtype!(data[0].dtype(), T, C => Self::gradient::<T, C>(data, up_slope)));
        let tensor =
            |buffer: Option<Buffer>| buffer.map(|buffer| into_tensor(buffer, gate.shape())).transpose();
        Ok([tensor(d_gate)?, tensor(d_up)?])
    }
}

vectorized! {
    fn product<C>(gate: &[C], up: &[C], y: &mut [C]) {
        for ((y, &x), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = x * logistic(x).0 * up;
        }
    }
}

vectorized! {
    fn gate_slope<C>(gate: &[C], up: &[C], grad: &[C], out: &mut [C]) {
        for (((out, &x), &up), &grad) in out.iter_mut().zip(gate).zip(up).zip(grad) {
            let (s, slope) = logistic(x);
            *out = grad * up * (s + x * slope);
        }
    }
}

vectorized! {
    fn up_slope<C>(gate: &[C], _up: &[C], grad: &[C], out: &mut [C]) {
        for ((out, &x), &grad) in out.iter_mut().zip(gate).zip(grad) {
            *out = grad * (x * logistic(x).0);
        }
    }
}
