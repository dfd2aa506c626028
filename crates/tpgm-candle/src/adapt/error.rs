//! What can go wrong where a model is adapted at test time.

use crate::room::into_candle;
use crate::{memory, optim, params};

/// What can go wrong where a model is adapted at test time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method refused its options or operands.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// candle failed: a shape, or a device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor has another type or device than is needed.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The parameters are not what is needed.
    #[error(transparent)]
    Params(#[from] params::Error),
    /// The optimizer refused a step.
    #[error(transparent)]
    Optim(#[from] optim::Error),
    /// No parameter looks like one of a norm.
    #[error(
        "none of the {params} parameters is a weight or bias of a norm by its name; the first is `{first}`; choose them with \
         `adapt::select`"
    )]
    NoNorms {
        /// How many parameters there are.
        params: usize,
        /// The first of them.
        first: String,
    },
    /// A pattern selects no parameter.
    #[error("`{pattern}` matches none of {params} parameters; the first is `{first}`")]
    UnmatchedPattern {
        /// The pattern.
        pattern: String,
        /// How many parameters there are.
        params: usize,
        /// The first of them.
        first: String,
    },
    /// The loss has no gradient of a parameter that is adapted.
    #[error("tensor `{tensor}`: the entropy has no gradient of it; were the logits computed by this model?")]
    NoGradient {
        /// The tensor.
        tensor: String,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Params, Optim);
