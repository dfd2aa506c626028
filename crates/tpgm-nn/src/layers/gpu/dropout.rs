//! Dropout: the mask of the CPU, drawn where it is used.

use candle_core::{Result, Tensor};

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::dropout::Mask;

pub(in crate::layers) fn forward<H: Home>(op: &Mask, on: &H, [x]: [Input<'_, H>; 1]) -> Result<Fresh<H>> {
    masked(op, on, &x)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &Mask,
    on: &H,
    _x: [&Tensor; 1],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 1]> {
    // The mask goes by an element's index.
    let grad = grad.contiguous()?;
    let grad = Lock::new(&grad);
    Ok([Some(masked(op, on, &grad.input(on)?)?.into_tensor())])
}

fn masked<H: Home>(op: &Mask, on: &H, x: &Input<'_, H>) -> Result<Fresh<H>> {
    let mut y = Fresh::like(x)?;
    let mut out = y.output(on)?;
    on.layers().dropout(op.kernel(), x.elements()?, out.elements()).map_err(failed)?;
    drop(out);
    Ok(y)
}
