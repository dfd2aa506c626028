//! Checkpoints as merges see them: under new names, in the order of their data.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tpgm_core::DType;

use super::data::AnchorData;
use super::error::{Error, Result};
use super::options::OpenOptions;
use super::source::{Source, Value, is_discrete};

/// A checkpoint of one or several files, read tensor by tensor.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    source: Source,
    /// Names in the order of the files.
    names: Vec<String>,
    /// The name in the file of each.
    stored: HashMap<String, String>,
    /// Where in `names` the tensors are that share a storage, for each storage that is shared.
    tied: HashMap<String, Vec<usize>>,
}

/// Element type and shape of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: &'a [usize],
}

impl Weights {
    /// Opens whatever [`Source`] opens, with each tensor under the name that `rename` makes of its name in the file. Reads
    /// headers only.
    ///
    /// # Errors
    ///
    /// As [`Source::open`], or [`Error::BadOption`] if two tensors are to have the same name.
    pub fn renamed(path: &Path, rename: impl FnMut(&str) -> String) -> Result<Self> {
        Self::renamed_with(path, &OpenOptions::default(), rename)
    }

    /// [`Weights::renamed`] with options.
    ///
    /// # Errors
    ///
    /// As [`Weights::renamed`].
    pub fn renamed_with(
        path: &Path,
        options: &OpenOptions,
        mut rename: impl FnMut(&str) -> String,
    ) -> Result<Self> {
        let source = Source::open([path], options)?;
        let (mut names, mut stored) = (Vec::new(), HashMap::new());
        let mut tied: HashMap<_, Vec<usize>> = HashMap::new();
        for old in source.in_order() {
            let name = rename(old);
            if let Some(other) = stored.insert(name.clone(), old.to_owned()) {
                let problem = format!("tensor `{old}`: it is to be called `{name}`, and so is `{other}`");
                return Err(Error::BadOption { path: path.to_owned(), problem });
            }
            if let Some(storage) = source.storage(old) {
                tied.entry(storage.to_owned()).or_default().push(names.len());
            }
            names.push(name);
        }
        tied.retain(|_, names| names.len() > 1);
        Ok(Self { path: path.to_owned(), source, names, stored, tied })
    }

    /// The files below, with the names that they have there.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Where the checkpoint is, for messages.
    pub fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// All names, in the order in which the data lie in the files.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.names.iter().map(String::as_str)
    }

    /// Element type and shape of a tensor; `None` if it is not there.
    pub fn get(&self, name: &str) -> Option<Entry<'_>> {
        let stored = self.stored.get(name)?;
        Some(Entry { dtype: self.source.dtype(stored)?, shape: self.source.shape(stored)? })
    }

    /// The other names under which the file has the same tensor: PyTorch's files list tied weights once for each name.
    pub fn twins<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let group = self.stored.get(name).and_then(|stored| self.tied.get(self.source.storage(stored)?));
        group.into_iter().flatten().map(|&at| self.names[at].as_str()).filter(move |other| *other != name)
    }

    /// The elements of a tensor that can be merged; `None` for a tensor of another type, or that is not there.
    ///
    /// # Errors
    ///
    /// As [`Source::read`].
    pub fn values(&self, name: &str) -> Result<Option<AnchorData>> {
        if self.get(name).is_none_or(|entry| entry.float().is_none()) {
            return Ok(None);
        }
        Ok(self.source.read(&self.stored[name])?.and_then(|value| match value {
            Value::Float(data) => Some(data),
            Value::Other(_) => None,
        }))
    }

    /// The elements of any tensor, as a safetensors file has them; `None` if it is not there.
    ///
    /// # Errors
    ///
    /// As [`Source::bytes`].
    pub fn bytes(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>> {
        match self.stored.get(name) {
            Some(stored) => self.source.bytes(stored),
            None => Ok(None),
        }
    }

    /// The text that the files carry; of shards that disagree, the first.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.source.metadata()
    }

    /// The text for a safetensors file that is made of this checkpoint: its own, or, since PyTorch files carry none, what
    /// transformers asks of every file: `format` is `pt`.
    pub fn metadata_to_write(&self) -> BTreeMap<String, String> {
        let mut metadata = self.metadata();
        if metadata.is_empty() {
            metadata.insert("format".to_owned(), "pt".to_owned());
        }
        metadata
    }
}

impl Entry<'_> {
    /// Type and shape, for messages.
    pub fn describe(&self) -> String {
        format!("{} {:?}", self.dtype, self.shape)
    }

    /// The element type if it can be merged.
    pub fn float(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F64 => Some(DType::F64),
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// True for types of which a mean makes no sense: integers and booleans.
    pub fn is_discrete(&self) -> bool {
        is_discrete(self.dtype)
    }

    /// True for types that whole weights are squeezed into: 8 bits and fewer.
    pub fn is_narrow(&self) -> bool {
        self.dtype != Dtype::BOOL && self.dtype.bitsize() <= 8
    }
}
