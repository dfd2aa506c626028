//! A safetensors file written tensor by tensor.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tempfile::NamedTempFile;
use tpgm_core::element::{bf16, f16};
use tpgm_core::{DType, Slice};

use super::error::{Result, io};

/// Name, element type and shape of a tensor to be written.
pub type Described<'a> = (&'a str, Dtype, &'a [usize]);

/// Writes beside the destination; only [`Writer::finish`] replaces what is there.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    left: usize,
}

impl Writer {
    /// Writes the header. The data of `tensors` follow in this order: all of each with [`Writer::bytes`] or [`Writer::values`].
    ///
    /// # Errors
    ///
    /// The file cannot be written beside `path`.
    pub fn create(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        tensors: &[Described<'_>],
    ) -> Result<Self> {
        let mut end = 0;
        let entries = tensors.iter().map(|&(name, dtype, shape)| {
            let start = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (name, TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (start, end) })
        });
        let header = Header { metadata, entries: entries.collect() };
        let mut header = serde_json::to_vec(&header).expect("names and numbers can be written as JSON");
        // Data of a multiple of 8 bytes stay aligned, as the format asks for.
        header.resize(header.len().next_multiple_of(8), b' ');

        let file = temporary(path).map_err(io(path))?;
        let mut this = Self { path: path.to_owned(), file: BufWriter::new(file), left: end };
        this.write(&(header.len() as u64).to_le_bytes())?;
        this.write(&header)?;
        Ok(this)
    }

    /// Appends data as they are.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    ///
    /// # Panics
    ///
    /// If there are more data than the header describes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(bytes.len()).expect("no more data than the header describes");
        self.write(bytes)
    }

    /// Appends numbers.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    ///
    /// # Panics
    ///
    /// If there are more data than the header describes.
    pub fn values(&mut self, values: Slice<'_>) -> Result<()> {
        match values {
            Slice::F64(values) => self.encode(values, f64::to_le_bytes),
            Slice::F32(values) => self.encode(values, f32::to_le_bytes),
            Slice::F16(values) => self.encode(values, f16::to_le_bytes),
            Slice::BF16(values) => self.encode(values, bf16::to_le_bytes),
        }
    }

    /// Makes sure that everything is on the disk, then replaces the destination.
    ///
    /// # Errors
    ///
    /// The file cannot be written, or not be moved to its place.
    ///
    /// # Panics
    ///
    /// If there are fewer data than the header describes.
    pub fn finish(self) -> Result<()> {
        assert_eq!(self.left, 0, "all data that the header describes are written");
        let Self { path, file, .. } = self;
        let file = file.into_inner().map_err(|e| e.into_error()).map_err(io(&path))?;
        file.as_file().sync_all().map_err(io(&path))?;
        file.persist(&path).map_err(|e| io(&path)(e.error))?;
        Ok(())
    }

    fn encode<T: bytemuck::NoUninit, const SIZE: usize>(
        &mut self,
        values: &[T],
        one: impl Fn(T) -> [u8; SIZE],
    ) -> Result<()> {
        if cfg!(target_endian = "little") {
            return self.bytes(bytemuck::cast_slice(values));
        }
        values.iter().try_for_each(|x| self.bytes(&one(*x)))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(io(&self.path))
    }
}

/// Writes a small file beside its place and moves it there.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_beside(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary(path).map_err(io(path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io(path))?;
    file.persist(path).map_err(|e| io(path)(e.error))?;
    Ok(())
}

/// The element type in a file.
pub fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
    }
}

/// A new file in the folder of `path`, with the permissions that any new file gets.
fn temporary(path: &Path) -> std::io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// The JSON header, in the order of the data.
struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    entries: Vec<(&'a str, TensorInfo)>,
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        for (name, info) in &self.entries {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}
