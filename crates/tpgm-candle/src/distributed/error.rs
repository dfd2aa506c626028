//! What can go wrong between ranks.

use super::problem::RankProblem;
use super::start::StartProblem;
use crate::room::into_candle;
use crate::{engine, memory};

/// What can go wrong in a call that ranks make together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle failed: a shape, a device, a closure.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor has another type or device than is needed.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// An operand does not fit, or is where it cannot be used.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A call that several ranks make together did not happen; nothing was changed on any of them.
    #[error("{0}; nothing was changed on any rank")]
    Ranks(#[from] RankProblem),
    /// The processes of a group did not find each other.
    #[error("there is no group of ranks: {0}")]
    Start(#[from] StartProblem),
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Engine);
