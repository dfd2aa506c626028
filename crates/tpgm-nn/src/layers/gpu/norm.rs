//! Layer norm and RMS norm.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Norm, NormGradients, NormOperands};

use super::operands::Output;
use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::norm::Normalize;

fn kernel(op: &Normalize) -> Norm {
    Norm { eps: op.eps, remove_mean: op.remove_mean }
}

/// Of an input, a weight and perhaps a bias.
pub(in crate::layers) fn forward<H: Home, const N: usize>(
    op: &Normalize,
    on: &H,
    args: [Input<'_, H>; N],
) -> Result<Fresh<H>> {
    let (x, weight) = (&args[0], &args[1]);
    let bias = args.get(2).map(Input::elements).transpose()?;
    let mut y = Fresh::like(x)?;
    let mut out = y.output(on)?;
    let operands =
        NormOperands { x: x.rows()?, residual: None, weight: weight.elements()?, bias, y: out.rows()? };
    on.layers().norm(kernel(op), operands).map_err(failed)?;
    drop(out);
    Ok(y)
}

pub(in crate::layers) fn backward<H: Home, const N: usize>(
    op: &Normalize,
    on: &H,
    args: [&Tensor; N],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; N]> {
    let wanted = args.map(Tensor::track_op);
    let of_bias = wanted.get(2).copied().unwrap_or(false);
    let (x, weight, grad) = (Lock::new(args[0]), Lock::new(args[1]), Lock::new(grad));
    let (x, weight, grad) = (x.input(on)?, weight.input(on)?, grad.input(on)?);
    let mut dx = Fresh::wanted(wanted[0], &x)?;
    // The kernel sums for the bias beside the weight alone.
    let mut d_weight = Fresh::wanted(wanted[1] || of_bias, &weight)?;
    let mut d_bias = Fresh::wanted(of_bias, &weight)?;
    {
        let (mut dx, mut d_weight) = (Fresh::outputs(&mut dx, on)?, Fresh::outputs(&mut d_weight, on)?);
        let mut d_bias = Fresh::outputs(&mut d_bias, on)?;
        let operands = NormGradients {
            x: x.rows()?,
            weight: weight.elements()?,
            grad: grad.rows()?,
            carried: None,
            dx: dx.as_mut().map(Output::rows).transpose()?,
            d_weight: d_weight.as_mut().map(Output::elements),
            d_bias: d_bias.as_mut().map(Output::elements),
        };
        on.layers().norm_gradient(kernel(op), operands).map_err(failed)?;
    }
    let mut grads = [dx, d_weight.filter(|_| wanted[1]), d_bias].map(|grad| grad.map(Fresh::into_tensor));
    Ok(std::array::from_fn(|i| grads[i].take()))
}
