//! Activations.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Activation as Kernel, ActivationGradients, ActivationOperands};

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::activation::Activation;

pub(in crate::layers) fn forward<H: Home>(
    op: &Activation,
    on: &H,
    [x]: [Input<'_, H>; 1],
) -> Result<Fresh<H>> {
    let mut y = Fresh::like(&x)?;
    let mut out = y.output(on)?;
    let operands = ActivationOperands { x: x.rows()?, bias: None, y: out.rows()? };
    on.layers().activation(kernel(op)?, operands).map_err(failed)?;
    drop(out);
    Ok(y)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &Activation,
    on: &H,
    [x]: [&Tensor; 1],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 1]> {
    let (x, grad) = (Lock::new(x), Lock::new(grad));
    let (x, grad) = (x.input(on)?, grad.input(on)?);
    let mut dx = Fresh::like(&x)?;
    let mut out = dx.output(on)?;
    let operands =
        ActivationGradients { x: x.rows()?, bias: None, grad: grad.rows()?, dx: out.rows()?, d_bias: None };
    on.layers().activation_gradient(kernel(op)?, operands).map_err(failed)?;
    drop(out);
    Ok([Some(dx.into_tensor())])
}

pub(super) fn kernel(op: &Activation) -> Result<Kernel> {
    Ok(match op {
        Activation::Gelu => Kernel::Gelu,
        Activation::GeluTanh => Kernel::GeluTanh,
        Activation::QuickGelu => Kernel::QuickGelu,
        Activation::Silu => Kernel::Silu,
        Activation::Relu => Kernel::Relu,
        Activation::Relu6 | Activation::Sigmoid | Activation::HardSigmoid | Activation::HardSwish => {
            candle_core::bail!("{op:?}: there is no kernel")
        }
    })
}
