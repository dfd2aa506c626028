//! What can go wrong with telemetry.

use std::path::PathBuf;

use crate::files;
use crate::room::into_candle;

/// What can go wrong where telemetry is written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// A line of a telemetry file is not one that this crate wrote.
    #[error("{path}, line {line}: {problem}")]
    TelemetryLine {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Files);
