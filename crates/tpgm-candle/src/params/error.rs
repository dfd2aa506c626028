//! What can go wrong with the parameters of a model.

use std::path::PathBuf;

use crate::room::into_candle;
use crate::{files, memory};

/// What can go wrong between a model and its checkpoint.
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
    /// An operand's shape differs from its parameter's.
    #[error("tensor `{tensor}`: its {what} has shape {got:?}, but {expected:?} is needed")]
    ShapeMismatch {
        /// Name of the parameter.
        tensor: String,
        /// Which operand, for example "gradient".
        what: &'static str,
        /// Shape of the parameter.
        expected: Vec<usize>,
        /// Shape given.
        got: Vec<usize>,
    },
    /// A model asks for a tensor that no file has and no head covers.
    #[error("{}", missing_text(.tensor, .key, .files, .close))]
    NotInCheckpoint {
        /// Its name in the model.
        tensor: String,
        /// Its name in the checkpoint: another one if there is a renaming.
        key: Box<str>,
        /// The files that were searched.
        files: Vec<PathBuf>,
        /// Names in these files that may have been meant.
        close: Vec<String>,
    },
    /// A tensor has one shape in the model and another in the checkpoint.
    #[error(
        "{}: tensor `{tensor}` has shape {file:?}, but the model needs {model:?}; \
         if it is to start anew, name it with `Params::head`",
        .path.display()
    )]
    ShapeInFile {
        /// Its name in the checkpoint.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// The shape that the model asks for.
        model: Vec<usize>,
        /// The shape in the file.
        file: Vec<usize>,
    },
    /// A model asks for one name twice, with different shapes, types or devices.
    #[error(
        "tensor `{tensor}` was first asked for as {:?} of shape {:?}, now as {:?} of shape {:?}; \
         a name is one variable on one device",
        .first.1, .first.0, .now.1, .now.0
    )]
    AskedDifferently {
        /// Its name in the model.
        tensor: String,
        /// Shape and element type when it was asked for first.
        first: (Vec<usize>, candle_core::DType),
        /// Shape and element type now.
        now: (Vec<usize>, candle_core::DType),
    },
    /// A model asks for a new tensor without saying what shape it has.
    #[error("tensor `{tensor}` is new, by `Params::head`, but the model does not say what shape it has")]
    HeadWithoutShape {
        /// Its name in the model.
        tensor: String,
    },
    /// Variables of a `VarMap` are neither in the checkpoint nor under a head.
    #[error(
        "{} variables are not in the checkpoint: {}; name new ones with `Params::head`, map names with `Params::rename`",
        .tensors.len(), listed(.tensors)
    )]
    UndeclaredVariables {
        /// Their names, sorted.
        tensors: Vec<String>,
    },
    /// Tensors of the checkpoint were not asked for by the model.
    #[error("{} tensors of the checkpoint are not used: {}", .tensors.len(), listed(.tensors))]
    UnusedTensors {
        /// Their names in the checkpoint, sorted.
        tensors: Vec<String>,
    },
    /// Tensors of the checkpoint lie in blocks that the model loaded, and the model did not ask for them.
    #[error(
        "{}: the model takes a part of the blocks with {}, but did not ask for these {} tensors: it computes something else \
         than the model that was trained; use one that has them, or, if they are not needed, waive them with \
         `Params::unused`",
        .path.display(), listed(.tensors), .tensors.len()
    )]
    LeftOut {
        /// The file of the first of them.
        path: PathBuf,
        /// Their names in the checkpoint, sorted.
        tensors: Vec<String>,
    },
    /// Values to be loaded do not cover the model, or are not of this model. Nothing was changed.
    #[error("{}", values_text(.missing, .unknown))]
    ValueNames {
        /// Parameters and buffers without a value, sorted.
        missing: Vec<String>,
        /// Values without a parameter or buffer, sorted.
        unknown: Vec<String>,
    },
    /// A pattern given to an option meets no name.
    #[error("`{pattern}`, given to `{option}`, matches none of {tensors} tensors; the first is `{first}`")]
    UnmatchedPattern {
        /// The option.
        option: &'static str,
        /// The pattern.
        pattern: String,
        /// How many names there are.
        tensors: usize,
        /// The first of them, to show what names look like.
        first: String,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Files);
/// At most this many names are listed in a message.
const SHOWN: usize = 10;

/// The first names, and how many more there are.
fn listed(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn values_text(missing: &[String], unknown: &[String]) -> String {
    let mut parts = vec![];
    if !missing.is_empty() {
        parts.push(format!("no value is given for {}", listed(missing)));
    }
    if !unknown.is_empty() {
        parts.push(format!("the model has no {}", listed(unknown)));
    }
    parts.join("; ") + "; nothing was changed"
}

fn missing_text(tensor: &str, key: &str, files: &[PathBuf], close: &[String]) -> String {
    let mut text = format!("the model asks for tensor `{tensor}`");
    if key != tensor {
        text += &format!(" (`{key}` in the checkpoint)");
    }
    text += match files {
        [] => ", but there is no checkpoint",
        _ => ", which is not in ",
    };
    text += &files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    if !close.is_empty() {
        text += &format!("; it has `{}`: map names with `Params::rename`", close.join("`, `"));
    }
    text + "; declare a new tensor with `Params::head`"
}
