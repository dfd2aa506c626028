//! Writing: tensors straight from their storage, checksums on the way.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use tpgm_core::Buffer;

use super::error::{Error, Result};
use crate::files::io;

/// Bytes converted at a time: small enough for the first-level cache.
const BLOCK: usize = 16 * 1024;

/// Length and CRC-32C of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    pub(super) crc: u32,
}

/// A tensor to be written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    Tensor(&'a Tensor),
    Buffer(&'a Buffer),
}

impl Source<'_> {
    fn dtype(self, name: &str) -> Result<Dtype> {
        let dtype = match self {
            Source::Tensor(tensor) => tensor.dtype(),
            Source::Buffer(buffer) => crate::memory::candle_dtype(buffer.dtype()),
        };
        match dtype {
            // candle keeps these as raw bytes and computes nothing with them.
            DType::F6E2M3 | DType::F6E3M2 | DType::F4 | DType::F8E8M0 => {
                let problem = format!("its element type is {dtype:?}");
                Err(Error::Unsaveable { name: name.to_owned(), problem })
            }
            dtype => Ok(dtype.into()),
        }
    }

    fn shape(self) -> Vec<usize> {
        match self {
            Source::Tensor(tensor) => tensor.dims().to_vec(),
            Source::Buffer(buffer) => vec![buffer.len()],
        }
    }
}

/// Writes a new file and waits until it is on the disk.
pub(super) fn write_file(
    path: &Path,
    content: impl FnOnce(&mut Tally<BufWriter<File>>) -> Result<()>,
) -> Result<Sum> {
    let file = File::create_new(path).map_err(io(path))?;
    let mut out = Tally { inner: BufWriter::new(file), sum: Sum { bytes: 0, crc: 0 } };
    content(&mut out)?;
    let file = out.inner.into_inner().map_err(|error| io(path)(error.into_error()))?;
    file.sync_all().map_err(io(path))?;
    Ok(out.sum)
}

/// Waits until the entries of a folder are on the disk.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    // Elsewhere a folder cannot be opened as a file; its entries are then as durable as the system makes them.
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io(dir))?;
    }
    Ok(())
}

/// Counts and checksums what passes through it.
pub(super) struct Tally<W> {
    inner: W,
    sum: Sum,
}

