//! Memory-mapped safetensors files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError};
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use tpgm_core::DType;

use super::data::AnchorData;
use super::error::{Error, Result, io};
use super::source::{Listed, Other, Value};

const FORMAT: &str = "a safetensors file";
/// The longest header that is read: the limit of the format's reference implementation.
const MAX_HEADER: usize = 100_000_000;
/// Bytes before the header: its length.
const PREFIX: usize = size_of::<u64>();

#[derive(Debug)]
pub(super) struct Reader {
    map: Arc<Mmap>,
    tensors: HashMap<String, Stored>,
    metadata: HashMap<String, String>,
}

#[derive(Debug)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

pub(super) fn open(path: &Path, file: &std::fs::File) -> Result<(Reader, Vec<Listed>)> {
    // SAFETY: the map is private and read-only. Rust's rules are broken if the file is changed in place while it is
    // mapped; nothing in this crate does that (files are replaced by renaming), and its page tells its callers.
    let map = unsafe { Mmap::map(file) }.map_err(io(path))?;
    let (header, metadata) = read_header(&map).map_err(|error| damage(path, &map, &error))?;
    // The header and all offsets lie inside the file.
    let data = PREFIX + header;
    let mut listed = vec![];
    let mut tensors = HashMap::new();
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("a listed tensor");
        let range = data + info.data_offsets.0..data + info.data_offsets.1;
        let (dtype, shape) = (info.dtype, info.shape.clone());
        listed.push(Listed { name: name.clone(), dtype, shape, storage: None });
        tensors.insert(name, Stored { dtype: info.dtype, shape: info.shape.clone(), range });
    }
    let metadata = metadata.metadata().clone().unwrap_or_default();
    Ok((Reader { map: Arc::new(map), tensors, metadata }, listed))
}

/// The length of the header and what it says. As `SafeTensors::read_metadata`, which adds up sizes without a look at where the
/// numbers end.
fn read_header(bytes: &[u8]) -> Result<(usize, Metadata), SafeTensorError> {
    let length = bytes.first_chunk::<PREFIX>().ok_or(SafeTensorError::HeaderTooSmall)?;
    let length = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .filter(|&length| length <= MAX_HEADER)
        .ok_or(SafeTensorError::HeaderTooLarge)?;
    let text = bytes.get(PREFIX..PREFIX + length).ok_or(SafeTensorError::InvalidHeaderLength)?;
    let text = std::str::from_utf8(text).map_err(SafeTensorError::InvalidHeader)?;
    let metadata: Metadata =
        serde_json::from_str(text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    match metadata.data_len() == bytes.len() - PREFIX - length {
        true => Ok((length, metadata)),
        false => Err(SafeTensorError::MetadataIncompleteBuffer),
    }
}

impl Reader {
    /// The elements of a listed tensor.
    pub(super) fn bytes(&self, name: &str) -> &[u8] {
        &self.map[self.tensors[name].range.clone()]
    }

    /// The text beside the tensors.
    pub(super) fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    pub(super) fn read(&self, path: &Path, name: &str) -> Result<Value<'_>> {
        let Stored { dtype, shape, range } = &self.tensors[name];
        let float = |dtype| Ok(Value::Float(AnchorData::mapped(&self.map, range.clone(), dtype)));
        match dtype {
            Dtype::F64 => float(DType::F64),
            Dtype::F32 => float(DType::F32),
            Dtype::F16 => float(DType::F16),
            Dtype::BF16 => float(DType::BF16),
            Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2 | Dtype::F8_E8M0 => {
                Err(Error::tensor(path, name, format!("elements of type {dtype} cannot be read")))
            }
            dtype => {
                let bytes = Cow::Borrowed(&self.map[range.clone()]);
                Ok(Value::Other(Other { dtype: *dtype, shape, bytes }))
            }
        }
    }
}

/// Says what is wrong with a file, and with which of its tensors: the safetensors crate does not always name it.
fn damage(path: &Path, bytes: &[u8], error: &SafeTensorError) -> Error {
    match suspect(bytes) {
        Some((tensor, problem)) => Error::tensor(path, &tensor, problem),
        None => Error::file(path, FORMAT, error.to_string()),
    }
}

/// The first tensor, by name, whose header entry cannot be true.
fn suspect(bytes: &[u8]) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Info {
        dtype: Dtype,
        shape: Vec<usize>,
        data_offsets: (usize, usize),
    }
    let length = u64::from_le_bytes(*bytes.first_chunk::<PREFIX>()?);
    let end = usize::try_from(length).ok()?.checked_add(PREFIX)?;
    let header: Map<String, Json> = serde_json::from_slice(bytes.get(PREFIX..end)?).ok()?;
    let available = bytes.len() - end;
    let mut ranges: Vec<(usize, usize, String)> = vec![];
    for (name, info) in header {
        if name == "__metadata__" {
            continue;
        }
        let Info { dtype, shape, data_offsets: (start, stop) } = match serde_json::from_value(info) {
            Ok(info) => info,
            Err(error) => return Some((name, error.to_string())),
        };
        let bits = shape.iter().copied().chain([dtype.bitsize()]).try_fold(1, usize::checked_mul);
        let problem = if stop < start {
            format!("its data ends at byte {stop}, before its start at {start}")
        } else if bits.is_none_or(|bits| bits.div_ceil(8) != stop - start) {
            format!("{dtype} of shape {shape:?} does not fit {} bytes", stop - start)
        } else if stop > available {
            format!(
                "its data ends at byte {stop}, but the file has {available} bytes of data; is it cut off?"
            )
        } else {
            ranges.push((start, stop, name));
            continue;
        };
        return Some((name, problem));
    }
    ranges.sort_unstable();
    let overlap = ranges.windows(2).find(|pair| pair[1].0 < pair[0].1)?;
    Some((overlap[1].2.clone(), format!("its data overlaps that of `{}`", overlap[0].2)))
}
