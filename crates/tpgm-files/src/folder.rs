//! From what a user names to files: one file, an index of shards, or a folder with either.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::{Error, Result, io};
use super::kind::{Kind, Start, without_bom};

const FORMAT: &str = "an index of shards";

/// The longest index that is read, as the longest header of a safetensors file.
const MAX_INDEX: u64 = 100_000_000;

/// A file to open.
pub(super) struct Part {
    pub(super) path: PathBuf,
    /// An index and the tensors that it says are in this file; others are left alone.
    pub(super) wanted: Option<(PathBuf, BTreeSet<String>)>,
}

/// The layout of `model.safetensors.index.json` and `pytorch_model.bin.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, PathBuf>,
}

/// The files that `path` stands for.
pub(super) fn parts(path: &Path) -> Result<Vec<Part>> {
    if path.is_dir() {
        let inside = checkpoint_of(path)?;
        return parts(&inside);
    }
    let file = File::open(path).map_err(io(path))?;
    // An index may have lost its ending, and only an index is text: configurations have names of their own.
    if Start::read(path, &file)?.is_json() || path.extension().is_some_and(|ending| ending == "json") {
        return shards(path);
    }
    Ok(vec![Part { path: path.to_owned(), wanted: None }])
}

/// The files that are read where `path` is opened: those with tensors, and their index if there is one.
///
/// # Errors
///
/// There is no checkpoint at `path`, or a shard of it is missing.
pub fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let parts = parts(path)?;
    let index = parts.first().and_then(|part| Some(part.wanted.as_ref()?.0.clone()));
    Ok(parts.into_iter().map(|part| part.path).chain(index).collect())
}

fn shards(index: &Path) -> Result<Vec<Part>> {
    let bad = |problem: String| Error::file(index, FORMAT, problem);
    let length = std::fs::metadata(index).map_err(io(index))?.len();
    if length > MAX_INDEX {
        return Err(bad(format!("{length} bytes are more than any index has")));
    }
    let text = std::fs::read(index).map_err(io(index))?;
    if let Kind::Foreign(problem) = Start::of(&text).kind()
        && !Start::of(&text).is_json()
    {
        return Err(Error::BadFile { path: index.to_owned(), problem });
    }
    let Index { weight_map } = serde_json::from_slice(without_bom(&text))
        .map_err(|error| bad(format!("{error}; is it a configuration? Name the weights, or their folder")))?;
    let folder = index.parent().unwrap_or(Path::new(""));
    let mut shards: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for (tensor, shard) in weight_map {
        // An index must not reach out of its folder.
        if !shard.components().all(|part| matches!(part, Component::Normal(_))) {
            let problem = format!("its shard `{}` is not a file of the index's folder", shard.display());
            return Err(Error::tensor(index, &tensor, problem));
        }
        let path = folder.join(&shard);
        if !path.is_file() {
            let problem = format!("its shard `{}` does not exist; download it too", path.display());
            return Err(Error::tensor(index, &tensor, problem));
        }
        shards.entry(path).or_default().insert(tensor);
    }
    let part = |(path, tensors)| Part { path, wanted: Some((index.to_owned(), tensors)) };
    Ok(shards.into_iter().map(part).collect())
}

/// What a folder holds, by the names that the Hugging Face hub uses; safetensors before PyTorch files.
fn checkpoint_of(folder: &Path) -> Result<PathBuf> {
    let mut names = vec![];
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let entry = entry.map_err(io(folder))?;
        if entry.path().is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();
    const ENDINGS: [(&str, &str); 4] = [
        ("model.safetensors.index.json", ".safetensors.index.json"),
        ("model.safetensors", ".safetensors"),
        ("pytorch_model.bin.index.json", ".bin.index.json"),
        ("pytorch_model.bin", ".bin"),
    ];
    for (usual, ending) in ENDINGS {
        if names.iter().any(|name| name == usual) {
            return Ok(folder.join(usual));
        }
        let found: Vec<&String> = names.iter().filter(|name| name.ends_with(ending)).collect();
        match found[..] {
            [] => {}
            [name] => return Ok(folder.join(name)),
            [first, second, ..] => {
                let problem = format!("it has `{first}` and `{second}`, and no index; name one of them");
                return Err(Error::file(folder, "a folder with one checkpoint", problem));
            }
        }
    }
    Err(Error::file(folder, "a folder with a checkpoint", "no `*.safetensors` or `*.bin` file in it"))
}
