//! SwiGLU's gated product.

use candle_core::{Result, Tensor};
use tpgm_cuda::layers::{Activation, GatedGradients, GatedOperands};

use super::{Fresh, Home, Input, Lock, failed};
use crate::layers::gated::GatedSilu;

pub(in crate::layers) fn forward<H: Home>(
    _op: &GatedSilu,
    on: &H,
    [gate, up]: [Input<'_, H>; 2],
) -> Result<Fresh<H>> {
    let mut y = Fresh::like(&gate)?;
    let mut out = y.output(on)?;
    let operands = GatedOperands { gate: gate.rows()?, up: up.rows()?, y: out.rows()? };
    on.layers().gated(Activation::Silu, operands).map_err(failed)?;
    drop(out);
    Ok(y)
}

/// Both gradients: one pass makes them.
pub(in crate::layers) fn backward<H: Home>(
    _op: &GatedSilu,
    on: &H,
    [gate, up]: [&Tensor; 2],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 2]> {
    let (gate, up, grad) = (Lock::new(gate), Lock::new(up), Lock::new(grad));
    let (gate, up, grad) = (gate.input(on)?, up.input(on)?, grad.input(on)?);
    let (mut d_gate, mut d_up) = (Fresh::like(&gate)?, Fresh::like(&up)?);
    let (mut to_gate, mut to_up) = (d_gate.output(on)?, d_up.output(on)?);
    let operands = GatedGradients {
        gate: gate.rows()?,
        up: up.rows()?,
        grad: grad.rows()?,
        d_gate: to_gate.rows()?,
        d_up: to_up.rows()?,
    };
    on.layers().gated_gradient(Activation::Silu, operands).map_err(failed)?;
    drop((to_gate, to_up));
    Ok([Some(d_gate.into_tensor()), Some(d_up.into_tensor())])
}
