//! What `torch.save` writes: zip archives since version 1.6, a row of pickles before.

mod choose;
mod container;
mod machine;
mod pickle;
mod tensor;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use self::container::Container;
pub(super) use self::container::is_legacy;
use self::tensor::{Element, Stored};
use super::data::AnchorData;
use super::error::{Error, Result, io};
use super::options::{Chosen, OpenOptions};
use super::source::{Listed, Other, Value};

const FORMAT: &str = "a PyTorch checkpoint";

pub(super) struct Reader {
    map: Arc<Mmap>,
    tensors: HashMap<String, Stored>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader").field(&self.tensors.len()).finish()
    }
}

/// What [`open`] found.
pub(super) struct Opened {
    pub(super) reader: Reader,
    pub(super) listed: Vec<Listed>,
    pub(super) chosen: Chosen,
}

pub(super) fn open(path: &Path, file: &File, options: &OpenOptions) -> Result<Opened> {
    // SAFETY: as for safetensors files: the map is private and read-only, and the crate's page tells its callers not
    // to change the file in place.
    let map = unsafe { Mmap::map(file) }.map_err(io(path))?;
    let bad = |problem: String| Error::file(path, FORMAT, problem);
    let container = Container::open(&map).map_err(bad)?;
    let choice = choose::choose(&container.pickle, options.wanted_key()).map_err(|problem| {
        let path = path.to_owned();
        match options.wanted_key() {
            Some(_) => Error::BadOption { path, problem },
            None => Error::BadFile { path, problem },
        }
    })?;

    let mut tensors = HashMap::new();
    for (name, id) in choice.tensors {
        let stored = tensor::interpret(&container, id)
            .and_then(|stored| stored.check(map.len()).map(|()| stored))
            .map_err(|problem| Error::tensor(path, name, problem))?;
        tensors.insert(name.to_owned(), stored);
    }
    // Tied weights are saved once and listed twice.
    let mut first_names: BTreeMap<_, &String> = BTreeMap::new();
    let mut listed = vec![];
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort_unstable();
    for name in names {
        let stored = &tensors[name];
        let first = *first_names.entry((stored.start, &stored.shape, &stored.strides)).or_insert(name);
        let tied = first != name && stored.elements() > 0;
        listed.push(Listed {
            name: name.clone(),
            dtype: stored.element.file_dtype(),
            shape: stored.shape.clone(),
            storage: tied.then(|| first.clone()),
        });
    }
    let chosen = Chosen { file: path.to_owned(), key: choice.key, others: choice.others };
    drop(first_names);
    Ok(Opened { reader: Reader { map: Arc::new(map), tensors }, listed, chosen })
}

impl Reader {
    /// The elements of a listed tensor, row-major, as a safetensors file has them.
    pub(super) fn bytes(&self, path: &Path, name: &str) -> Result<Vec<u8>> {
        let stored = &self.tensors[name];
        match &stored.element {
            Element::Unreadable(what) if !stored.element.is_plain() => {
                Err(Error::tensor(path, name, format!("{what} cannot be copied")))
            }
            _ => Ok(stored.gather(&self.map)),
        }
    }

    pub(super) fn read(&self, path: &Path, name: &str) -> Result<Value<'_>> {
        let stored = &self.tensors[name];
        let bytes = stored.range();
        match &stored.element {
            Element::Float(dtype) => Ok(Value::Float(match stored.is_row_major() {
                true => AnchorData::mapped(&self.map, bytes, *dtype),
                false => AnchorData::copied(&stored.gather(&self.map), *dtype),
            })),
            Element::Other(dtype) => {
                let bytes = Cow::Owned(stored.gather(&self.map));
                Ok(Value::Other(Other { dtype: *dtype, shape: &stored.shape, bytes }))
            }
            Element::Unreadable(what) => Err(Error::tensor(
                path,
                name,
                format!("{what} cannot be read; convert it in Python, for example with `.float()`"),
            )),
        }
    }
}
