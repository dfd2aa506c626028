//! Checkpoint files: what they hold, read on demand, and how they are written.

mod data;
mod error;
mod folder;
mod kind;
mod options;
mod pytorch;
mod safetensors;
mod source;
mod suggest;
mod weights;
mod writer;

pub use self::data::AnchorData;
pub(crate) use self::error::io;
pub use self::error::{Error, Result};
pub use self::options::{Chosen, OpenOptions};
pub(crate) use self::source::{Source, Value};
pub(crate) use self::weights::{Entry, Weights};
pub(crate) use self::writer::{Writer, file_dtype, safetensors_dtype, write_beside};
