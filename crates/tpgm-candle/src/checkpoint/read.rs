//! Reading: one tensor at a time, after the whole file was checked.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use tpgm_core::{Buffer, Element};

use super::CheckpointProblem;
use super::error::{Error, Result};
use super::write::Sum;
use crate::files::io;

/// Checks that a file is, byte for byte, the one that was written.
pub(super) fn check_sum(path: &Path, expected: Sum) -> Result<()> {
    let problem = |problem| Error::Checkpoint { path: path.to_owned(), problem };
    let mut file = File::open(path).map_err(io(path))?;
    let got = file.metadata().map_err(io(path))?.len();
    if got != expected.bytes {
        return Err(problem(CheckpointProblem::Size { expected: expected.bytes, got }));
    }
    let mut crc = 0;
    let mut block = vec![0; 1 << 18];
    loop {
        match file.read(&mut block).map_err(io(path))? {
            0 => break,
            n => crc = crc32c::crc32c_append(crc, &block[..n]),
        }
    }
    if crc != expected.crc {
        return Err(problem(CheckpointProblem::Checksum { expected: expected.crc, got: crc }));
    }
    Ok(())
}

/// A safetensors file of which only the header is in memory.
#[derive(Debug)]
pub(super) struct TensorFile {
    path: PathBuf,
    header: Metadata,
    data_start: u64,
    // Reading moves the cursor, so two readers take turns.
    file: Mutex<File>,
}

impl TensorFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(io(path))?;
        let bytes = file.metadata().map_err(io(path))?.len();
        let malformed = |reason: String| Error::Checkpoint {
            path: path.to_owned(),
            problem: CheckpointProblem::Malformed { reason },
        };
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io(path))?;
        let length = u64::from_le_bytes(length);
        // The length is checked before memory is taken for it.
        let data_start = length
            .checked_add(8)
            .filter(|&end| end <= bytes)
            .ok_or_else(|| malformed(format!("a header of {length} bytes in a file of {bytes}")))?;
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io(path))?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| malformed(format!("its header: {error}")))?;
        if data_start.checked_add(header.data_len() as u64) != Some(bytes) {
            return Err(malformed("its tensors do not fill it".to_owned()));
        }
        Ok(Self { path: path.to_owned(), header, data_start, file: Mutex::new(file) })
    }

    /// Names of all tensors, in the order of the file.
    pub(super) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Checks that there is a tensor of this name, shape and element type.
    pub(super) fn expect(&self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        let info = self.info(name)?;
        if info.shape != shape {
            return Err(self.problem(CheckpointProblem::Shape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                got: info.shape.clone(),
            }));
        }
        if info.dtype != dtype.into() {
            return Err(self.problem(CheckpointProblem::DType {
                tensor: name.to_owned(),
                expected: format!("{:?}", safetensors::Dtype::from(dtype)),
                got: format!("{:?}", info.dtype),
            }));
        }
        Ok(())
    }

    /// Reads a tensor. Memory: twice its size for a moment.
    pub(super) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let info = self.info(name)?;
        let dtype = DType::try_from(info.dtype)?;
        Ok(Tensor::from_raw_buffer(&self.bytes(info)?, dtype, &info.shape, device)?)
    }

    /// Reads a tensor that `tpgm-core` can hold.
    pub(super) fn buffer(&self, name: &str) -> Result<Buffer> {
        use tpgm_core::element::{bf16, f16};
        let info = self.info(name)?;
        let bytes = self.bytes(info)?;
        Ok(match info.dtype {
            safetensors::Dtype::F64 => elements(&bytes, f64::from_le_bytes),
            safetensors::Dtype::F32 => elements(&bytes, f32::from_le_bytes),
            safetensors::Dtype::F16 => elements(&bytes, f16::from_le_bytes),
            safetensors::Dtype::BF16 => elements(&bytes, bf16::from_le_bytes),
            dtype => {
                return Err(self.problem(CheckpointProblem::DType {
                    tensor: name.to_owned(),
                    expected: "F64, F32, F16 or BF16".to_owned(),
                    got: format!("{dtype:?}"),
                }));
            }
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || self.problem(CheckpointProblem::MissingTensor { tensor: name.to_owned() });
        self.header.info(name).ok_or_else(missing)
    }

    fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(io(&self.path))?;
        Ok(bytes)
    }

    fn problem(&self, problem: CheckpointProblem) -> Error {
        Error::Checkpoint { path: self.path.clone(), problem }
    }
}

fn elements<T: Element, const N: usize>(bytes: &[u8], from_bytes: impl Fn([u8; N]) -> T) -> Buffer {
    let (elements, _) = bytes.as_chunks::<N>();
    T::buffer(elements.iter().map(|&bytes| from_bytes(bytes)).collect())
}
