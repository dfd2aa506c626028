//! What can go wrong between models.

/// What can go wrong where checkpoint files are merged or measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method refused its options or operands.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// A file cannot be read or written.
    #[error(transparent)]
    Files(#[from] crate::Error),
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
    /// A tensor has values that are infinite or NaN.
    #[error(
        "tensor `{tensor}` of {model} has {count} values that are not finite; was its training unstable? If they are \
         meant, as in a mask, take the tensor as it is (`copy`) or leave it out (`drop`)"
    )]
    NonFinite {
        /// Its name.
        tensor: String,
        /// The model that has it: a file, or which of those given.
        model: String,
        /// How many of its values are infinite or NaN.
        count: usize,
    },
    /// A merged value does not fit the element type of the result.
    #[error("tensor `{tensor}`: {count} merged values do not fit {dtype}; ask for a wider element type")]
    Overflow {
        /// Its name.
        tensor: String,
        /// How many values became infinite.
        count: usize,
        /// The element type of the result.
        dtype: tpgm_core::DType,
    },
    /// A checkpoint holds quantized weights: integers or 8-bit numbers, and scales beside them.
    #[error(
        "{model} is quantized: `{tensor}` {sign}; dequantize it first, since neither its numbers nor their scales can be \
         merged or measured on their own. What a pattern copies or leaves out is not looked at"
    )]
    Quantized {
        /// The tensor that shows it.
        tensor: String,
        /// The file, or which of the models given.
        model: String,
        /// How it shows.
        sign: &'static str,
    },
    /// An integer tensor of two or more dimensions is not the same in all models: it may be anything, such as packed weights.
    #[error(
        "tensor `{tensor}` of {model} is {got}, and {problem}; integers cannot be merged or measured: name it in a pattern \
         of what is copied or left out, if that is meant"
    )]
    IntegerMatrix {
        /// Its name.
        tensor: String,
        /// Where it is.
        model: String,
        /// Its type and shape.
        got: Box<str>,
        /// How the models differ.
        problem: String,
    },
    /// Two checkpoints have no tensor of the same name that could be measured.
    #[error(
        "{model} and {other} have no floating-point tensor of the same name (one begins with `{first}`, the other with \
         `{second}`), so there is nothing to compare; if they are called differently, rename them by patterns"
    )]
    NothingInCommon {
        /// The first file.
        model: String,
        /// The first of its names.
        first: String,
        /// The second file.
        other: String,
        /// The first of its names.
        second: String,
    },
    /// Nothing is left to be written.
    #[error("the patterns of what is dropped leave no tensor of {model}")]
    NothingLeft {
        /// The first model.
        model: String,
    },
    /// A pattern that renames tensors makes no sense.
    #[error("rename `{rename}`: {problem}")]
    Rename {
        /// The pattern.
        rename: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// A result with this module's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
