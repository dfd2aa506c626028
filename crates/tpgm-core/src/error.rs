//! The one error type of the crate.

use crate::element::DType;

/// What can go wrong. Every variant names the tensor, pattern, option or slot it is about.
///
/// When a function returns one of these, weights and state are as they were before the call.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two tensors of a set have the same name.
    #[error("tensor `{tensor}` is listed twice")]
    DuplicateTensor {
        /// Name of the tensor.
        tensor: String,
    },

    /// A group's pattern selects no tensor of the set.
    #[error("pattern `{pattern}` matches no tensor; the set has {tensors} tensors, the first is `{first}`")]
    PatternMatchesNothing {
        /// The pattern as given.
        pattern: String,
        /// Number of tensors in the set.
        tensors: usize,
        /// Name of the first tensor, to show what names look like.
        first: String,
    },

    /// An option has a value outside its range.
    #[error("option `{option}` is {value}, but must be {requirement}")]
    InvalidOption {
        /// Name of the option, for example `AdamW::beta1`.
        option: &'static str,
        /// The value given.
        value: f64,
        /// The values allowed, in words.
        requirement: &'static str,
    },

    /// A strength was given for a constraint that has none.
    #[error("tensor `{tensor}`: its constraint ({constraint}) has no strength to set")]
    NoStrength {
        /// Name of the tensor.
        tensor: String,
        /// Name of the constraint.
        constraint: &'static str,
    },

    /// A norm was chosen for a constraint that has a fixed one.
    #[error("tensor `{tensor}`: the norm of its constraint ({constraint}) cannot be chosen")]
    NoNorm {
        /// Name of the tensor.
        tensor: String,
        /// Name of the constraint.
        constraint: &'static str,
    },

    /// A call was given a different number of tensors than the set has.
    #[error("{expected} tensors are in the set, but {got} {what} were given")]
    CountMismatch {
        /// What was counted, for example "weights".
        what: &'static str,
        /// Number of tensors in the set.
        expected: usize,
        /// Number given.
        got: usize,
    },

    /// A slice has the wrong number of elements.
    #[error("tensor `{tensor}`: its {what} has {got} elements, but {expected} are needed")]
    LengthMismatch {
        /// Name of the tensor.
        tensor: String,
        /// Which operand, for example "gradient".
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },

    /// A slice has the wrong element type.
    #[error("tensor `{tensor}`: its {what} is {got}, but must be {expected}")]
    DTypeMismatch {
        /// Name of the tensor.
        tensor: String,
        /// Which operand, for example "weight".
        what: &'static str,
        /// Element type needed.
        expected: DType,
        /// Element type given.
        got: DType,
    },

    /// A constraint measures the distance from an anchor, and none was given.
    #[error(
        "tensor `{tensor}`: {constraint} needs its anchor (pre-trained value); give one, \
         or mark the tensor `no_anchor`, `zero_anchor` or `excluded`"
    )]
    MissingAnchor {
        /// Name of the tensor.
        tensor: String,
        /// Name of the constraint.
        constraint: &'static str,
    },

    /// A radius is to be learned for a tensor that was given no gradient.
    #[error(
        "tensor `{tensor}`: no held-out gradient was given, but its radius is to be learned; \
         exclude the tensor or find out why the loss does not reach it"
    )]
    MissingGradient {
        /// Name of the tensor.
        tensor: String,
    },

    /// A gradient has an infinite or NaN element; the step was not taken.
    #[error(
        "the gradient of tensor `{tensor}` is not finite ({count} tensors affected); nothing was changed"
    )]
    NonFiniteGradient {
        /// Name of the first tensor affected, in set order.
        tensor: String,
        /// Number of tensors affected.
        count: usize,
    },

    /// A value needed for the computation is infinite or NaN.
    #[error("tensor `{tensor}`: its {what} is not finite")]
    NonFiniteValue {
        /// Name of the tensor.
        tensor: String,
        /// Which quantity, for example "displacement".
        what: &'static str,
    },

    /// Calls came in an order that makes no sense, for example a radius update before `begin`.
    #[error("{call} was called {problem}")]
    OutOfOrder {
        /// The method called.
        call: &'static str,
        /// What is missing.
        problem: &'static str,
    },

    /// Saved state names a slot that this optimizer does not have.
    #[error(
        "saved state has `{key}`, which this configuration does not use; is it from another method or model?"
    )]
    UnexpectedSlot {
        /// Full key of the slot, `tensor/slot`.
        key: String,
    },

    /// Saved state lacks a slot that this optimizer needs.
    #[error("saved state lacks `{key}`, which this configuration needs; is it from another method or model?")]
    MissingSlot {
        /// Full key of the slot, `tensor/slot`.
        key: String,
    },

    /// A name is not in the set.
    #[error("no tensor is named `{tensor}`")]
    UnknownTensor {
        /// The name asked for.
        tensor: String,
    },

    /// An operation needs more inputs than it was given.
    #[error("{what}: at least {needed} needed, {got} given")]
    TooFew {
        /// What was counted.
        what: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many were given.
        got: usize,
    },

    /// An importance was given for a tensor whose constraint keeps none.
    #[error(
        "tensor `{tensor}`: its constraint ({constraint}) keeps no importance; give it a `Pull` whose `weights` are not `One`"
    )]
    NoImportance {
        /// Name of the tensor.
        tensor: String,
        /// Name of its constraint.
        constraint: &'static str,
    },

    /// An importance has an element outside its range.
    #[error("tensor `{tensor}`: element {index} of its importance is {value}, but must be {requirement}")]
    InvalidImportance {
        /// Name of the tensor.
        tensor: String,
        /// Position of the first such element.
        index: usize,
        /// Its value.
        value: f64,
        /// The values allowed, in words.
        requirement: &'static str,
    },

    /// Importance was to be updated, and no tensor keeps one.
    #[error(
        "no tensor of the set keeps an importance; constrain some by a `Pull` whose `weights` are not `One`"
    )]
    NoImportances,

    /// Of a pair of operands only one was given.
    #[error("tensor `{tensor}`: its {what} is missing for the {missing}; give both or neither")]
    OneSided {
        /// Name of the tensor.
        tensor: String,
        /// Which operand, for example "Fisher information".
        what: &'static str,
        /// Where it is missing, for example "first model".
        missing: &'static str,
    },

    /// Indices of trained entries are out of order or out of range.
    #[error(
        "tensor `{tensor}`: the indices of its trained entries must increase strictly and stay below {numel}"
    )]
    InvalidIndices {
        /// Name of the tensor.
        tensor: String,
        /// Number of elements of the tensor.
        numel: usize,
    },

    /// A device refused or failed a call.
    #[error("{device}: {call} failed: {reason}")]
    Device {
        /// The device, for example "CUDA device 0 (NVIDIA H100)".
        device: String,
        /// What was asked of it: a kernel and its set of tensors, an allocation, a copy.
        call: String,
        /// What it said.
        reason: String,
    },

    /// The thread pool of the CPU backend could not be made.
    #[error("cannot start {threads} threads: {reason}")]
    ThreadPool {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
