//! Softmax and its logarithm.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Mask, Softmax as Kernel, SoftmaxGradients, SoftmaxOperands};

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::softmax::{Scores, Softmax};

fn kernel(op: &Softmax) -> Kernel {
    match op {
        Softmax::Probability(_) => Kernel::Probability,
        Softmax::Logarithm => Kernel::Logarithm,
    }
}

pub(in crate::layers) fn forward<H: Home>(op: &Softmax, on: &H, [x]: [Input<'_, H>; 1]) -> Result<Fresh<H>> {
    let mut y = Fresh::like(&x)?;
    let mut out = y.output(on)?;
    let (added, causal) = match op {
        Softmax::Probability(Scores { mask, causal, .. }) => (mask.as_ref().map(Lock::new), *causal),
        Softmax::Logarithm => (None, false),
    };
    let added = added.as_ref().map(|added| added.input(on)).transpose()?;
    let added = added.as_ref().map(Input::steps).transpose()?;
    let mask = match x.shape().dims() {
        &[_, heads, queries, _] if causal || added.is_some() => Some(Mask { heads, queries, causal, added }),
        _ => None,
    };
    let operands = SoftmaxOperands { x: x.rows()?, scale: op.scale(), mask, y: out.rows()? };
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
    let (y, grad) = (Lock::new(y), Lock::new(grad));
    let (y, grad) = (y.input(on)?, grad.input(on)?);
    let mut dx = Fresh::like(&y)?;
    let mut out = dx.output(on)?;
    let operands = SoftmaxGradients { y: y.rows()?, grad: grad.rows()?, scale: op.scale(), dx: out.rows()? };
    on.layers().softmax_gradient(kernel(op), operands).map_err(failed)?;
    drop(out);
    Ok([Some(dx.into_tensor())])
}
