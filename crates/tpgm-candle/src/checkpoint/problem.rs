//! What can be wrong with a checkpoint.

use std::fmt;
use std::path::PathBuf;

use super::error::Error;

/// What is wrong with a file or folder that should be (part of) a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointProblem {
    /// The file is shorter or longer than what was written.
    #[error("damaged: it has {got} bytes, {expected} were written")]
    Size {
        /// Bytes written.
        expected: u64,
        /// Bytes found.
        got: u64,
    },
    /// The file has the right length, but other bytes.
    #[error("damaged: its CRC-32C is {got:08x}, that of what was written is {expected:08x}")]
    Checksum {
        /// Checksum of what was written.
        expected: u32,
        /// Checksum of what was found.
        got: u32,
    },
    /// The file cannot be parsed.
    #[error("damaged or foreign: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// The file is JSON, but not of a checkpoint of this crate.
    #[error("not a checkpoint of tpgm-candle")]
    Foreign,
    /// A newer version of this crate wrote the checkpoint.
    #[error("format version {got} is newer than version {supported}, the newest this program reads")]
    Version {
        /// Version of the file.
        got: u64,
        /// Newest version supported.
        supported: u64,
    },
    /// A tensor of the model is not in the file.
    #[error("it has no tensor `{tensor}`; is it of another model?")]
    MissingTensor {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than the model's.
    #[error("tensor `{tensor}` has shape {got:?} in it, but {expected:?} in the model")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Shape in the model.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// A tensor has another element type than the model's.
    #[error("tensor `{tensor}` is {got} in it, but {expected} in the model")]
    DType {
        /// Name of the tensor.
        tensor: String,
        /// Element type in the model.
        expected: String,
        /// Element type in the file.
        got: String,
    },
    /// A section of state or a value was not saved.
    #[error("nothing was saved under `{name}`; it has {present}")]
    Missing {
        /// Name asked for.
        name: String,
        /// The names there are.
        present: String,
    },
    /// A saved value does not have the type asked for.
    #[error("the value `{name}` cannot be read: {reason}")]
    Value {
        /// Name of the value.
        name: String,
        /// What the parser said.
        reason: String,
    },
}

/// A checkpoint that cannot be used, and why.
#[derive(Debug)]
pub struct Skipped {
    /// Its folder.
    pub path: PathBuf,
    /// The reason; names the file.
    pub error: Box<Error>,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)
    }
}
