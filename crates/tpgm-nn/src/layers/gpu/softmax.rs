//! Softmax and its logarithm.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Softmax as Kernel, SoftmaxGradients, SoftmaxOperands};

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::softmax::Softmax;

fn kernel(op: &Softmax) -> Kernel {
    match op {
        Softmax::Probability => Kernel::Probability,
        Softmax::Logarithm => Kernel::Logarithm,
    }
}

pub(in crate::layers) fn forward<H: Home>(op: &Softmax, on: &H, [x]: [Input<'_, H>; 1]) -> Result<Fresh<H>> {
    let mut y = Fresh::like(&x)?;
    let mut out = y.output(on)?;
    let operands = SoftmaxOperands { x: x.rows()?, scale: 1.0, mask: None, y: out.rows()? };
    on.layers().softmax(kernel(op), operands).map_err(failed)?;
    drop(out);
    Ok(y)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &Softmax,
    on: &H,
    _x: [&Tensor; 1],
    y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 1]> {
    gradient(on, kernel(op), 1.0, y, grad)
}

/// The gradient of what is scaled before it, from the result.
pub(super) fn gradient<H: Home>(
    on: &H,
    kernel: Kernel,
    scale: f64,
    y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 1]> {
    let (y, grad) = (Lock::new(y), Lock::new(grad));
    let (y, grad) = (y.input(on)?, grad.input(on)?);
    let mut dx = Fresh::like(&y)?;
    let mut out = dx.output(on)?;
    let operands = SoftmaxGradients { y: y.rows()?, grad: grad.rows()?, scale, dx: out.rows()? };
    on.layers().softmax_gradient(kernel, operands).map_err(failed)?;
    drop(out);
    Ok([Some(dx.into_tensor())])
}
