//! Activations with a bias inside.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::ActivationGradients;

use super::activation::kernel;
use super::bias::activated;
use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::bias_activation::BiasActivation;

pub(in crate::layers) fn forward<H: Home>(
    op: &BiasActivation,
    on: &H,
    args: [Input<'_, H>; 2],
) -> Result<Fresh<H>> {
    activated(on, kernel(&op.0)?, args)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &BiasActivation,
    on: &H,
    [x, bias]: [&Tensor; 2],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 2]> {
    let of_bias = bias.track_op();
    let (x, bias, grad) = (Lock::new(x), Lock::new(bias), Lock::new(grad));
    let (x, bias, grad) = (x.input(on)?, bias.input(on)?, grad.input(on)?);
    let mut dx = Fresh::like(&x)?;
    let mut d_bias = Fresh::wanted(of_bias, &bias)?;
    {
        let (mut dx, mut d_bias) = (dx.output(on)?, Fresh::outputs(&mut d_bias, on)?);
        let operands = ActivationGradients {
            x: x.rows()?,
            bias: Some(bias.elements()?),
            grad: grad.rows()?,
            dx: dx.rows()?,
            d_bias: d_bias.as_mut().map(super::operands::Output::elements),
        };
        on.layers().activation_gradient(kernel(&op.0)?, operands).map_err(failed)?;
    }
    Ok([Some(dx.into_tensor()), d_bias.map(Fresh::into_tensor)])
}
