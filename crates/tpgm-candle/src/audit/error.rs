//! What can go wrong with a loss and its gradients.

use super::finite::{WrongGradient, wrong_gradients_text};
use super::missing::{MissingGradient, missing_gradients_text};
use crate::room::into_candle;
use crate::{memory, params};

/// What can go wrong with a loss and its gradients.
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
    /// Trainable tensors get no gradient: found by an audit, or at an optimizer's first step.
    #[error("{}", missing_gradients_text(.missing, *.trainable))]
    NoGradient {
        /// Which, sorted by name.
        missing: Vec<MissingGradient>,
        /// How many tensors are to be trained.
        trainable: usize,
    },
    /// Gradients differ from finite differences of the loss.
    #[error("{}", wrong_gradients_text(.wrong))]
    WrongGradients {
        /// Which, sorted by name.
        wrong: Vec<WrongGradient>,
    },
    /// A loss is not one number.
    #[error("the loss must be one number, but has shape {shape:?}; take its mean")]
    LossShape {
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A loss is infinite or NaN; nothing was changed.
    #[error("the loss is {value}; nothing was changed")]
    NonFiniteLoss {
        /// Its value.
        value: f64,
    },
    /// Two calls with the same weights gave different losses, so that differences of losses say nothing.
    #[error(
        "the loss is {first} and then {second} with the same weights; \
         use one fixed batch and turn dropout off for finite differences"
    )]
    RandomLoss {
        /// The first loss.
        first: f64,
        /// The second one.
        second: f64,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Params);

/// At most this many names are listed in a message.
pub(super) const SHOWN: usize = 10;
