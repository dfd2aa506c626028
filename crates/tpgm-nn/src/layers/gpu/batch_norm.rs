//! Batch normalization with its running statistics.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
use tpgm_cuda::layers::{BatchNorm as Kernel, BatchNormGradients, BatchNormOperands, Statistics};

use super::{Fresh, Home, Input, Lock, failed, on_gpu};
use crate::layers::fused::{Arg, Fused, apply3};

/// The operation on contiguous images, weight and bias; used once.
#[derive(Debug)]
pub(in crate::layers) struct Normalize {
    pub(in crate::layers) kernel: Kernel,
    /// Whether it normalizes with the statistics of the batch.
    pub(in crate::layers) of_batch: bool,
    /// In f32: all means, then all variances.
    pub(in crate::layers) running: Tensor,
    /// Where the running statistics move to, from the forward pass.
    moved: Arc<OnceLock<Tensor>>,
    /// Numbers of each channel, from the forward pass for the backward pass.
    state: OnceLock<Tensor>,
}

impl Normalize {
    pub(in crate::layers) fn new(kernel: Kernel, of_batch: bool, running: Tensor) -> Self {
        Self { kernel, of_batch, running, moved: Arc::default(), state: OnceLock::new() }
    }

    /// The result, and where the running statistics move to, if they do.
    pub(in crate::layers) fn apply(self, args: [&Tensor; 3]) -> Result<(Tensor, Option<Tensor>)> {
        let moved = self.moved.clone();
        let [x, weight, bias] = args;
        let y = apply3(self, &x.contiguous()?, &weight.contiguous()?, &bias.contiguous()?)?;
        Ok((y, moved.get().cloned()))
    }
}

/// Batch, channels, and the elements of a plane.
fn shape(dims: &[usize]) -> [usize; 3] {
    [dims[0], dims[1], dims[2..].iter().product()]
}

impl Fused<3> for Normalize {
    on_gpu!(3, batch_norm);

    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn forward(&self, _: [Arg<'_>; 3]) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("{}: this form of it is for kernels", self.name())
    }

    fn backward(&self, _: [&Tensor; 3], _: &Tensor, _: &Tensor) -> Result<[Option<Tensor>; 3]> {
        candle_core::bail!("{}: this form of it is for kernels", self.name())
    }
}

pub(in crate::layers) fn forward<H: Home>(
    op: &Normalize,
    on: &H,
    [x, weight, bias]: [Input<'_, H>; 3],
) -> Result<Fresh<H>> {
    let shape = shape(x.shape().dims());
    let running = Lock::new(&op.running);
    let running = running.input(on)?;
    let mut y = Fresh::like(&x)?;
    let mut state = Fresh::<H>::beside(x.storage, 2 * shape[1], DType::F32)?;
    let mut moved =
        if op.of_batch { Some(Fresh::<H>::beside(x.storage, 2 * shape[1], DType::F32)?) } else { None };
    let (mut out, mut to_state) = (y.output(on)?, state.output(on)?);
    let mut to_moved = Fresh::outputs(&mut moved, on)?;
    let statistics = match &mut to_moved {
        Some(moved) => Statistics::Batch(Some((running.elements()?, moved.elements()))),
        None => Statistics::Running(running.elements()?),
    };
    let operands = BatchNormOperands {
        x: x.elements()?,
        weight: weight.elements()?,
        bias: bias.elements()?,
        statistics,
        state: to_state.elements(),
        y: out.elements(),
    };
    on.layers().batch_norm(op.kernel, shape, operands).map_err(failed)?;
    drop((out, to_state, to_moved));
    // The operation is made for one forward pass; if candle repeats it, the operands are the same.
    op.state.get_or_init(|| state.into_tensor());
    if let Some(moved) = moved {
        op.moved.get_or_init(|| moved.into_tensor());
    }
    Ok(y)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &Normalize,
    on: &H,
    [x, weight, bias]: [&Tensor; 3],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let Some(state) = op.state.get() else { candle_core::bail!("{}: backward without forward", op.name()) };
    let shape = shape(x.dims());
    let wanted = [x, weight, bias].map(Tensor::track_op);
    let grad = grad.contiguous()?;
    let (x, weight, state, grad) = (Lock::new(x), Lock::new(weight), Lock::new(state), Lock::new(&grad));
    let (x, weight) = (x.input(on)?, weight.input(on)?);
    let (state, grad) = (state.input(on)?, grad.input(on)?);
    let mut dx = Fresh::wanted(wanted[0], &x)?;
    let mut d_weight = Fresh::wanted(wanted[1], &weight)?;
    let mut d_bias = Fresh::wanted(wanted[2], &weight)?;
    let mut to_x = Fresh::outputs(&mut dx, on)?;
    let mut to_weight = Fresh::outputs(&mut d_weight, on)?;
    let mut to_bias = Fresh::outputs(&mut d_bias, on)?;
    let operands = BatchNormGradients {
        x: x.elements()?,
        weight: weight.elements()?,
        grad: grad.elements()?,
        state: state.elements()?,
        of_batch: op.of_batch,
        dx: to_x.as_mut().map(|to| to.elements()),
        d_weight: to_weight.as_mut().map(|to| to.elements()),
        d_bias: to_bias.as_mut().map(|to| to.elements()),
    };
    on.layers().batch_norm_gradient(shape, operands).map_err(failed)?;
    drop((to_x, to_weight, to_bias));
    Ok([dx, d_weight, d_bias].map(|fresh| fresh.map(Fresh::into_tensor)))
}
