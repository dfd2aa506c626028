//! The one error type of this crate.

use std::path::PathBuf;

use crate::audit::{MissingGradient, WrongGradient, missing_gradients_text, wrong_gradients_text};
use crate::checkpoint::{CheckpointProblem, Skipped};
use crate::distributed::RankProblem;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method refused its options or operands.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// A layer, a model or a LoRA layer failed.
    #[error(transparent)]
    Nn(#[from] tpgm_nn::Error),
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
    /// Two trainable parameters are the same memory, which a step would change twice.
    #[error(
        "parameters `{first}` and `{second}` share their memory; register tied weights once, under one name"
    )]
    SharedStorage {
        /// Name of one.
        first: String,
        /// Name of the other.
        second: String,
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
    /// A tensor is on a device that steps cannot run on.
    #[error(
        "tensor `{tensor}` is on {device:?}; steps run on the CPU{}",
        if cfg!(feature = "cuda") { " and on NVIDIA GPUs" } else { ", and on NVIDIA GPUs with feature `cuda`" }
    )]
    Device {
        /// Its name.
        tensor: String,
        /// Where it is.
        device: candle_core::DeviceLocation,
    },
    /// A call that is for CUDA devices was given another one.
    #[error(
        "`{call}` is for CUDA devices, but got {device:?}{}",
        if cfg!(feature = "cuda") { "" } else { "; build with feature `cuda` to have them" }
    )]
    NotCuda {
        /// The function.
        call: &'static str,
        /// The device.
        device: candle_core::DeviceLocation,
    },
    /// Parameters of one optimizer are on several devices.
    #[error(
        "tensor `{tensor}` is on {device:?}, but `{first}` on {expected:?}; \
         all must be on one device, made by one call of `Device::new_cuda`"
    )]
    Devices {
        /// Name of a parameter that is elsewhere than the first.
        tensor: String,
        /// Where it is.
        device: candle_core::DeviceLocation,
        /// Name of the first parameter.
        first: String,
        /// Where that is.
        expected: candle_core::DeviceLocation,
    },
    /// An operand is on another device than its parameter.
    #[error("tensor `{tensor}`: its {what} is on {got:?}, but must be on {expected:?}, where the tensor is")]
    OperandDevice {
        /// Name of the parameter.
        tensor: String,
        /// Which operand, for example "gradient".
        what: &'static str,
        /// Where the parameter is.
        expected: candle_core::DeviceLocation,
        /// Where the operand is.
        got: candle_core::DeviceLocation,
    },
    /// A call that several ranks make together did not happen; nothing was changed on any of them.
    #[error("{0}; nothing was changed on any rank")]
    Ranks(#[from] RankProblem),
    /// A loss is infinite or NaN; nothing was changed.
    #[error("the loss is {value}; nothing was changed")]
    NonFiniteLoss {
        /// Its value.
        value: f64,
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
    /// A model asks for a tensor that no file has and no head covers.
    #[error("{}", missing_text(.tensor, .key, .files, .close))]
    NotInCheckpoint {
        /// Its name in the model.
        tensor: String,
        /// Its name in the checkpoint: another one if there is a renaming.
        key: String,
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
    /// Trainable tensors get no gradient: found by an audit, or at an optimizer's first step.
    #[error("{}", missing_gradients_text(.missing, *.trainable))]
    NoGradient {
        /// Which, sorted by name.
        missing: Vec<MissingGradient>,
        /// How many tensors are to be trained.
        trainable: usize,
    },
    /// Gradients differ from finite differences of the loss.
    #[error("{}", wrong_gradients_text(.wrong))]
    WrongGradients {
        /// Which, sorted by name.
        wrong: Vec<WrongGradient>,
    },
    /// A loss is not one number.
    #[error("the loss must be one number, but has shape {shape:?}; take its mean")]
    LossShape {
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A projection update was asked of an optimizer that has no learned radii.
    #[error("TPGM constrains no tensor of this optimizer; make it with `TpgmConfig` as its constraint")]
    NoRadii,
    /// Saved state belongs to another configuration.
    #[error("the saved configuration has `{option}` = {saved}, but here it is {here}")]
    ConfigDiffers {
        /// Path of the first option that differs, for example `constraint.ftp.k`.
        option: String,
        /// Its saved value, as JSON; `null` if it is missing.
        saved: String,
        /// Its value here, as JSON; `null` if it is missing.
        here: String,
    },
    /// A file is damaged, cut off, or of another format.
    #[error("{path}: {problem}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
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
    /// Training data differ from those of the checkpoint, so the order cannot go on where it stopped.
    #[error("the saved data order has {what} {saved}, but this run has {now}")]
    DataOrder {
        /// What differs.
        what: &'static str,
        /// Its saved value.
        saved: u64,
        /// Its value in this run.
        now: u64,
    },
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
    /// Two calls with the same weights gave different losses, so that differences of losses say nothing.
    #[error(
        "the loss is {first} and then {second} with the same weights; \
         use one fixed batch and turn dropout off for finite differences"
    )]
    RandomLoss {
        /// The first loss.
        first: f64,
        /// The second one.
        second: f64,
    },
}

/// At most this many names are listed in a message.
pub(crate) const SHOWN: usize = 10;

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

fn lines(skipped: &[Skipped]) -> String {
    skipped.iter().map(|skipped| format!("\n  {skipped}")).collect()
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

    pub(crate) fn file(path: impl Into<PathBuf>, format: &str, problem: impl std::fmt::Display) -> Self {
        Self::BadFile { path: path.into(), problem: format!("not {format}: {problem}") }
    }

    pub(crate) fn tensor_file(
        path: impl Into<PathBuf>,
        tensor: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::BadTensor { path: path.into(), tensor: tensor.into(), problem: problem.into() }
    }
}
