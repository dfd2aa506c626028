//! Several layers as one of candle's operations, with a backward pass of its own inside.
//!
//! candle's backward pass clears a gradient for every place that a tensor is used at and adds to it, which moves four times the
//! tensor's bytes, on one thread on the CPU. A [`block`] keeps a tape of its layers and goes back over it itself: the first part of a
//! gradient is the gradient, a second is added, and nothing is cleared. To candle the block is one operation of its input and its
//! parameters ([`super::links`]), so that `loss.backward()` finds their gradients as ever.
//!
//! Layers are asked for by the functions of [`Tape`], of [`Value`]s, on which candle's own operations cannot be called by mistake.
//! Where a block cannot be recorded, the same functions ask the layers one by one, in candle's graph: [`Tape::of`] decides, for the
//! whole block. Values have the same bits either way, gradients too but for the order in which more than two parts are added.

mod attention;
mod ops;
#[cfg(test)]
mod tests;
mod trace;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

#[cfg(feature = "cuda")]
use candle_core::Shape;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, TensorId};

pub(crate) use self::attention::attend;
#[cfg(test)]
pub(crate) use self::trace::apart;
pub use self::trace::{Recorded, recorded};
use super::check::Path;
use super::fused::{Custom, Fused};
use super::gpu;
use super::links::{Many, apply_many};
use super::sum::Sum;

/// A tensor inside a block.
#[derive(Debug, Clone)]
pub(crate) struct Value(Tensor);

impl Value {
    /// Its dimensions.
    pub(crate) fn dims(&self) -> &[usize] {
        self.0.dims()
    }
}

/// What a block has that a GPU may have no kernel for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    /// Factors of features.
    pub(crate) factors: bool,
    /// A norm that kernels do not compute.
    pub(crate) odd_norm: bool,
    /// A mask, or another constant, that is trained.
    pub(crate) trained_constant: bool,
}

/// The layers of a block, as they are asked for.
pub(crate) struct Tape {
    record: Option<Record>,
}

#[derive(Default)]
struct Record {
    steps: Vec<Step>,
    /// Results of steps.
    made: HashSet<TensorId>,
    /// Tensors that a step has read or keeps.
    used: HashSet<TensorId>,
    /// What gradients flow to from here: the block's input and parameters that want one.
    leaves: Vec<Tensor>,
}

/// From the gradients of a step's results, where there are some, to those of its arguments.
type Back = Box<dyn Fn(&[Option<Tensor>]) -> Result<Vec<(TensorId, Tensor)>> + Send + Sync>;

struct Step {
    results: Vec<TensorId>,
    back: Back,
}

/// What the backward pass of an operation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Arguments,
    Result,
    Nothing,
}

/// A block of layers over `x` and whatever parameters they have.
///
/// # Errors
///
/// What `layers` returns.
pub(crate) fn block(
    name: &'static str,
    x: &Tensor,
    parts: Parts,
    layers: impl FnOnce(&mut Tape, &Value) -> Result<Value>,
) -> Result<Tensor> {
    let mut tape = Tape::of(x, parts);
    let y = layers(&mut tape, &Value(x.clone()))?.0;
    match tape.record {
        None => Ok(y),
        Some(record) => record.finish(name, y),
    }
}

impl Tape {
    /// The one place where it is decided who computes a block over `x`: one operation with a tape, or layer by layer. The latter
    /// where a layer is composed of candle's operations, which only candle's graph goes back through.
    fn of(x: &Tensor, parts: Parts) -> Self {
        let has_kernels = !(parts.factors || parts.odd_norm);
        let fused = Path::with_kernels(x) == Path::Fused && (gpu::takes(x).is_none() || has_kernels);
        let recorded = fused && !parts.trained_constant && !trace::layer_by_layer();
        Self { record: recorded.then(Record::default) }
    }

