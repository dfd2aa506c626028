//! Training on several devices: gradients averaged over ranks before the step.
//!
//! Every rank holds the whole model and works on its own part of each batch. Gradients become their mean over all ranks
//! before anything else looks at them, so products, clipping, radii and steps are the same on every rank, to the bit,
//! and nothing else has to be sent.
//!
//! Each rank also holds all state, unless it is divided
//! ([`OptimizerBuilder::divide_state`](crate::OptimizerBuilder::divide_state), [`Tpgm::divided`](crate::Tpgm::divided),
//! [`Ema::divided`](crate::Ema::divided)): then a rank keeps that of its own tensors, gradients go to the rank that needs them,
//! and weights come back from there. The bits stay the same, and so do the bytes that are sent.
//! [`Checkpointer::save_on_ranks`](crate::Checkpointer::save_on_ranks) saves all parts at once.
//!
//! A rank is a thread or a process with a [`Communicator`]: [`InProcess`] connects threads, `Mpi` (feature `mpi`) processes that
//! `mpirun` or `srun` started, `Nccl` (feature `nccl`) GPUs in threads or in processes, which find each other by a [`Launch`] over
//! TCP or through MPI. `docs/ranks.md` shows how each is started. Give it to the optimizer
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
//! different tensors all get an error that names the first one. A rank with another version, configuration or anchor is named
//! when an optimizer is made, and one with other data by [`require_same`].
//!
//! A rank that leaves ends the group, and so does one that does not answer within the communicator's timeout: the others get
//! an error that names it (with NCCL, one that names the rank which noticed). Weights and state are then as before the call that failed, on all of them, and the last checkpoint
//! loads. With [`divide_state`](crate::OptimizerBuilder::divide_state) the state of a rank that is gone is only there.

mod call;
mod division;
mod error;
mod in_process;
mod launch;
mod mean;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod problem;
mod rendezvous;
mod start;

use std::fmt::Debug;

use bytemuck::cast_slice;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use serde::Serialize;
use tpgm_core::Slice;

pub(crate) use self::division::Division;
pub use self::error::{Error, Result};
pub use self::in_process::InProcess;
pub use self::launch::Launch;
#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
#[cfg(feature = "nccl")]
pub use self::nccl::{GroupId, Nccl};
pub use self::problem::RankProblem;
pub use self::start::StartProblem;
use crate::engine::Operands;
use crate::params::{Anchor, Param, Params};

/// A tensor with its name, which errors use.
pub type Named<'a> = (&'a str, &'a Tensor);

/// One rank's end of a group of ranks that train one model.
///
/// Calls are collective: every rank makes the same ones in the same order, with tensors of the same names, shapes and
/// types, and returns when all have come. A call happens on all ranks or on none. All ranks end with the same bits.
///
/// Tensors are contiguous, and may be rows of larger ones: several of a call may lie in one storage of their rank, from any offset,
/// as long as they have no element in common. What lies beside them in that storage must stay as it is. A name may come more than
/// once in a call: position tells tensors apart, and names are for errors. An implementation may refuse ranks whose tensors
/// lie in one storage, as [`InProcess`] does.
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
    /// tensor that this communicator cannot work on, which the other ranks are told. Nothing was changed then, but for this: if a
    /// rank was lost while tensors were on their way between processes, those of this call may hold anything.
    fn all_reduce_mean(&self, tensors: &[Named<'_>]) -> Result<()>;

    /// Replaces every tensor on its owner by its mean over all ranks, in place: half of an
    /// [`all_reduce_mean`](Communicator::all_reduce_mean), with the same bits where the communicator can give them. `owners`
    /// has a rank for each tensor, the same on all. On other ranks than its owner a tensor may hold anything afterwards.
    ///
    /// # Errors
    ///
    /// As [`Communicator::all_reduce_mean`], also if ranks name other owners.
    fn reduce_mean(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()>;

    /// Replaces every tensor by that of its owner, in place. `owners` has a rank for each tensor, the same on all.
    ///
    /// # Errors
    ///
    /// As [`Communicator::reduce_mean`].
    fn share(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()>;

    /// Replaces every tensor by that of rank 0, in place.
    ///
    /// # Errors
    ///
    /// As [`Communicator::all_reduce_mean`].
    fn broadcast(&self, tensors: &[Named<'_>]) -> Result<()> {
        self.share(tensors, &vec![0; tensors.len()])
    }

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

/// Makes sure that all ranks work on the same: gives an error on all of them if the bytes that they give under `what` are not
/// those of rank 0. For example a digest of the training files, or the [`DataOrder`](crate::DataOrder) as JSON. Sends 16
/// bytes, through a tensor on `device`, where the communicator works.
///
/// Version, configuration, names, shapes and anchors need no such call: optimizers and trainers compare them when they are
/// made.
///
/// ```
/// use candle_core::Device;
/// use tpgm_candle::distributed::{InProcess, require_same};
/// let ranks = InProcess::group(2).into_iter().map(|rank| {
///     std::thread::spawn(move || require_same(&rank, "training data", b"2000 images of 1 November", &Device::Cpu))
/// });
/// for rank in ranks.collect::<Vec<_>>() {
///     rank.join().unwrap()?;
/// }
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
///
/// # Errors
///
/// [`RankProblem::Unequal`] on a rank that differs, [`RankProblem::Refused`] with that rank on the others; or as
/// [`Communicator::barrier`].
pub fn require_same(
    communicator: &dyn Communicator,
    what: &str,
    value: &[u8],
    device: &Device,
) -> Result<()> {
    let hash = fnv(FNV_OFFSET, value);
    // In two halves, each exact in f64.
    let own = [(hash >> 32) as f64, (hash & 0xffff_ffff) as f64];
    let first = or_refuse(Some(communicator), Tensor::new(&own, device))?;
    communicator.broadcast(&[(what, &first)])?;
    let first = or_refuse(Some(communicator), first.to_vec1::<f64>())?;
    let same = match first == own {
        true => Ok(()),
        false => Err(Error::from(RankProblem::Unequal { what: what.to_owned(), rank: communicator.rank() })),
    };
    agreed(communicator, same)
}

/// Where [`fnv`] begins.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: the same on all builds, which Rust's own hash is not.
fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Makes the variables of all ranks those of rank 0, and makes sure that their anchors, their `config` and this crate's version
/// are, too. Reads anchors once.
pub(crate) fn equalize(
    communicator: &dyn Communicator,
    params: &[Param],
    config: (&str, &impl Serialize),
) -> Result<()> {
    if let Some(first) = params.first() {
        let device = first.var().device();
        require_same(communicator, "version of tpgm-candle", env!("CARGO_PKG_VERSION").as_bytes(), device)?;
        let json = serde_json::to_vec(config.1).expect("a configuration is plain data");
        require_same(communicator, config.0, &json, device)?;
    }
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

/// As [`or_refuse`], and without an error waits until all ranks say that they have none.
pub(crate) fn agreed<T, E: std::fmt::Display + From<Error>>(
    communicator: &dyn Communicator,
    result: Result<T, E>,
) -> Result<T, E> {
    let value = or_refuse(Some(communicator), result)?;
    communicator.barrier()?;
    Ok(value)
}
