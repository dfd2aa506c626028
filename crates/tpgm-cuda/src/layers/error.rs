//! What a layer refuses.

use tpgm_core::DType;

/// Why a call of a layer was refused; nothing was launched.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has another number of rows or elements than the others ask for.
    #[error("{layer}: `{operand}` has {got}, but {expected} needed")]
    Shape {
        /// The layer.
        layer: &'static str,
        /// The operand.
        operand: &'static str,
        /// Its shape, in words.
        got: String,
        /// What is needed, in words.
        expected: String,
    },
    /// An operand has another element type than the others, or one that the kernels do not know.
    #[error("{layer}: `{operand}` is {got}, but must be {expected}")]
    DType {
        /// The layer.
        layer: &'static str,
        /// The operand.
        operand: &'static str,
        /// Its element type.
        got: DType,
        /// What it must be.
        expected: &'static str,
    },
    /// An option is out of range.
    #[error("{layer}: option `{option}` is {value}, but must be {requirement}")]
    Option {
        /// The layer.
        layer: &'static str,
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        requirement: &'static str,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] tpgm_core::Error),
}

/// The outcome of a call of a layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;
