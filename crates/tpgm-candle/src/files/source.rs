//! Checkpoint files whose values candle takes.

use std::ops::Deref;
use std::path::Path;

use candle_core::{Device, Tensor};
use tpgm_files::{AnchorData, Error, OpenOptions, Result};

/// The tensors of one or several checkpoint files.
#[derive(Debug, Default)]
pub(crate) struct Source(tpgm_files::Source);

/// A tensor's value.
pub(crate) enum Value {
    /// Of a type that can be trained.
    Float(AnchorData),
    /// Of another type, on the CPU.
    Other(Tensor),
}

impl Source {
    /// As [`tpgm_files::Source::open`].
    pub(crate) fn open<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        options: &OpenOptions,
    ) -> Result<Self> {
        tpgm_files::Source::open(paths, options).map(Self)
    }

    /// Reads a tensor; `None` if no file has it.
    ///
    /// # Errors
    ///
    /// The data is damaged or has a type that candle lacks.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Value>> {
        let other = match self.0.read(name)? {
            None => return Ok(None),
            Some(tpgm_files::Value::Float(data)) => return Ok(Some(Value::Float(data))),
            Some(tpgm_files::Value::Other(other)) => other,
        };
        let tensor = candle_core::DType::try_from(other.dtype)
            .and_then(|dtype| Tensor::from_raw_buffer(&other.bytes, dtype, other.shape, &Device::Cpu));
        tensor.map(|tensor| Some(Value::Other(tensor))).map_err(|error| Error::BadTensor {
            path: self.0.path(name).map(Path::to_owned).unwrap_or_default(),
            tensor: name.to_owned(),
            problem: error.to_string(),
        })
    }
}

impl Deref for Source {
    type Target = tpgm_files::Source;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
