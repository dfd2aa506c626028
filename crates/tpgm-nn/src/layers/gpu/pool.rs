//! Maximum over windows.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{MaxPool, MaxPoolGradients};

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::pool::MaxPool2d;

fn kernel(op: &MaxPool2d) -> MaxPool {
    MaxPool { kernel: op.kernel.into(), stride: op.stride.into(), padding: op.padding.into() }
}

/// Of a contiguous image.
pub(in crate::layers) fn forward<H: Home>(
    op: &MaxPool2d,
    on: &H,
    [x]: [Input<'_, H>; 1],
) -> Result<Fresh<H>> {
    let (batch, channels, height, width) = x.shape().dims4()?;
    let Some([out_height, out_width]) = kernel(op).windows([height, width]) else {
        candle_core::bail!("no window fits")
    };
    let mut y = Fresh::beside(x.storage, (batch, channels, out_height, out_width), x.dtype())?;
    let mut out = y.output(on)?;
    let (planes, size) = (batch * channels, [height, width]);
    on.layers().max_pool(kernel(op), planes, size, x.elements()?, out.elements()).map_err(failed)?;
    drop(out);
    Ok(y)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &MaxPool2d,
    on: &H,
    [x]: [&Tensor; 1],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 1]> {
    let (batch, channels, height, width) = x.dims4()?;
    let grad = grad.contiguous()?;
    let (x, grad) = (Lock::new(x), Lock::new(&grad));
    let (x, grad) = (x.input(on)?, grad.input(on)?);
    let mut dx = Fresh::like(&x)?;
    let mut out = dx.output(on)?;
    let operands = MaxPoolGradients { x: x.elements()?, grad: grad.elements()?, dx: out.elements() };
    let (planes, size) = (batch * channels, [height, width]);
    on.layers().max_pool_gradient(kernel(op), planes, size, operands).map_err(failed)?;
    drop(out);
    Ok([Some(dx.into_tensor())])
}
