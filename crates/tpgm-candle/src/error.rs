//! The one error type of this crate.

use std::path::PathBuf;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method refused its options or operands.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// candle failed: a shape, a device, a user's closure.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tensor has an element type that cannot be trained.
    #[error("tensor `{tensor}` is {dtype:?}; only f64, f32, f16 and bf16 can be trained")]
    ElementType {
        /// Its name.
        tensor: String,
        /// Its element type.
        dtype: candle_core::DType,
    },
    /// No parameter has this name.
    #[error("there is no parameter `{name}`")]
    UnknownParam {
        /// The name asked for.
        name: String,
    },
    /// Two parameters have the same name.
    #[error("there are two parameters named `{name}`")]
    DuplicateParam {
        /// The name.
        name: String,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// For the traits of candle, whose functions return candle's error.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}

impl Error {
    /// Names the file that an I/O error is about.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
