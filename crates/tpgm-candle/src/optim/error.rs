//! What can go wrong in an optimizer.

use super::position::PositionProblem;
use crate::room::into_candle;
use crate::{audit, distributed, engine, memory, params};

/// What can go wrong in an optimizer, a trainer of radii, or an average.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method refused its options or operands.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// candle failed: a shape, a device, a closure.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor has another type or device than is needed.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The parameters are not what is needed.
    #[error(transparent)]
    Params(#[from] params::Error),
    /// An operand does not fit, or is where it cannot be used.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A loss or its gradients are not what is needed.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// A call that several ranks make together failed.
    #[error(transparent)]
    Distributed(#[from] distributed::Error),
    /// The state of a tensor was asked of a rank that does not keep it.
    #[error(
        "the state of tensor `{tensor}` is divided between ranks, and rank {owner} keeps it; ask that rank"
    )]
    OtherRank {
        /// The tensor.
        tensor: String,
        /// The rank that keeps its state.
        owner: usize,
    },
    /// State is divided between ranks, and a call needs all of it in one place.
    #[error(
        "{call} needs the state of all tensors, but it is divided between ranks; do it without `divide_state`"
    )]
    Divided {
        /// The call.
        call: &'static str,
    },
    /// State was to be divided between the ranks of no group.
    #[error("there are no ranks to divide state between; give the builder a `communicator`")]
    NoRanks,
    /// A projection update was asked of an optimizer that has no learned radii.
    #[error("TPGM constrains no tensor of this optimizer; make it with `TpgmConfig` as its constraint")]
    NoRadii,
    /// State of an optimizer that knows its variables by position cannot be given to one of them. Nothing was changed.
    #[error(
        "the saved state does not fit variable {position} of shape {shape:?}: {problem}; \
         an optimizer of `RobustOptimizer::builder` over `Params` knows its variables by name"
    )]
    Position {
        /// Its position, from 0.
        position: usize,
        /// Its shape.
        shape: Vec<usize>,
        /// Why not.
        problem: PositionProblem,
    },
    /// Saved state belongs to another configuration.
    #[error("the saved configuration has `{option}` = {saved}, but here it is {here}")]
    ConfigDiffers {
        /// Path of the first option that differs, for example `constraint.ftp.k`.
        option: String,
        /// Its saved value, as JSON; `null` if it is missing.
        saved: String,
        /// Its value here, as JSON; `null` if it is missing.
        here: String,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Params, Engine, Audit, Distributed);
