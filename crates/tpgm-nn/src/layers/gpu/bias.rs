//! Biases: a sum with every row, and sums of columns.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Activation, ActivationOperands};

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::linear::AddBias;

pub(in crate::layers) fn forward<H: Home>(
    _op: &AddBias,
    on: &H,
    args: [Input<'_, H>; 2],
) -> Result<Fresh<H>> {
    activated(on, Activation::Identity, args)
}

/// An activation of `x + bias`.
pub(super) fn activated<H: Home>(
    on: &H,
    activation: Activation,
    [x, bias]: [Input<'_, H>; 2],
) -> Result<Fresh<H>> {
    let mut y = Fresh::like(&x)?;
    let mut out = y.output(on)?;
    let operands = ActivationOperands { x: x.rows()?, bias: Some(bias.elements()?), y: out.rows()? };
    on.layers().activation(activation, operands).map_err(failed)?;
    drop(out);
    Ok(y)
}

pub(in crate::layers) fn backward<H: Home>(
    _op: &AddBias,
    on: &H,
    [_, bias]: [&Tensor; 2],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 2]> {
    Ok([Some(grad.clone()), gradient(on, bias, grad)?])
}

/// The gradient of a bias, if it is wanted: sums of the columns of `grad`.
pub(in crate::layers) fn gradient<H: Home>(on: &H, bias: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if !bias.track_op() {
        return Ok(None);
    }
    let grad = Lock::new(grad);
    let grad = grad.input(on)?;
    let mut sum = Fresh::beside(grad.storage, bias.shape().clone(), bias.dtype())?;
    let mut out = sum.output(on)?;
    on.layers().bias_gradient(grad.rows()?, out.elements()).map_err(failed)?;
    drop(out);
    Ok(Some(sum.into_tensor()))
}
