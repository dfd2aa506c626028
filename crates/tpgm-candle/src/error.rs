//! The errors of all rooms in one.

use crate::{
    adapt, audit, checkpoint, data, distributed, engine, files, lora, memory, optim, params, teacher,
    telemetry, weight_space,
};

/// What can go wrong, for programs that use several parts of this crate.
///
/// Every part has an error of its own, which its functions return. `?` turns each into this one, and a problem is the same
/// variant here whichever way it came: a file that an adapter's loader cannot read is [`Error::Files`], as one that
/// [`Params::open`](crate::Params::open) cannot read is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method refused its options or operands.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// candle failed: a shape, a device, a user's closure.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A layer, a model or a LoRA layer failed.
    #[error(transparent)]
    Nn(#[from] tpgm_nn::Error),
    /// A tensor's element type or its device.
    #[error(transparent)]
    Memory(memory::Error),
    /// A file.
    #[error(transparent)]
    Files(files::Error),
    /// A model and its checkpoint.
    #[error(transparent)]
    Params(params::Error),
    /// The operands of a pass.
    #[error(transparent)]
    Engine(engine::Error),
    /// A loss and its gradients.
    #[error(transparent)]
    Audit(audit::Error),
    /// A call of several ranks.
    #[error(transparent)]
    Distributed(distributed::Error),
    /// An optimizer or a trainer of radii.
    #[error(transparent)]
    Optim(optim::Error),
    /// Models that do not fit together, whether they are files, tensors or alive.
    #[error(transparent)]
    WeightSpace(weight_space::MergeError),
    /// An adapter.
    #[error(transparent)]
    Lora(lora::Error),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(checkpoint::Error),
    /// The order of training data.
    #[error(transparent)]
    Data(data::Error),
    /// Adaptation at test time.
    #[error(transparent)]
    Adapt(adapt::Error),
    /// A teacher.
    #[error(transparent)]
    Teacher(teacher::Error),
    /// A search.
    #[cfg(feature = "search")]
    #[error(transparent)]
    Search(crate::search::Error),
    /// A file of telemetry.
    #[error(transparent)]
    Telemetry(telemetry::Error),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Takes a room's own problems under one variant, and hands on those of the rooms below it.
macro_rules! gathered {
    ($($own:ident($room:ident) below: $($lower:ident),*;)*) => {
        $(impl From<$room::Error> for Error {
            fn from(error: $room::Error) -> Self {
                match error {
                    $($room::Error::$lower(error) => error.into(),)*
                    error => Self::$own(error),
                }
            }
        })*

        /// For closures and traits of candle, which return its error.
        impl From<Error> for candle_core::Error {
            fn from(error: Error) -> Self {
                match error {
                    Error::Candle(error) => error,
                    $(Error::$own(error) => $crate::room::lower_into_candle!($own error),)*
                    error => candle_core::Error::wrap(error),
                }
            }
        }
    };
}

gathered! {
    Memory(memory) below: Core, Candle;
    Files(files) below: ;
    Params(params) below: Core, Candle, Memory, Files;
    Engine(engine) below: Core, Candle, Memory, Params;
    Audit(audit) below: Core, Candle, Memory, Params;
    Distributed(distributed) below: Candle, Memory, Engine;
    Optim(optim) below: Core, Candle, Memory, Params, Engine, Audit, Distributed;
    Lora(lora) below: Nn, Candle, Memory, Files, Params, Merge;
    Checkpoint(checkpoint) below: Candle, Memory, Files, Params, Distributed;
    Data(data) below: Core;
    Adapt(adapt) below: Core, Candle, Memory, Params, Optim;
    Teacher(teacher) below: Core, Candle, Memory, Files, Params, Optim, WeightSpace;
    Telemetry(telemetry) below: Files;
}

/// Not in the list above, because it is the error of no room.
impl From<weight_space::MergeError> for Error {
    fn from(error: weight_space::MergeError) -> Self {
        match error {
            weight_space::MergeError::Core(error) => error.into(),
            weight_space::MergeError::Files(error) => error.into(),
            error => Self::WeightSpace(error),
        }
    }
}

/// Not in the list above, because the room has no problems but those below it.
impl From<weight_space::Error> for Error {
    fn from(error: weight_space::Error) -> Self {
        match error {
            weight_space::Error::Core(error) => error.into(),
            weight_space::Error::Candle(error) => error.into(),
            weight_space::Error::Memory(error) => error.into(),
            weight_space::Error::Params(error) => error.into(),
            weight_space::Error::Engine(error) => error.into(),
            weight_space::Error::Merge(error) => error.into(),
        }
    }
}

/// Not in the list above, because it is only there with its feature.
#[cfg(feature = "search")]
impl From<crate::search::Error> for Error {
    fn from(error: crate::search::Error) -> Self {
        match error {
            crate::search::Error::Files(error) => error.into(),
            error => Self::Search(error),
        }
    }
}