impl<W: Write> Write for Tally<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.bytes += written as u64;
        self.sum.crc = crc32c::crc32c_append(self.sum.crc, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes tensors in the safetensors format. `path` is where `out` leads, for errors.
///
/// The library's own function would copy each tensor, give no checksum and not say which file failed.
pub(super) fn write_tensors(path: &Path, out: &mut impl Write, tensors: &[(String, Source)]) -> Result<()> {
    let mut items = Vec::with_capacity(tensors.len());
    for (name, source) in tensors {
        items.push((source.dtype(name)?, name, *source));
    }
    // The format's order: wide elements first, so that every tensor is aligned.
    items.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));

    let mut end = 0;
    let mut infos = Vec::with_capacity(items.len());
    for (dtype, name, source) in &items {
        let (start, shape) = (end, source.shape());
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        infos.push(((*name).clone(), TensorInfo { dtype: *dtype, shape, data_offsets: (start, end) }));
    }
    // Some loaders ask which framework's layout the tensors have; this is the one all of them know.
    let framework = [("format".to_owned(), "pt".to_owned())].into();
    let unsaveable = |problem: String| Error::Unsaveable { name: path.display().to_string(), problem };
    let header = Metadata::new(Some(framework), infos).map_err(|error| unsaveable(error.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| unsaveable(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io(path))?;
    out.write_all(&header).map_err(io(path))?;
    for (_, _, source) in items {
        match source {
            Source::Tensor(tensor) => write_tensor(path, out, tensor)?,
            Source::Buffer(buffer) => write_buffer(out, buffer).map_err(io(path))?,
        }
    }
    Ok(())
}

fn write_buffer(out: &mut impl Write, buffer: &Buffer) -> io::Result<()> {
    match buffer {
        Buffer::F64(data) => write_elements(out, data, |x| x.to_le_bytes()),
        Buffer::F32(data) => write_elements(out, data, |x| x.to_le_bytes()),
        Buffer::F16(data) => write_elements(out, data, |x| x.to_le_bytes()),
        Buffer::BF16(data) => write_elements(out, data, |x| x.to_le_bytes()),
    }
}

fn write_tensor(path: &Path, out: &mut impl Write, tensor: &Tensor) -> Result<()> {
    // Neither copies a contiguous tensor on the CPU.
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().expect("the tensor was made contiguous");
    let Storage::Cpu(storage) = &*storage else { unreachable!("the tensor was moved to the CPU") };
    let written = match storage {
        CpuStorage::U8(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::U32(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::I16(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::I32(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::I64(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::BF16(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::F16(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::F32(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::F64(data) => write_elements(out, &data[start..end], |x| x.to_le_bytes()),
        CpuStorage::F8E4M3(data) => write_elements(out, &data[start..end], |x| [x.to_bits()]),
        CpuStorage::F6E2M3(_) | CpuStorage::F6E3M2(_) | CpuStorage::F4(_) | CpuStorage::F8E8M0(_) => {
            unreachable!("refused by `Source::dtype`")
        }
    };
    Ok(written.map_err(io(path))?)
}

/// Writes elements block by block: no copy of the tensor, and the right order of bytes on any machine.
fn write_elements<T: Copy, const N: usize>(
    out: &mut impl Write,
    data: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut block = [0; BLOCK];
    for elements in data.chunks(BLOCK / N) {
        for (bytes, &x) in block.chunks_exact_mut(N).zip(elements) {
            bytes.copy_from_slice(&to_bytes(x));
        }
        out.write_all(&block[..elements.len() * N])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let path = Path::new("/dev/full");
        let mut full = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let tensor = Tensor::zeros((64, 64), DType::F32, &Device::Cpu).unwrap();
        let error =
            write_tensors(path, &mut full, &[("w".into(), Source::Tensor(&tensor))]).unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: No space left on device"), "{error}");
    }

    #[test]
    fn the_file_is_what_the_format_says() {
        // Written out by hand from the description of the safetensors format.
        let strided = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap().t().unwrap();
        let buffer = Buffer::F64(vec![-2.0]);
        let tensors = [("a".into(), Source::Tensor(&strided)), ("s".into(), Source::Buffer(&buffer))];
        let mut file = Vec::new();
        write_tensors(Path::new("x"), &mut file, &tensors).unwrap();
        let header = concat!(
            r#"{"__metadata__":{"format":"pt"},"#,
            r#""s":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"#,
            r#""a":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]}}"#,
        );
        let padded = header.len().next_multiple_of(8);
        let mut expected = vec![padded as u8, 0, 0, 0, 0, 0, 0, 0];
        expected.extend(format!("{header:padded$}").bytes());
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0xc0]);
        for half in [0x3f80u16, 0x4040, 0x4000, 0x4080] {
            expected.extend([0, 0]);
            expected.extend(half.to_le_bytes());
        }
        assert_eq!(file, expected);
    }

    #[test]
    fn every_element_type_survives() {
        let mut tensors = Vec::new();
        for dtype in [
            DType::U8,
            DType::U32,
            DType::I16,
            DType::I32,
            DType::I64,
            DType::BF16,
            DType::F16,
            DType::F32,
            DType::F64,
        ] {
            // More than one block, and not a whole number of blocks.
            let values: Vec<f32> = (0..20_001).map(|i| (i % 7) as f32).collect();
            let tensor = Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            tensors.push((format!("{dtype:?}"), tensor));
        }
        let sources: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), Source::Tensor(t))).collect();
        let mut file = Vec::new();
        write_tensors(Path::new("x"), &mut file, &sources).unwrap();
        // candle's own reader.
        let read = candle_core::safetensors::load_buffer(&file, &Device::Cpu).unwrap();
        for (name, tensor) in &tensors {
            assert_eq!(read[name].dtype(), tensor.dtype());
            let (read, tensor) =
                (read[name].to_dtype(DType::F64).unwrap(), tensor.to_dtype(DType::F64).unwrap());
            assert_eq!(read.to_vec1::<f64>().unwrap(), tensor.to_vec1::<f64>().unwrap(), "{name}");
        }
    }
    #[test]
    fn eight_bit_floats_survive() {
        // All bit patterns, with no conversion to or from other types.
        let bytes: Vec<u8> = (0..=255).collect();
        let tensor = Tensor::from_raw_buffer(&bytes, DType::F8E4M3, &[256], &Device::Cpu).unwrap();
        let mut file = Vec::new();
        write_tensors(Path::new("x"), &mut file, &[("w".into(), Source::Tensor(&tensor))]).unwrap();
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        let read = read.tensor("w").unwrap();
        assert_eq!((read.dtype(), read.data()), (Dtype::F8_E4M3, bytes.as_slice()));
    }
}
