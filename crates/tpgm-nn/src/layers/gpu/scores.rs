//! Attention weights.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Mask, Softmax as Kernel, SoftmaxOperands};

use super::{Fresh, Home, Input, Lock, failed, softmax};
use crate::layers::scores::Scores;

pub(in crate::layers) fn forward<H: Home>(op: &Scores, on: &H, [x]: [Input<'_, H>; 1]) -> Result<Fresh<H>> {
    let mut y = Fresh::like(&x)?;
    let mut out = y.output(on)?;
    let lock = op.added.as_ref().map(|(mask, _)| Lock::new(mask));
    let input = lock.as_ref().map(|lock| lock.input(on)).transpose()?;
    let elements = input.as_ref().map(Input::elements).transpose()?;
    let added = elements.zip(op.added.as_ref().map(|(_, strides)| *strides));
    let mask = (op.causal || added.is_some()).then_some(Mask {
        heads: op.heads,
        queries: op.queries,
        causal: op.causal,
        added,
    });
    let operands = SoftmaxOperands { x: x.rows()?, scale: op.scale, mask, y: out.rows()? };
    on.layers().softmax(Kernel::Probability, operands).map_err(failed)?;
    drop(out);
    Ok(y)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &Scores,
    on: &H,
    _x: [&Tensor; 1],
    y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 1]> {
    softmax::gradient(on, Kernel::Probability, op.scale, y, grad)
}
