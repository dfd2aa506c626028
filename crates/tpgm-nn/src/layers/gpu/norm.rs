//! Layer norm and RMS norm.

use candle_core::op::BackpropOp;
use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Norm, NormGradients, NormOperands, Residual};

use super::operands::Output;
use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::norm::{AddNorm, Normalize};

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

/// A sum and its norm, marked as variables if they are `wanted`.
pub(in crate::layers) fn add_forward<H: Home>(
    op: &AddNorm<'_>,
    on: &H,
    [x, y]: [&Tensor; 2],
    wanted: [bool; 2],
) -> Result<[Tensor; 2]> {
    let locks = [x, y, op.weight].map(Lock::new);
    let (x, y, weight) = (locks[0].input(on)?, locks[1].input(on)?, locks[2].input(on)?);
    let bias = op.bias.map(Lock::new);
    let bias = bias.as_ref().map(|bias| bias.input(on)).transpose()?;
    let (mut sum, mut normed) = (Fresh::like(&x)?, Fresh::like(&x)?);
    {
        let (mut sum, mut normed) = (sum.output(on)?, normed.output(on)?);
        let operands = NormOperands {
            x: x.rows()?,
            residual: Some(Residual { value: y.rows()?, sum: sum.rows()? }),
            weight: weight.elements()?,
            bias: bias.as_ref().map(Input::elements).transpose()?,
            y: normed.rows()?,
        };
        on.layers().norm(kernel(&op.op), operands).map_err(failed)?;
    }
    let tensor = |fresh: Fresh<H>, wanted| {
        Tensor::from_storage(H::close(fresh.storage), fresh.shape, BackpropOp::none(), wanted)
    };
    Ok([tensor(sum, wanted[0]), tensor(normed, wanted[1])])
}

/// Gradients of the sum, the weight and the bias.
pub(in crate::layers) fn add_backward<H: Home>(
    op: &AddNorm<'_>,
    on: &H,
    sum: &Tensor,
    carried: Option<&Tensor>,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let of_bias = op.bias.is_some_and(Tensor::track_op);
    let (of_sum, of_weight) = (sum.track_op(), op.weight.track_op());
    let locks = [sum, op.weight, grad].map(Lock::new);
    let (sum, weight, grad) = (locks[0].input(on)?, locks[1].input(on)?, locks[2].input(on)?);
    let carried = carried.map(Lock::new);
    let carried = carried.as_ref().map(|carried| carried.input(on)).transpose()?;
    let mut dx = Fresh::wanted(of_sum, &sum)?;
    // The kernel sums for the bias beside the weight alone.
    let mut d_weight = Fresh::wanted(of_weight || of_bias, &weight)?;
    let mut d_bias = Fresh::wanted(of_bias, &weight)?;
    {
        let (mut dx, mut d_weight) = (Fresh::outputs(&mut dx, on)?, Fresh::outputs(&mut d_weight, on)?);
        let mut d_bias = Fresh::outputs(&mut d_bias, on)?;
        let operands = NormGradients {
            x: sum.rows()?,
            weight: weight.elements()?,
            grad: grad.rows()?,
            carried: carried.as_ref().map(Input::rows).transpose()?,
            dx: dx.as_mut().map(Output::rows).transpose()?,
            d_weight: d_weight.as_mut().map(Output::elements),
            d_bias: d_bias.as_mut().map(Output::elements),
        };
        on.layers().norm_gradient(kernel(&op.op), operands).map_err(failed)?;
    }
    Ok([dx, d_weight.filter(|_| of_weight), d_bias].map(|grad| grad.map(Fresh::into_tensor)))
}
