//! Checkpoint files: names, shapes, and values on demand.

use std::borrow::Cow;
use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;

use super::data::AnchorData;
use super::error::{Error, Result, io};
use super::kind::{Kind, Start};
use super::options::{Chosen, OpenOptions};
use super::suggest::close_names;
use super::{folder, pytorch, safetensors};

/// The tensors of one or several checkpoint files.
#[derive(Debug, Default)]
pub struct Source {
    files: Vec<File>,
    /// Of PyTorch files, in the order of the files.
    chosen: Vec<Chosen>,
    entries: BTreeMap<String, Entry>,
}

/// A tensor's value.
pub enum Value<'a> {
    /// Of a type that can be trained: f64, f32, f16 or bf16.
    Float(AnchorData),
    /// Of another type.
    Other(Other<'a>),
}

/// A value of a type that is not trained: integers, booleans, 8-bit numbers.
#[derive(Debug, Clone)]
pub struct Other<'a> {
    /// The element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: &'a [usize],
    /// The elements, row-major and little-endian.
    pub bytes: Cow<'a, [u8]>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    Safetensors(safetensors::Reader),
    PyTorch(pytorch::Reader),
}

#[derive(Debug)]
struct Entry {
    file: usize,
    /// Where it was listed in its file.
    place: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// The name under which the same storage was listed first.
    storage: String,
}

/// What a reader says about a tensor when a file is opened. Readers list in the order of the data, if there is one.
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Set if another tensor of this file shares its storage: the first name of that storage.
    pub(super) storage: Option<String>,
}

impl Source {
    /// Opens files, sharded indices, or folders that hold a checkpoint.
    ///
    /// # Errors
    ///
    /// The file, or a tensor in it, is missing, damaged or of an unknown format, or a name is in two files; [`Error::BadOption`] for
    /// a key without weights.
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>, options: &OpenOptions) -> Result<Self> {
        let mut source = Self::default();
        for path in paths {
            for part in folder::parts(path.as_ref())? {
                source.add(&part, options)?;
            }
        }
        // A key that nobody looked for was given in vain.
        if let (Some(key), [], [first, ..]) = (options.wanted_key(), &source.chosen[..], &source.files[..]) {
            let problem = format!(
                "safetensors files have no keys; open it without the key `{key}` (`OpenOptions::key`, `--key`)"
            );
            return Err(Error::BadOption { path: first.path.clone(), problem });
        }
        Ok(source)
    }

    fn add(&mut self, part: &folder::Part, options: &OpenOptions) -> Result<()> {
        let (reader, listed) = self.open_file(&part.path, options)?;
        let file = self.files.len();
        self.files.push(File { path: part.path.clone(), reader });
        let names: HashSet<&str> = listed.iter().map(|listed| listed.name.as_str()).collect();
        if let Some((index, wanted)) = &part.wanted
            && let Some(tensor) = wanted.iter().find(|name| !names.contains(name.as_str()))
        {
            let problem = format!("`{}` says that this file has it, but it does not", index.display());
            return Err(Error::tensor(&part.path, tensor, problem));
        }
        for (place, Listed { name, dtype, shape, storage }) in listed.into_iter().enumerate() {
            if part.wanted.as_ref().is_some_and(|(_, wanted)| !wanted.contains(&name)) {
                continue;
            }
            match self.entries.entry(name) {
                Slot::Occupied(slot) => {
                    let other = &self.files[slot.get().file].path;
                    let problem = format!("`{}` has a tensor of this name too", other.display());
                    return Err(Error::tensor(&part.path, slot.key(), problem));
                }
                Slot::Vacant(slot) => {
                    let storage = storage.unwrap_or_else(|| slot.key().clone());
                    slot.insert(Entry { file, place, dtype, shape, storage });
                }
            }
        }
        Ok(())
    }

    /// The content decides what a file is: `.bin` and `.pt` say little, and names are given wrong.
    fn open_file(&mut self, path: &Path, options: &OpenOptions) -> Result<(Reader, Vec<Listed>)> {
        let file = std::fs::File::open(path).map_err(io(path))?;
        let start = Start::read(path, &file)?;
        match start.kind() {
            Kind::PyTorch => {
                let opened = pytorch::open(path, &file, options)?;
                self.chosen.push(opened.chosen);
                Ok((Reader::PyTorch(opened.reader), opened.listed))
            }
            Kind::Foreign(problem) => Err(Error::BadFile { path: path.to_owned(), problem }),
            Kind::Safetensors => {
                let (reader, listed) = safetensors::open(path, &file)?;
                Ok((Reader::Safetensors(reader), listed))
            }
        }
    }

    /// Where the weights of PyTorch files were found, in the order of the files.
    pub fn chosen(&self) -> &[Chosen] {
        &self.chosen
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.entries.keys().map(String::as_str)
    }

    /// The files, in the order given.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Dimensions of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Is it a tensor of floating-point numbers, of whatever size? Integers and booleans are no weights.
    pub fn is_float(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| !is_discrete(entry.dtype))
    }

    /// The file of a tensor.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.entries.get(name).map(|entry| self.files[entry.file].path.as_path())
    }

    /// The one name that stands for all tensors with this tensor's storage and shape.
    pub fn storage(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|entry| entry.storage.as_str())
    }

    /// Names that somebody may have meant.
    pub fn close(&self, name: &str) -> Vec<String> {
        close_names(name, self.names())
    }

    /// Reads a tensor; `None` if no file has it.
    ///
    /// # Errors
    ///
    /// The data is damaged, or has a type of fewer than 8 bits or that safetensors files lack.
    pub fn read(&self, name: &str) -> Result<Option<Value<'_>>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let File { path, reader } = &self.files[entry.file];
        match reader {
            Reader::Safetensors(reader) => reader.read(path, name),
            Reader::PyTorch(reader) => reader.read(path, name),
        }
        .map(Some)
    }
}

/// What merging needs beside values: the order of the files, element types, bits and texts.
impl Source {
    /// All names, in the order in which the data lie in the files.
    pub fn in_order(&self) -> Vec<&str> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(_, entry)| (entry.file, entry.place));
        entries.into_iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Element type of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.entries.get(name).map(|entry| entry.dtype)
    }

    /// The elements of a tensor as safetensors files have them; `None` if no file has it.
    ///
    /// # Errors
    ///
    /// The file has a type that safetensors files lack.
    pub fn bytes(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let File { path, reader } = &self.files[entry.file];
        match reader {
            Reader::Safetensors(reader) => Ok(Some(Cow::Borrowed(reader.bytes(name)))),
            Reader::PyTorch(reader) => reader.bytes(path, name).map(|bytes| Some(Cow::Owned(bytes))),
        }
    }

    /// The text that the files carry; of files that disagree, the first.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let texts = self.files.iter().rev().filter_map(|file| match &file.reader {
            Reader::Safetensors(reader) => Some(reader.metadata()),
            Reader::PyTorch(_) => None,
        });
        texts.flatten().map(|(key, text)| (key.clone(), text.clone())).collect()
    }
}

/// True for integers and booleans: a mean of them makes no sense.
pub(super) fn is_discrete(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}
