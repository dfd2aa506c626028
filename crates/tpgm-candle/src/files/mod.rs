//! Checkpoint files: the readers and the writer of `tpgm-files`, and what candle adds.

mod source;

pub use tpgm_files::{AnchorData, Chosen, Error, OpenOptions, Result};
pub(crate) use tpgm_files::{Weights, Writer, file_dtype, io, write_beside};

pub(crate) use self::source::{Source, Value};
use crate::memory::{self, core_dtype};

/// The element type in a file of a candle tensor.
pub(crate) fn safetensors_dtype(
    tensor: &str,
    dtype: candle_core::DType,
) -> memory::Result<tpgm_files::Dtype> {
    Ok(file_dtype(core_dtype(tensor, dtype)?))
}
