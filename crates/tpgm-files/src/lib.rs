//! Checkpoint files without a framework: what they hold, read on demand, how they are written, and what is made of several.
//!
//! You need this crate when you work on checkpoints as files: safetensors files, PyTorch files, shards. Loading a model is the
//! business of `tpgm-candle`, which stands on this crate; the program `tpgm` (crate `tpgm-cli`) is its command line.
//!
//! | you want | look at |
//! |---|---|
//! | names, shapes and values of a checkpoint | [`Weights`], or [`Source`] for several files as one |
//! | a safetensors file, tensor by tensor | [`Writer`] |
//! | the distance of two checkpoints | [`weight_space::distances`] |
//! | WiSE-FT, soups, Model Stock, projection | [`weight_space::merge_files`] |
//!
//! Files are memory-mapped: do not change one in place while it is open.

mod data;
mod error;
mod folder;
mod kind;
mod options;
mod pytorch;
mod safetensors;
mod source;
mod suggest;
pub mod weight_space;
mod weights;
mod writer;

pub use self::data::AnchorData;
pub use self::error::{Error, Result, io};
pub use self::folder::files_of;
pub use self::options::{Chosen, OpenOptions};
pub use self::source::{Other, Source, Value};
pub use self::suggest::close_names;
pub use self::weights::{Entry, Weights};
pub use self::writer::{Described, Writer, file_dtype, write_beside};
pub use ::safetensors::Dtype;

/// Runs the example of the README as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
