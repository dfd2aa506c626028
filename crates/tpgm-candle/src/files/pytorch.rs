//! PyTorch's zip checkpoints (`torch.save` since version 1.6), through candle's reader of pickles.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::{PthTensors, TensorInfo};

use super::data::AnchorData;
use super::error::{Error, Result};
use super::source::{Listed, Value};
use crate::memory::{core_dtype, to_buffer};

const FORMAT: &str = "a PyTorch checkpoint";

/// Where training scripts keep the weights when the file holds more than a state dict.
const KEYS: [&str; 4] = ["state_dict", "model", "model_state_dict", "module"];

pub(super) struct Reader {
    tensors: PthTensors,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader").field(&self.tensors.tensor_infos().len()).finish()
    }
}

pub(super) fn open(path: &Path, length: u64) -> Result<(Reader, Vec<Listed>)> {
    let mut tensors = read(|| PthTensors::new(path, None)).map_err(|e| Error::file(path, FORMAT, e))?;
    for key in KEYS {
        if !tensors.tensor_infos().is_empty() {
            break;
        }
        // An absent key is an error too: the next one may be there.
        tensors = read(|| PthTensors::new(path, Some(key))).unwrap_or(tensors);
    }
    let infos: BTreeMap<&String, &TensorInfo> = tensors.tensor_infos().iter().collect();
    if infos.is_empty() {
        let problem = format!("it has no tensors, neither at the top nor under {KEYS:?}");
        return Err(Error::file(path, FORMAT, problem));
    }
    // Tied weights are saved once and listed twice.
    let mut first_names = BTreeMap::new();
    let mut listed = vec![];
    for (name, info) in infos {
        check_size(path, name, info, length)?;
        let layout = &info.layout;
        let key = (&info.path, layout.start_offset(), layout.dims(), layout.stride());
        let first: &String = first_names.entry(key).or_insert(name);
        let storage = (first != name).then(|| first.clone());
        listed.push(Listed {
            name: name.clone(),
            dtype: info.dtype.into(),
            shape: layout.dims().to_vec(),
            storage,
        });
    }
    Ok((Reader { tensors }, listed))
}

/// The pickle states sizes that memory is reserved for; PyTorch never compresses, so the file bounds them.
fn check_size(path: &Path, name: &str, info: &TensorInfo, length: u64) -> Result<()> {
    let dims = info.layout.dims();
    let bytes = dims.iter().copied().chain([info.dtype.size_in_bytes()]).try_fold(1, usize::checked_mul);
    if bytes.is_none_or(|bytes| bytes as u64 > length) {
        let problem = format!("{:?} of shape {dims:?} does not fit a file of {length} bytes", info.dtype);
        return Err(Error::tensor(path, name, problem));
    }
    Ok(())
}

impl Reader {
    pub(super) fn read(&self, path: &Path, name: &str) -> Result<Value> {
        let tensor = read(|| self.tensors.get(name)).map_err(|e| Error::tensor(path, name, e))?;
        let Some(tensor) = tensor else {
            return Err(Error::tensor(path, name, "the file has changed since it was opened"));
        };
        match tensor.dtype() {
            dtype if core_dtype(name, dtype).is_ok() => {
                Ok(Value::Float(AnchorData::new(to_buffer(name, &tensor)?)))
            }
            DType::U8 | DType::U32 | DType::I16 | DType::I32 | DType::I64 => Ok(Value::Other(tensor)),
            dtype => Err(Error::tensor(path, name, format!("{dtype:?} cannot be read"))),
        }
    }
}

/// candle's reader indexes into what the pickle says and so panics on some damaged files. It works on values of its own
/// only, so nothing is left half done.
fn read<T>(work: impl FnOnce() -> candle_core::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("its pickle makes no sense".to_owned()),
    }
}
