//! Rotary position embedding.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Pairs as KernelPairs, RotaryOperands, Turn as KernelTurn};

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::rotary::{Pairs, Rotate, Turn};

/// Heads, which may lie beside each other in the rows of a linear layer.
pub(in crate::layers) fn forward<H: Home>(op: &Rotate, on: &H, [x]: [Input<'_, H>; 1]) -> Result<Fresh<H>> {
    turned(op, on, &x, op.turn)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &Rotate,
    on: &H,
    _x: [&Tensor; 1],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 1]> {
    let grad = Lock::new(grad);
    let dx = turned(op, on, &grad.input(on)?, op.turn.reversed())?;
    Ok([Some(dx.into_tensor())])
}

fn turned<H: Home>(op: &Rotate, on: &H, x: &Input<'_, H>, turn: Turn) -> Result<Fresh<H>> {
    let (batches, heads, steps, width) = x.shape().dims4()?;
    let (cos, sin) = (Lock::new(&op.cos), Lock::new(&op.sin));
    let (cos, sin) = (cos.input(on)?, sin.input(on)?);
    let (view, strides) = x.steps()?;
    let mut y = Fresh::like(x)?;
    let mut out = y.output(on)?;
    let operands = RotaryOperands {
        shape: [batches, heads, steps, width],
        x: view,
        strides,
        cos: cos.elements()?,
        sin: sin.elements()?,
        angles_stride: op.angles_stride(),
        y: out.elements(),
    };
    let pairs = match op.pairs {
        Pairs::Halves => KernelPairs::Halves,
        Pairs::Interleaved => KernelPairs::Interleaved,
    };
    let turn = match turn {
        Turn::Forward => KernelTurn::Forward,
        Turn::Back => KernelTurn::Back,
    };
    on.layers().rotary(pairs, turn, operands).map_err(failed)?;
    drop(out);
    Ok(y)
}
