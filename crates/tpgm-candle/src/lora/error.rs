//! What can go wrong with adapters.

use std::path::PathBuf;

use crate::room::into_candle;
use crate::weight_space::MergeError;
use crate::{files, memory, params};

/// What can go wrong with LoRA layers and the files of adapters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layer, a model or a LoRA layer failed.
    #[error(transparent)]
    Nn(#[from] tpgm_nn::Error),
    /// candle failed: a shape, a device, a closure.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor has another type or device than is needed.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// A file cannot be read or written.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The parameters are not what is needed.
    #[error(transparent)]
    Params(#[from] params::Error),
    /// A factor, or a tensor of another module, in an adapter's file has values that are not finite. No factor of the model has changed.
    #[error(
        "{}: factor `{tensor}` has {count} values that are not finite; was its training unstable?",
        .path.display()
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The factor's name in the model.
        tensor: String,
        /// How many of its values are infinite or NaN.
        count: usize,
    },
    /// A tensor of a module that is saved with an adapter is not among the trainable tensors of the model. No factor has
    /// changed.
    #[error(
        "{}: `{tensor}` belongs to a module that is saved with the adapter (`modules_to_save`), but is no trainable tensor of \
         the model; build that module too, declared as a head where the base checkpoint lacks it",
        .path.display()
    )]
    NotTrainable {
        /// The adapter's file.
        path: PathBuf,
        /// The tensor's name in the model.
        tensor: String,
    },
    /// None of the modules that are to be saved with an adapter is there.
    #[error("{place} has no tensor of {modules:?} (`modules_to_save`)")]
    NoSavedModule {
        /// The modules.
        modules: Vec<String>,
        /// The adapter's file, or the model.
        place: String,
    },
    /// An adapter and a model have other factors.
    #[error(transparent)]
    Merge(#[from] MergeError),
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Files, Params, Merge);
