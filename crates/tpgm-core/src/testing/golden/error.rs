//! What can be wrong with a golden folder.

use std::path::PathBuf;

/// Why a folder, or one run of a case, could not be compared. Every variant names the file, and the tensor or field.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A JSON file is not what it should be: syntax, an unknown field, a missing one.
    #[error("{path} is not the JSON that it should be")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },

    /// A safetensors file is damaged.
    #[error("{path} is damaged")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: safetensors::SafeTensorError,
    },

    /// A tensor that the case needs is not in its file.
    #[error("{path}: tensor `{tensor}` is missing")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },

    /// A tensor of the file means nothing to the runner.
    #[error("{path}: {count} tensors are unknown, the first is `{tensor}`")]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// Name of the first.
        tensor: String,
        /// How many.
        count: usize,
    },

    /// A tensor has another shape than the case says.
    #[error("{path}: tensor `{tensor}` has the shape {got:?}, expected {expected}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        got: Vec<usize>,
        /// What is needed.
        expected: String,
    },

    /// A tensor has an element type that its file should not hold.
    #[error("{path}: tensor `{tensor}` is {got}, expected {expected}")]
    DType {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its type.
        got: String,
        /// The type needed.
        expected: &'static str,
    },

    /// A field of a JSON file has a value that makes no sense, or that no implementation here covers.
    #[error("{path}: `{field}` {problem}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },

    /// The file and the subject disagree on whether there is a number at all.
    #[error("{path}: tensor `{tensor}` {problem}")]
    Presence {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Who has it and who has not.
        problem: &'static str,
    },

    /// The subject refused a call.
    #[error("{path}: {call} was refused")]
    Subject {
        /// The file.
        path: PathBuf,
        /// Which call.
        call: String,
        /// Why.
        source: crate::error::Error,
    },
}

impl GoldenError {
    /// The message with its causes, in one line.
    pub(super) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}
