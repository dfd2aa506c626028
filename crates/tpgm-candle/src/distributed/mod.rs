//! Training on several devices: gradients averaged over ranks before the step.
//!
//! Every rank holds the whole model and works on its own part of each batch. Gradients become their mean over all ranks
//! before anything else looks at them, so products, clipping, radii and steps are the same on every rank, to the bit,
//! and nothing else has to be sent.
//!
//! A rank is a thread or a process with a [`Communicator`]. Give it to the optimizer
//! ([`OptimizerBuilder::communicator`](crate::OptimizerBuilder::communicator)), to [`Tpgm`](crate::Tpgm::communicator),
//! or, for another optimizer, call [`average_gradients`] between the backward pass and the step.
//!
//! ```
//! use std::sync::Arc;
//! use std::thread;
//!
//! use candle_core::{Device, Tensor, Var};
//! use tpgm_candle::distributed::{Communicator, InProcess};
//! use tpgm_candle::{AdamW, Ftp, Param, Params, RobustOptimizer};
//!
//! let batch = [[1.0f32, 2.0], [3.0, -1.0]]; // one row for each of two ranks
//! let rank = move |communicator: InProcess| -> tpgm_candle::Result<Vec<f32>> {
//!     let rows = Tensor::new(&batch[communicator.rank()], &Device::Cpu)?;
//!     let weight = Var::new(&[0.5f32, 0.5], &Device::Cpu)?;
//!     let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
//!     let mut optimizer = RobustOptimizer::builder(&params)
//!         .rule(AdamW::default().lr(0.1))
//!         .constraint(Ftp::default())
//!         .communicator(Arc::new(communicator))
//!         .build()?;
//!     for _ in 0..3 {
//!         optimizer.backward_step(&(weight.as_tensor() - &rows)?.sqr()?.sum_all()?)?;
//!     }
//!     Ok(weight.to_vec1()?)
//! };
//! let ranks: Vec<_> = InProcess::group(2).into_iter().map(|c| thread::spawn(move || rank(c))).collect();
//! let weights = ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(weights[0], weights[1]);
//! # Ok::<(), tpgm_candle::Error>(())
//! ```
//!
//! # When something goes wrong on one rank
//!
//! A step happens on all ranks or on none. A rank whose loss, gradients or operands are unusable says so to the others
//! ([`Communicator::refuse`]) and returns its own error; the others return [`Error::Ranks`] with the rank and its reason,
//! and all may go on. A NaN in one rank's gradient makes the mean NaN, which every rank refuses by itself. Ranks that give
//! different tensors all get an error that names the first one. A rank that leaves ends the group.

mod error;
mod in_process;
mod mean;
#[cfg(feature = "nccl")]
mod nccl;
mod problem;

use std::fmt::Debug;

use bytemuck::cast_slice;
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use tpgm_core::Slice;

pub use self::error::{Error, Result};
pub use self::in_process::InProcess;
#[cfg(feature = "nccl")]
pub use self::nccl::{GroupId, Nccl};
pub use self::problem::RankProblem;
use crate::engine::Operands;
use crate::params::{Anchor, Param, Params};

/// A tensor with its name, which errors use.
pub type Named<'a> = (&'a str, &'a Tensor);

/// One rank's end of a group of ranks that train one model.
///
/// Calls are collective: every rank makes the same ones in the same order, with tensors of the same names, shapes and
/// types, and returns when all have come. A call happens on all ranks or on none. All ranks end with the same bits.
pub trait Communicator: Debug + Send + Sync {
    /// Which rank this is, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are, at least 1.
    fn size(&self) -> usize;

