//! What can go wrong in a layer, a model or an adapter.

use std::path::PathBuf;

/// What can go wrong in a layer, a model or an adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option is out of its range.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// candle failed: a shape, a device, a tensor that is not there.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
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
    /// A layer was given tensors whose shapes do not fit each other.
    #[error("{op}: {expected}; got {shapes:?}")]
    LayerShape {
        /// The operation.
        op: &'static str,
        /// What it takes.
        expected: &'static str,
        /// The shapes it was given, in the order of its arguments.
        shapes: Vec<candle_core::Shape>,
    },
    /// A layer was given element types that it does not compute with.
    #[error("{op}: all arguments must have one type of f64, f32, f16 and bf16; got {dtypes:?}")]
    LayerDType {
        /// The operation.
        op: &'static str,
        /// The types it was given, in the order of its arguments.
        dtypes: Vec<candle_core::DType>,
    },
    /// A layer was given tensors that lie on different devices.
    #[error("{op}: the arguments lie on different devices")]
    LayerDevice {
        /// The operation.
        op: &'static str,
    },
    /// An option of a layer is out of its range.
    #[error("{op}: {option} is {value}, but must be {range}")]
    LayerOption {
        /// The operation.
        op: &'static str,
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// The values it may have.
        range: &'static str,
    },
    /// A class label has no logit.
    #[error("{op}: the label of row {row} is {label}, but there are {classes} classes")]
    Label {
        /// The operation.
        op: &'static str,
        /// The row.
        row: usize,
        /// Its label.
        label: i64,
        /// The number of logits in a row.
        classes: usize,
    },
    /// A model's configuration makes no sense, or asks for what is not supported.
    #[error("model configuration: `{entry}`: {problem}")]
    ModelConfig {
        /// The entry, as in the configuration's file.
        entry: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A configuration is that of another kind of model, which the code does not compute.
    #[error(
        "{path}: not {what}: its `{entry}` is `{value}`, which is not supported{}",
        supported_types(supported)
    )]
    ModelType {
        /// The file.
        path: PathBuf,
        /// The entry that says so: `model_type` or `architectures`.
        entry: &'static str,
        /// Its value.
        value: String,
        /// What was expected.
        what: &'static str,
        /// Every `model_type` that is supported.
        supported: Vec<&'static str>,
    },
    /// A checkpoint has a tensor that the model would have to use, and cannot.
    #[error("tensor `{tensor}`: the checkpoint has it, but {problem}")]
    ModelTensor {
        /// The tensor.
        tensor: String,
        /// Why it cannot be used, and what to do.
        problem: String,
    },
    /// A checkpoint has none of the tensors by which a model's layouts are told apart.
    #[error(
        "model {model}: the checkpoint has none of {tensors:?}{}, so its layout is unknown",
        if prefix.is_empty() { String::new() } else { format!(" under `{prefix}`") }
    )]
    UnknownLayout {
        /// The model.
        model: &'static str,
        /// Where they were looked for; empty for the top.
        prefix: String,
        /// The tensors.
        tensors: Vec<&'static str>,
    },
    /// A head that is to be initialized is frozen.
    #[error("tensor `{tensor}`: it is frozen, so nothing can be put into it")]
    FrozenHead {
        /// The head.
        tensor: &'static str,
    },
    /// Values for a head have another shape than the head.
    #[error("tensor `{tensor}`: its {what} has shape {got:?}, but {expected:?} is needed")]
    HeadShape {
        /// Name of the head.
        tensor: String,
        /// What was given, for example "value".
        what: &'static str,
        /// Shape of the head.
        expected: Vec<usize>,
        /// Shape given.
        got: Vec<usize>,
    },
    /// A weight has an element type that LoRA cannot adapt.
    #[error("tensor `{tensor}` is {dtype:?}; only f64, f32, f16 and bf16 can be trained")]
    ElementType {
        /// Name of the module.
        tensor: String,
        /// The weight's element type.
        dtype: candle_core::DType,
    },
    /// Two adapted modules have the same name.
    #[error("there are two parameters named `{name}`")]
    DuplicateFactor {
        /// The name of the factor.
        name: String,
    },
    /// A target of LoRA is the name of no module.
    #[error("LoRA target `{target}` matches none of the {adapted} adapted modules")]
    LoraTarget {
        /// The target.
        target: String,
        /// How many modules other targets adapted.
        adapted: usize,
    },
    /// An adapter was saved with an option that makes it something else than LoRA as computed here.
    #[error("{path}: option `{option}` is {value}, which is not supported")]
    AdapterOption {
        /// The file with the options.
        path: PathBuf,
        /// Its name.
        option: String,
        /// Its value.
        value: String,
    },
    /// Prompts do not fit the model, or not what is asked of them.
    #[error("prompts: {problem}")]
    Prompts {
        /// What is wrong.
        problem: String,
    },
    /// A LoRA layer was to be merged into its own base weight, so that its update would count twice.
    #[error(
        "module `{module}`: its update cannot be merged into its own base weight; use `merge`, or drop the adapter"
    )]
    MergeIntoBase {
        /// The adapted module.
        module: String,
    },
    /// A LoRA layer was asked to train while its update is merged.
    #[error(
        "module `{module}`: its update is merged, so its factors cannot be trained; call `unmerge` first"
    )]
    MergedInTraining {
        /// The adapted module.
        module: String,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn supported_types(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        _ => format!("; {} are", names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

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

    pub(crate) fn file(path: impl Into<PathBuf>, format: &str, problem: impl std::fmt::Display) -> Self {
        Self::BadFile { path: path.into(), problem: format!("not {format}: {problem}") }
    }
}
