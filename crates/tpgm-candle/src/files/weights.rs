//! Checkpoints read tensor by tensor, without loading them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use tpgm_core::element::{bf16, f16};
use tpgm_core::{Buffer, DType, Element, Slice};

use super::error::{Error, Result, io};

/// The longest header that is read: the limit of the format's reference implementation.
const MAX_HEADER: usize = 100_000_000;

/// Bytes before the header: its length.
const PREFIX: usize = 8;

/// A memory-mapped checkpoint of one or several safetensors files.
#[derive(Debug)]
pub(crate) struct Weights {
    path: PathBuf,
    shards: Vec<Shard>,
    /// Names in the order of the files, each with its shard.
    names: Vec<(String, usize)>,
    index: HashMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    map: Mmap,
    data: usize,
    header: Metadata,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

impl Weights {
    /// Maps a safetensors file, the files that a `*.index.json` lists, or the `model.safetensors` of a folder, whole or
    /// in shards. Reads headers only.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { in_folder(path) } else { path.to_owned() };
        let is_index = path.extension().is_some_and(|extension| extension == "json");
        let (shards, names) = if is_index { open_index(&path)? } else { open_one(&path)? };
        let index = names.iter().cloned().collect();
        Ok(Self { path, shards, names, index })
    }

    /// Where the checkpoint is, for messages.
    pub(crate) fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// All names, in the order in which the data lie in the files.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.names.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn get(&self, name: &str) -> Option<Entry<'_>> {
        let shard = &self.shards[*self.index.get(name)?];
        let info = shard.header.info(name)?;
        let (start, end) = info.data_offsets;
        // The header was checked to describe exactly the bytes that follow it.
        let bytes = &shard.map[shard.data + start..shard.data + end];
        Some(Entry { dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// The text that the files carry; of shards that disagree, the first.
    pub(crate) fn metadata(&self) -> BTreeMap<String, String> {
        let texts = self.shards.iter().rev().filter_map(|shard| shard.header.metadata().as_ref());
        texts.flatten().map(|(key, text)| (key.clone(), text.clone())).collect()
    }
}

impl<'a> Entry<'a> {
    /// Type and shape, for messages.
    pub(crate) fn describe(&self) -> String {
        format!("{} {:?}", self.dtype, self.shape)
    }

    /// The element type if it can be merged.
    pub(crate) fn float(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F64 => Some(DType::F64),
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// True for types of which a mean makes no sense: integers and booleans.
    pub(crate) fn is_discrete(&self) -> bool {
        use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
        matches!(self.dtype, BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
    }

    /// The elements, if they can be merged.
    pub(crate) fn values(&self) -> Option<Values<'a>> {
        Some(match self.float()? {
            DType::F64 => view(self.bytes, f64::from_le_bytes, Buffer::F64),
            DType::F32 => view(self.bytes, f32::from_le_bytes, Buffer::F32),
            DType::F16 => view(self.bytes, f16::from_le_bytes, Buffer::F16),
            DType::BF16 => view(self.bytes, bf16::from_le_bytes, Buffer::BF16),
        })
    }
}

/// The elements of a tensor: where the file has them, or decoded if they lie at an odd address there.
pub(crate) enum Values<'a> {
    Mapped(Slice<'a>),
    Decoded(Buffer),
}

impl Values<'_> {
    pub(crate) fn slice(&self) -> Slice<'_> {
        match self {
            Self::Mapped(slice) => *slice,
            Self::Decoded(buffer) => buffer.as_slice(),
        }
    }
}

fn view<'a, T: Element + bytemuck::Pod, const SIZE: usize>(
    bytes: &'a [u8],
    one: impl Fn([u8; SIZE]) -> T,
    buffer: impl Fn(Vec<T>) -> Buffer,
) -> Values<'a>
where
    Slice<'a>: From<&'a [T]>,
{
    if cfg!(target_endian = "little")
        && let Ok(elements) = bytemuck::try_cast_slice::<u8, T>(bytes)
    {
        return Values::Mapped(elements.into());
    }
    let (elements, _) = bytes.as_chunks::<SIZE>();
    Values::Decoded(buffer(elements.iter().map(|bytes| one(*bytes)).collect()))
}

fn in_folder(folder: &Path) -> PathBuf {
    let index = folder.join("model.safetensors.index.json");
    if index.exists() { index } else { folder.join("model.safetensors") }
}

type Opened = (Vec<Shard>, Vec<(String, usize)>);

fn open_one(path: &Path) -> Result<Opened> {
    let shard = Shard::open(path)?;
    let names = shard.header.offset_keys().into_iter().map(|name| (name, 0)).collect();
    Ok((vec![shard], names))
}

/// The part of a sharded checkpoint's index that is needed.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_index(path: &Path) -> Result<Opened> {
    let bad = |problem| Error::BadFile { path: path.to_owned(), problem };
    let text = std::fs::read(path).map_err(io(path))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| bad(format!("not an index of shards: {e}")))?;
    let mut files: Vec<&String> = index.weight_map.values().collect();
    files.sort();
    files.dedup();
    let (mut shards, mut names) = (Vec::new(), Vec::new());
    for file in files {
        // An index must not reach out of its folder.
        if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
            return Err(bad(format!("`{file}` is not the name of a file beside it")));
        }
        let shard = Shard::open(&path.with_file_name(file))?;
        let own =
            shard.header.offset_keys().into_iter().filter(|name| index.weight_map.get(name) == Some(file));
        names.extend(own.map(|name| (name, shards.len())));
        shards.push(shard);
    }
    if names.len() != index.weight_map.len() {
        let missing =
            index.weight_map.iter().find(|(name, _)| !names.iter().any(|(known, _)| known == *name));
        let (name, file) = missing.expect("there are fewer names than the index lists");
        return Err(bad(format!("tensor `{name}` is not in `{file}`")));
    }
    Ok((shards, names))
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let bad = |problem| Error::BadFile { path: path.to_owned(), problem };
        let file = File::open(path).map_err(io(path))?;
        // SAFETY: the map is only read, as bytes and as numbers, for which every bit pattern is valid. A file that another
        // process changes or cuts off meanwhile gives other numbers or ends this process, as with every memory-mapped
        // reader: `merge_files` and `distances` say not to.
        let map = unsafe { Mmap::map(&file) }.map_err(io(path))?;
        let prefix = map.first_chunk::<PREFIX>().ok_or_else(|| bad("it has no header".to_owned()))?;
        let header = usize::try_from(u64::from_le_bytes(*prefix))
            .ok()
            .filter(|len| *len <= MAX_HEADER)
            .and_then(|len| map.get(PREFIX..PREFIX + len))
            .ok_or_else(
                || bad("its header is longer than the file, or it is of another format".to_owned()),
            )?;
        let data = PREFIX + header.len();
        let header: Metadata =
            serde_json::from_slice(header).map_err(|e| bad(format!("its header is damaged: {e}")))?;
        let there = map.len() - data;
        if header.data_len() != there {
            return Err(bad(format!("its header describes {} bytes, but {there} follow", header.data_len())));
        }
        Ok(Self { map, data, header })
    }
}
