//! The one error type of this crate.

use std::path::PathBuf;

use crate::checkpoint::{CheckpointProblem, Skipped};

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
    #[error("tensor `{tensor}` is on {device:?}; steps run on the CPU only")]
    Device {
        /// Its name.
        tensor: String,
        /// Where it is.
        device: candle_core::DeviceLocation,
    },
    /// Trainable parameters got no gradient by the first step.
    #[error(
        "{} of {total} trainable tensors got no gradient: {}; the loss does not depend on them, or a layer on the way \
         has no backward (candle's fused layer-norm, rms-norm, softmax and rotary embedding have none)",
        tensors.len(), list(tensors)
    )]
    NoGradient {
        /// Their names, sorted.
        tensors: Vec<String>,
        /// Number of trainable tensors.
        total: usize,
    },
    /// A loss is infinite or NaN; nothing was changed.
    #[error("the loss is {value}; nothing was changed")]
    NonFiniteLoss {
        /// Its value.
        value: f64,
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
}

/// Names for a message: not more than fit on a screen.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
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
}
