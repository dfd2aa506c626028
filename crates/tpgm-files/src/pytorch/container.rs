//! Where a PyTorch file keeps its pickle and its storages.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::machine::parse;
use super::pickle::{Object, Pickle};
use super::tensor::storage_of;

/// What files before PyTorch 1.6 begin with, after the pickle's own two bytes.
const LEGACY: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Is this the start of a file as PyTorch wrote it before version 1.6?
pub(crate) fn is_legacy(start: &[u8]) -> bool {
    start.first() == Some(&0x80) && start.get(2..).is_some_and(|rest| rest.starts_with(LEGACY))
}

/// A file's description of its tensors, and where their elements are.
pub(super) struct Container {
    pub(super) pickle: Pickle,
    /// Bytes of the file by the keys that the pickle calls storages by.
    pub(super) storages: HashMap<String, Range<usize>>,
}

impl Container {
    pub(super) fn open(bytes: &[u8]) -> Result<Self, String> {
        if is_legacy(bytes) { legacy(bytes) } else { archive(bytes) }
    }
}

fn archive(bytes: &[u8]) -> Result<Container, String> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| {
        format!("its zip archive is damaged or cut off ({error}); download or copy it again")
    })?;
    let mut entries = HashMap::new();
    for i in 0..zip.len() {
        let entry = zip.by_index_raw(i).map_err(|error| format!("its zip archive is damaged: {error}"))?;
        let name = entry.name().map_err(|error| format!("its zip archive is damaged: {error}"))?.into_owned();
        let stored = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
        let range = entry.data_start().and_then(|start| {
            let start = usize::try_from(start).ok()?;
            let end = start.checked_add(usize::try_from(entry.compressed_size()).ok()?)?;
            (end <= bytes.len()).then_some(start..end)
        });
        entries.insert(name, range.filter(|_| stored));
    }
    let pickles: Vec<&str> = entries
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|folder| folder.is_empty() || folder.ends_with('/'))
        .collect();
    let folder = match pickles[..] {
        [folder] => folder.to_owned(),
        [] => return Err(without_pickle(entries.keys())),
        _ => return Err("it has more than one `data.pkl`".to_owned()),
    };
    let within = |name: &str| {
        entries.keys().any(|entry| entry.strip_prefix(&folder).is_some_and(|e| e.starts_with(name)))
    };
    if within("constants.pkl") || within("code/") {
        return Err(
            "it is a TorchScript archive (`torch.jit.save`): a program with its weights; in Python, \
             `torch.save(torch.jit.load(FILE).state_dict(), OTHER)` takes the weights out"
                .to_owned(),
        );
    }
    let at = |name: &str| entries.get(&format!("{folder}{name}"));
    let whole = |name: &str| match at(name) {
        Some(Some(range)) => Ok(&bytes[range.clone()]),
        Some(None) => Err(format!(
            "its `{name}` is compressed, encrypted or cut off, which PyTorch never leaves behind"
        )),
        None => Ok(&[][..]),
    };
    if whole("byteorder")? == b"big" {
        return Err("it was written on a machine with another order of bytes; save it again on a usual one"
            .to_owned());
    }
    let (pickle, _) = parse(whole("data.pkl")?)?;
    let prefix = format!("{folder}data/");
    let storages = entries
        .iter()
        .filter_map(|(name, range)| Some((name.strip_prefix(&prefix)?.to_owned(), range.clone()?)))
        .collect();
    Ok(Container { pickle, storages })
}

fn without_pickle<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_unstable();
    if names.iter().any(|name| name.ends_with(".npy")) {
        return "it is an archive of NumPy arrays (`.npz`); save them as safetensors".to_owned();
    }
    match names[..] {
        [] => "it is an empty zip archive".to_owned(),
        _ => {
            let shown: Vec<String> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
            format!(
                "it is a zip archive without `data.pkl`, with {}; unpack it if the checkpoint is inside",
                shown.join(", ")
            )
        }
    }
}

/// Before PyTorch 1.6: a magic number, a version, a description of the machine, the object, the keys of the storages, each as a
/// pickle; then every storage behind its number of elements.
fn legacy(bytes: &[u8]) -> Result<Container, String> {
    let mut at = 0;
    let mut next = || -> Result<Pickle, String> {
        let (pickle, used) = parse(&bytes[at..])?;
        at += used;
        Ok(pickle)
    };
    let (_magic, version, system, pickle, keys) = (next()?, next()?, next()?, next()?, next()?);
    if version.int(version.root) != Some(1001) {
        return Err("it is of an unknown version of PyTorch; load it there and save it again".to_owned());
    }
    let entries = system.dict(system.root).unwrap_or_default();
    let little = entries.iter().find(|(key, _)| system.text(*key) == Some("little_endian"));
    if little.is_some_and(|(_, value)| system.int(*value) == Some(0)) {
        return Err("it was written on a machine with another order of bytes; save it again on a usual one"
            .to_owned());
    }
    let mut sizes = HashMap::new();
    for object in &pickle.objects {
        if let Object::Persistent(id) = object
            && let Some(storage) = storage_of(&pickle, *id)
        {
            sizes.insert(storage.key, storage.element.size());
        }
    }
    let mut storages = HashMap::new();
    for key in keys.list(keys.root).ok_or("it has no list of storages")? {
        let key = keys.text(*key).ok_or("it has a storage without a name")?;
        let size = *sizes.get(key).ok_or_else(|| format!("nothing says what type storage `{key}` has"))?;
        let cut = || format!("it is cut off before the end of storage `{key}`; download or copy it again");
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut)?;
        let start = at + 8;
        let end = usize::try_from(u64::from_le_bytes(*count))
            .ok()
            .and_then(|count| count.checked_mul(size)?.checked_add(start))
            .filter(|&end| end <= bytes.len())
            .ok_or_else(cut)?;
        storages.insert(key.to_owned(), start..end);
        at = end;
    }
    Ok(Container { pickle, storages })
}