    /// Replaces every tensor by its mean over all ranks, in place. f32, f16, bf16 and f64, contiguous.
    ///
    /// # Errors
    ///
    /// [`Error::Ranks`] if another rank refused, left, or gave other tensors; [`Error::Device`](crate::engine::Error::Device) or another error about a
    /// tensor that this communicator cannot work on, which the other ranks are told. Nothing was changed then.
    fn all_reduce_mean(&self, tensors: &[Named<'_>]) -> Result<()>;

    /// Replaces every tensor by that of rank 0, in place.
    ///
    /// # Errors
    ///
    /// As [`Communicator::all_reduce_mean`].
    fn broadcast(&self, tensors: &[Named<'_>]) -> Result<()>;

    /// Waits until all ranks are here.
    ///
    /// # Errors
    ///
    /// [`Error::Ranks`] if another rank refused, left, or made another call.
    fn barrier(&self) -> Result<()>;

    /// Takes part in the call that the other ranks make next by making it fail for all of them, for the reason given.
    ///
    /// # Errors
    ///
    /// [`Error::Ranks`] if another rank left.
    fn refuse(&self, reason: &str) -> Result<()>;
}

/// Replaces the gradients of `params` by their means over all ranks, for a step of any optimizer. Gradients of other
/// tensors stay as they are. Costs what the communicator costs, and a copy of gradients that are not contiguous.
///
/// [`RobustOptimizer`](crate::RobustOptimizer) with a communicator does this itself.
///
/// # Errors
///
/// A gradient of another shape, type or device than its parameter, or as [`Communicator::all_reduce_mean`]. Nothing was
/// changed then.
pub fn average_gradients(
    communicator: &dyn Communicator,
    params: &Params,
    grads: &mut GradStore,
) -> Result<()> {
    let operands = or_refuse(Some(communicator), Operands::new(&params.all()))?;
    let own = operands.vars().map(|(_, var)| grads.get(var).cloned()).collect();
    for ((_, var), mean) in operands.vars().zip(average(communicator, &operands, own)?) {
        mean.map(|mean| grads.insert(var, mean));
    }
    Ok(())
}

/// The means over all ranks of gradients, one entry per variable: in the memory of the gradients where that is theirs
/// alone.
pub(crate) fn average(
    communicator: &dyn Communicator,
    operands: &Operands,
    grads: Vec<Option<Tensor>>,
) -> Result<Vec<Option<Tensor>>> {
    let own = operands.gradients(&grads).and_then(Operands::apart);
    let grads = or_refuse(Some(communicator), own)?;
    let named = operands.vars().zip(&grads).filter_map(|((name, _), grad)| Some((name, grad.as_ref()?)));
    communicator.all_reduce_mean(&named.collect::<Vec<_>>())?;
    Ok(grads)
}

/// Makes the variables of all ranks those of rank 0, and makes sure that their anchors are, too. Reads anchors once.
pub(crate) fn equalize(communicator: &dyn Communicator, params: &[Param]) -> Result<()> {
    let vars = params.iter().map(|param| (param.name(), param.var().as_tensor()));
    communicator.broadcast(&vars.collect::<Vec<_>>())?;
    let Some(first) = params.first() else { return Ok(()) };
    let digests: Vec<f64> = params.iter().map(|param| digest(param.anchor())).collect();
    let others = or_refuse(Some(communicator), Tensor::new(digests.as_slice(), first.var().device()))?;
    communicator.broadcast(&[("digests of the anchors", &others)])?;
    let others = or_refuse(Some(communicator), others.to_vec1::<f64>())?;
    let differ = params.iter().zip(digests.iter().zip(others)).find(|(_, (own, other))| **own != *other);
    let same = differ.map_or(Ok(()), |(param, _)| {
        let (tensor, rank) = (param.name().to_owned(), communicator.rank());
        let (got, expected) = ("anchored at one value".to_owned(), "at another".to_owned());
        Err(Error::from(RankProblem::Differs { tensor, rank, got, expected }))
    });
    or_refuse(Some(communicator), same)?;
    communicator.barrier()
}

/// Equal for equal anchors; exact in f64.
fn digest(anchor: &Anchor) -> f64 {
    let checksum = |bytes: &[u8]| f64::from(crc32c::crc32c(bytes));
    match anchor {
        Anchor::None => -1.0,
        Anchor::Zero => -2.0,
        Anchor::Pretrained(data) => match data.slice() {
            Slice::F64(data) => checksum(cast_slice(data)),
            Slice::F32(data) => checksum(cast_slice(data)),
            Slice::F16(data) => checksum(cast_slice(data)),
            Slice::BF16(data) => checksum(cast_slice(data)),
        },
    }
}

/// Tells the other ranks of an error, so that they do not wait for this one.
pub(crate) fn or_refuse<T, E: std::fmt::Display>(
    communicator: Option<&dyn Communicator>,
    result: Result<T, E>,
) -> Result<T, E> {
    if let (Some(communicator), Err(error)) = (communicator, &result) {
        // What brought us here is the error to report.
        let _ = communicator.refuse(&error.to_string());
    }
    result
}
