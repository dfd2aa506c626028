//! Cross-entropy of labels and of soft targets.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Shape, Tensor};
use tpgm_cuda::layers::{
    CrossEntropy as Kernel, CrossEntropyGradients, CrossEntropyOperands, Target as KernelTarget,
};

use super::{Fresh, Home, Input, Lock, failed, on_gpu};
use crate::layers::fused::{Arg, Fused, apply2};

/// The mean over the rows of `logits`, of shape (rows, classes), against labels of shape (rows), or targets of the shape and type
/// of the logits. No gradient reaches the targets.
pub(in crate::layers) fn mean(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<Tensor> {
    apply2(CrossEntropy { smoothing, state: OnceLock::new() }, logits, target)
}

/// The operation on logits and what they should be; used once.
#[derive(Debug)]
pub(in crate::layers) struct CrossEntropy {
    smoothing: f64,
    /// What the kernels keep from the forward pass for the backward pass: some numbers of each row.
    state: OnceLock<Tensor>,
}

impl CrossEntropy {
    /// Where the mean is in the state.
    const MEAN: usize = 2;

    fn kernel(&self) -> Kernel {
        Kernel { smoothing: self.smoothing, ignored: None }
    }
}

fn target<'a, H: Home>(input: &'a Input<'_, H>) -> Result<KernelTarget<'a>> {
    match input.dtype().is_float() {
        true => Ok(KernelTarget::Soft(input.rows()?)),
        false => Ok(KernelTarget::Labels(input.labels()?)),
    }
}

impl Fused<2> for CrossEntropy {
    on_gpu!(2, cross_entropy);

    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn forward(&self, _: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("{}: this form of it is for kernels", self.name())
    }

    fn backward(&self, _: [&Tensor; 2], _: &Tensor, _: &Tensor) -> Result<[Option<Tensor>; 2]> {
        candle_core::bail!("{}: this form of it is for kernels", self.name())
    }
}

pub(in crate::layers) fn forward<H: Home>(
    op: &CrossEntropy,
    on: &H,
    [logits, targets]: [Input<'_, H>; 2],
) -> Result<Fresh<H>> {
    let (rows, _) = logits.shape().dims2()?;
    let mut state = Fresh::<H>::beside(logits.storage, Kernel::state_len(rows), DType::F32)?;
    let mut out = state.output(on)?;
    let operands =
        CrossEntropyOperands { logits: logits.rows()?, target: target(&targets)?, state: out.elements() };
    on.layers().cross_entropy(op.kernel(), operands).map_err(failed)?;
    drop(out);
    let mut loss = Fresh::<H>::beside(logits.storage, (), DType::F32)?;
    let mean = Layout::contiguous_with_offset((), CrossEntropy::MEAN);
    state.storage.copy_strided_src(&mut loss.storage, 0, &mean)?;
    // The operation is made for one forward pass; if candle repeats it, the operands are the same.
    op.state.get_or_init(|| state.into_tensor());
    Ok(loss)
}

pub(in crate::layers) fn backward<H: Home>(
    op: &CrossEntropy,
    on: &H,
    [logits, targets]: [&Tensor; 2],
    _loss: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; 2]> {
    let Some(state) = op.state.get() else { candle_core::bail!("{}: backward without forward", op.name()) };
    let (logits, targets) = (Lock::new(logits), Lock::new(targets));
    let (state, grad) = (Lock::new(state), Lock::new(grad));
    let (logits, targets) = (logits.input(on)?, targets.input(on)?);
    let (state, grad) = (state.input(on)?, grad.input(on)?);
    let mut d_logits = Fresh::like(&logits)?;
    let mut out = d_logits.output(on)?;
    let operands = CrossEntropyGradients {
        logits: logits.rows()?,
        target: target(&targets)?,
        state: state.elements()?,
        grad: grad.elements()?,
        d_logits: out.rows()?,
    };
    on.layers().cross_entropy_gradient(op.kernel(), operands).map_err(failed)?;
    drop(out);
    Ok([Some(d_logits.into_tensor()), None])
}
