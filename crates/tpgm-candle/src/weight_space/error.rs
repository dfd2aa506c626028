//! What can go wrong between models.

use crate::room::into_candle;
use crate::{engine, files, memory, params};

/// What can go wrong where models are merged, measured or interpolated.
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
    /// A file cannot be read or written.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The parameters are not what is needed.
    #[error(transparent)]
    Params(#[from] params::Error),
    /// An operand does not fit, or is where it cannot be used.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A merge was given the wrong number of models, or an anchor too many or too few.
    #[error("{method} takes {takes}")]
    MergeInputs {
        /// The operation.
        method: &'static str,
        /// What it takes.
        takes: &'static str,
    },
    /// A model lacks a tensor that another has.
    #[error("{model} has no tensor `{tensor}`, but {other} has")]
    MissingTensor {
        /// Its name.
        tensor: String,
        /// The model that lacks it: a file, or which of those given.
        model: String,
        /// A model that has it.
        other: String,
    },
    /// Two models have a tensor of the same name with different shapes or element types.
    #[error("tensor `{tensor}` is {got} in {model}, but {expected} in {other}")]
    TensorMismatch {
        /// Its name.
        tensor: String,
        /// The model that differs.
        model: String,
        /// What it has.
        got: Box<str>,
        /// The model that it is compared with.
        other: String,
        /// What that has.
        expected: Box<str>,
    },
    /// A tensor has an element type of which no mean can be taken.
    #[error(
        "tensor `{tensor}` of {model} is {dtype}; only f64, f32, f16 and bf16 can be merged, integers are copied"
    )]
    NotMergeable {
        /// Its name.
        tensor: String,
        /// Its element type.
        dtype: String,
        /// Where it is.
        model: String,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Files, Params, Engine);
