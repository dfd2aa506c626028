//! What can go wrong with checkpoints.

use std::path::PathBuf;

use super::problem::{CheckpointProblem, Skipped};
use crate::room::into_candle;
use crate::{distributed, files, memory, params};

/// What can go wrong where a run is saved or goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
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
    /// A call that several ranks make together failed.
    #[error(transparent)]
    Distributed(#[from] distributed::Error),
    /// A checkpoint is damaged, from another program, or does not fit what it is loaded into.
    #[error("{path}: {problem}")]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: CheckpointProblem,
    },
    /// No checkpoint of a folder can be used.
    #[error("{dir}: none of its {} checkpoints can be used:{}", skipped.len(), lines(skipped))]
    NoIntactCheckpoint {
        /// The folder.
        dir: PathBuf,
        /// Each checkpoint with the reason, newest first.
        skipped: Vec<Skipped>,
    },
    /// A part of the state that is to be saved cannot be.
    #[error("cannot save `{name}`: {problem}")]
    Unsaveable {
        /// Name of the tensor, section or value.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Files, Params, Distributed);

fn lines(skipped: &[Skipped]) -> String {
    skipped.iter().map(|skipped| format!("\n  {skipped}")).collect()
}