    /// An operation on the tape.
    fn fused<F: Fused<N>, const N: usize>(&mut self, op: F, args: [&Tensor; N], keep: Keep) -> Result<Value> {
        let record = self.record.as_mut().expect("layers are asked for their own operations without a tape");
        let mut laid_out = Vec::with_capacity(N);
        for arg in args {
            laid_out.push(gpu::laid_out(op.kernels(), arg)?);
        }
        let Ok(args) = <[Tensor; N]>::try_from(laid_out) else { unreachable!("one for each argument") };
        let op = Custom(op);
        let y = op.run(args.each_ref())?;
        trace::note(op.0.name(), &args, &[&y]);
        if y.track_op() {
            let wanted: Vec<Option<TensorId>> =
                args.iter().map(|arg| arg.track_op().then(|| arg.id())).collect();
            let result = (keep == Keep::Result).then(|| y.clone());
            record.note(&args, &[&y], result.as_slice());
            let args = (keep == Keep::Arguments).then_some(args);
            record.push(&[&y], move |grads| {
                let [Some(grad)] = grads else { return Ok(vec![]) };
                // What is not kept is not read, so that any tensor stands for it.
                let args = args.as_ref().map_or([grad; N], |args| args.each_ref());
                let found = op.backward(args, result.as_ref().unwrap_or(grad), grad)?;
                let found = wanted.iter().zip(found);
                Ok(found.filter_map(|(id, found)| Some(((*id)?, found?))).collect())
            });
        }
        Ok(Value(y))
    }
}

impl Record {
    /// What a step reads, makes and keeps of what it makes.
    fn note(&mut self, args: &[Tensor], results: &[&Tensor], kept: &[Tensor]) {
        for arg in args {
            if arg.track_op() && !self.made.contains(&arg.id()) && !self.used.contains(&arg.id()) {
                self.leaves.push(arg.clone());
            }
            self.used.insert(arg.id());
        }
        self.made.extend(results.iter().map(|result| result.id()));
        self.used.extend(kept.iter().map(Tensor::id));
    }

    fn push(
        &mut self,
        results: &[&Tensor],
        back: impl Fn(&[Option<Tensor>]) -> Result<Vec<(TensorId, Tensor)>> + Send + Sync + 'static,
    ) {
        let results = results.iter().map(|result| result.id()).collect();
        self.steps.push(Step { results, back: Box::new(back) });
    }

    /// The block's result as candle's.
    fn finish(self, name: &'static str, y: Tensor) -> Result<Tensor> {
        let Self { steps, made, used, leaves } = self;
        if !made.contains(&y.id()) {
            // Nothing wants a gradient, or the input comes out as it went in.
            return Ok(y);
        }
        let (output, shape) = (y.id(), y.shape().clone());
        // Nobody else looks at the result of the last step, so its memory moves into candle's tensor.
        let y = if used.contains(&output) { y.copy()? } else { y };
        let storage = Take::from(&y)?;
        apply_many(Block { name, steps, output }, leaves, (storage, shape))
    }
}

/// A block on its way back.
struct Block {
    name: &'static str,
    steps: Vec<Step>,
    output: TensorId,
}

impl Many for Block {
    fn name(&self) -> &'static str {
        self.name
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut grads = HashMap::from([(self.output, grad.clone())]);
        for step in self.steps.iter().rev() {
            let of_results: Vec<Option<Tensor>> = step.results.iter().map(|id| grads.remove(id)).collect();
            if of_results.iter().all(Option::is_none) {
                continue;
            }
            for (id, part) in (step.back)(&of_results)? {
                let sum = match grads.remove(&id) {
                    None => part,
                    Some(before) => Custom(Sum).run([&before.contiguous()?, &part.contiguous()?])?,
                };
                grads.insert(id, sum);
            }
        }
        // candle wants one for each; what the result does not depend on has none.
        args.iter()
            .map(|arg| grads.remove(&arg.id()).map_or_else(|| arg.zeros_like(), Ok).map(Some))
            .collect()
    }
}

/// Moves a tensor's memory out of it.
struct Take(Mutex<Option<Storage>>);

impl Take {
    fn from(tensor: &Tensor) -> Result<Storage> {
        let take = Self(Mutex::new(None));
        tensor.inplace_op1(&take)?;
        let taken = take.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        taken.ok_or_else(|| candle_core::Error::msg("a block on a device that it cannot be recorded on"))
    }

    fn put(&self, storage: Storage) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(storage);
    }
}

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        self.put(Storage::Cpu(std::mem::replace(storage, CpuStorage::F32(vec![]))));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, _: &Layout) -> Result<()> {
        use candle_core::backend::{BackendDevice, BackendStorage};
        // SAFETY: nobody reads what is left behind.
        let left = unsafe { storage.device().alloc_uninit(&Shape::from(1usize), storage.dtype()) }?;
        self.put(Storage::Cuda(std::mem::replace(storage, left)));
        Ok(())
    }
}
