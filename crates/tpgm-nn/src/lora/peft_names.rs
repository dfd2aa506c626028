//! The names of the tensors in an adapter's file, by its content: safetensors or PyTorch.

use std::fs::File;
use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::pickle::read_pth_tensor_info;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Reads the header only.
pub(super) fn tensor_names(path: &Path) -> Result<Vec<String>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(Error::io(path))?;
    if start.starts_with(b"PK") { pickled(path) } else { header(path, file, u64::from_le_bytes(start)) }
}

fn header(path: &Path, mut file: File, size: u64) -> Result<Vec<String>> {
    let bad = |problem: &dyn std::fmt::Display| Error::file(path, "a safetensors file", problem);
    let len = file.metadata().map_err(Error::io(path))?.len();
    let begin = file.stream_position().map_err(Error::io(path))?;
    if size > len - begin {
        return Err(bad(&format!("its header says {size} bytes, the file has {len}")));
    }
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes).map_err(Error::io(path))?;
    let tensors: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|problem| bad(&problem))?;
    Ok(tensors.into_iter().map(|(name, _)| name).collect())
}

/// candle's reader indexes into what the pickle says, and so panics on some damaged files.
fn pickled(path: &Path) -> Result<Vec<String>> {
    let bad = |problem: &dyn std::fmt::Display| Error::file(path, "a PyTorch file", problem);
    let infos = catch_unwind(AssertUnwindSafe(|| read_pth_tensor_info(path, false, None)))
        .map_err(|_| bad(&"its pickle makes no sense"))?
        .map_err(|problem| bad(&problem))?;
    Ok(infos.into_iter().map(|info| info.name).collect())
}
