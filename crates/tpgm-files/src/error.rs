//! What can go wrong with a file.

use std::path::PathBuf;

/// What can go wrong with a file or folder. Every variant names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is damaged, cut off, or of another format.
    #[error("{path}: {problem}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// An option asks of a file what it does not have.
    #[error("{path}: {problem}")]
    BadOption {
        /// The file.
        path: PathBuf,
        /// The option's value, and what the file has.
        problem: String,
    },
    /// A tensor of a file is damaged, or cannot be used.
    #[error("{}: tensor `{tensor}`: {problem}", .path.display())]
    BadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the file that an I/O error is about.
pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { path, source }
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>, format: &str, problem: impl std::fmt::Display) -> Self {
        Self::BadFile { path: path.into(), problem: format!("not {format}: {problem}") }
    }

    pub(crate) fn tensor(
        path: impl Into<PathBuf>,
        tensor: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::BadTensor { path: path.into(), tensor: tensor.into(), problem: problem.into() }
    }
}
