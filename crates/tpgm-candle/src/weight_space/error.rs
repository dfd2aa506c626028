//! What can go wrong between models.

use super::MergeError;
use crate::room::into_candle;
use crate::{engine, memory, params};

/// What can go wrong where models in memory are merged or interpolated.
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
    /// The models do not fit together.
    #[error(transparent)]
    Merge(#[from] MergeError),
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Params, Engine, Merge);
