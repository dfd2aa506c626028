//! Image files in folders, and in list files.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::decode::{FORMATS, MAGIC, is_image};
use crate::data::{Problems, unicode_text};

/// Where a list of images comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder with a folder per class, as ImageNet and its variants have.
    Folders(PathBuf),
    /// A file with lines `path class`, the class being a number from 0, as DomainNet's splits; paths are relative to the
    /// second path.
    List(PathBuf, PathBuf),
}

impl Source {
    /// A folder is one of folders, a file is a list whose paths are relative to `root`, or to its own folder.
    ///
    /// # Errors
    ///
    /// There is neither.
    pub fn new(path: &Path, root: Option<&Path>) -> Result<Self> {
        if path.is_dir() {
            return Ok(Source::Folders(path.to_owned()));
        }
        ensure!(path.is_file(), "there is no folder or list file {}", path.display());
        let root = root.or(path.parent()).unwrap_or(Path::new("."));
        Ok(Source::List(path.to_owned(), root.to_owned()))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        match self {
            Source::Folders(path) | Source::List(path, _) => path,
        }
    }
}

/// The images of a class: its name, and their files.
pub(super) type Folder = (String, Vec<PathBuf>);

/// Folders that programs make beside those of classes.
const NO_CLASSES: [&str; 3] = ["__MACOSX", "@eaDir", "$RECYCLE.BIN"];

/// The folders of classes and the images in each, both sorted by name. Files without the ending of an image are images if
/// they begin as one. What is there besides is noted in `problems`: other files and folders in the folder of a class, images
/// beside the folders, hidden folders. Hidden files are no samples.
///
/// # Errors
///
/// A folder that cannot be read, or that is of a class but has no image.
pub(super) fn folders(root: &Path, problems: &Problems) -> Result<Vec<Folder>> {
    let mut folders = Vec::new();
    for path in entries(root)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !path.is_dir() {
            if !name.starts_with('.') && has_ending(&path) {
                problems.note(path.display().to_string(), "is in no folder of a class")?;
            }
            continue;
        }
        if name.starts_with('.') {
            problems.note(path.display().to_string(), "is a hidden folder: not taken for a class")?;
            continue;
        }
        ensure!(
            !NO_CLASSES.contains(&name.as_str()),
            "{}: a folder like this is made by other programs and is no class: delete it",
            path.display()
        );
        let images = images(&path, problems)?;
        ensure!(
            !images.is_empty(),
            "{} has no images, but each folder is a class: delete it, or add {FORMATS} images",
            path.display()
        );
        folders.push((name, images));
    }
    Ok(folders)
}

/// The images of a class.
fn images(folder: &Path, problems: &Problems) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for path in entries(folder)? {
        let note = |why: String| problems.note(path.display().to_string(), why);
        if path.is_dir() {
            let files = entries(&path)?.len();
            note(format!("is a folder in the folder of a class: the {files} files in it are not read"))?;
        } else if path.file_name().unwrap_or_default().to_string_lossy().starts_with('.') {
            // As `.DS_Store`.
        } else if has_ending(&path) || begins_as_image(&path) {
            images.push(path);
        } else {
            note(format!("is no {FORMATS} image"))?;
        }
    }
    Ok(images)
}

/// What is in a folder, sorted by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || {
        let mut paths = fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()?;
        paths.sort();
        Ok::<_, std::io::Error>(paths)
    };
    read().with_context(|| format!("cannot read {}", folder.display()))
}

/// Ends of the names of image files, in lower case. Of others the begin is read, which takes time for a million files.
const ENDS: [&str; 11] = ["jpg", "jpeg", "jfif", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "apng"];

fn has_ending(path: &Path) -> bool {
    let end = path.extension().map(|end| end.to_string_lossy().to_lowercase());
    end.is_some_and(|end| ENDS.contains(&end.as_str()))
}

fn begins_as_image(path: &Path) -> bool {
    let mut begin = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAGIC as u64).read_to_end(&mut begin));
    read.is_ok() && is_image(&begin)
}

/// Reads a list: lines `path class`, the class being a number from 0. `name` is for messages; paths are relative to `root`.
///
/// # Errors
///
/// Names the line that is something else.
pub fn parse_list(name: &Path, bytes: &[u8], root: &Path) -> Result<Vec<(PathBuf, u32)>> {
    let text = unicode_text(bytes).with_context(|| name.display().to_string())?;
    let mut images = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parts = line.trim().rsplit_once(char::is_whitespace);
        match parts.and_then(|(path, class)| Some((path.trim(), class.parse().ok()?))) {
            Some((path, class)) => images.push((root.join(path), class)),
            None => bail!("{}:{}: expected `path class`, found `{line}`", name.display(), number + 1),
        }
    }
    Ok(images)
}
