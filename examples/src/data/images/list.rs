//! Which images there are, and their classes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::find::{Folder, Source, folders, parse_list};
use crate::data::Problems;
use crate::fingerprint::Digest;

/// Image files with their classes.
#[derive(Debug, Clone)]
pub struct ImageList {
    name: PathBuf,
    paths: Vec<PathBuf>,
    labels: Vec<u32>,
    classes: Vec<String>,
    /// The classes that can occur, ascending; `None` if all can.
    possible: Option<Vec<u32>>,
    numbered: bool,
}

/// The most classes that a list may have: a number beyond is something else than a class.
const CLASSES: u32 = 1_000_000;

impl ImageList {
    /// The images of a training set. Their classes are the folders, sorted by name, or the numbers of the list file.
    /// What is in the folders besides images is noted in `problems`.
    ///
    /// # Errors
    ///
    /// A folder or file that cannot be read, a line that is not `path class`, a class without images if it is a folder or
    /// number 0, fewer than two classes, or a problem that is not to be passed over.
    pub fn training(source: &Source, problems: &Problems) -> Result<Self> {
        let name = source.path();
        let found = read(source, problems)?;
        let classes = match &found {
            Found::Folders(folders) => folders.iter().map(|(class, _)| class.clone()).collect(),
            Found::Lines(lines) => numbers(name, lines)?,
        };
        ensure!(classes.len() > 1, "{} has {} classes, at least 2 are needed", name.display(), classes.len());
        Self::new(name, found, classes)
    }

    /// The images of a test set, of the classes of a training set.
    ///
    /// If there are folders for some classes only, as in ImageNet-A and -R, the others cannot occur, and a prediction is made
    /// among those that can. If all folders are named by numbers and no class is, as in ImageNet-V2, a number is the position
    /// of the class, from 0; see [`ImageList::numbered`].
    ///
    /// # Errors
    ///
    /// As [`ImageList::training`], or a class that is not in `classes`.
    pub fn test(source: &Source, classes: &[String], problems: &Problems) -> Result<Self> {
        Self::new(source.path(), read(source, problems)?, classes.to_vec())
    }

    fn new(name: &Path, found: Found, classes: Vec<String>) -> Result<Self> {
        let mut list = Self {
            name: name.to_owned(),
            paths: Vec::new(),
            labels: Vec::new(),
            classes,
            possible: None,
            numbered: false,
        };
        match found {
            Found::Folders(folders) => list.add_folders(folders)?,
            Found::Lines(lines) => list.add_lines(lines)?,
        }
        ensure!(!list.paths.is_empty(), "{} has no images", name.display());
        Ok(list)
    }

    fn add_folders(&mut self, folders: Vec<Folder>) -> Result<()> {
        // A class with a number for a name would be taken for a position, or a position for a class.
        self.numbered = folders.iter().all(|(folder, _)| is_number(folder))
            && !self.classes.iter().any(|class| is_number(class));
        let mut present = Vec::new();
        for (folder, images) in folders {
            let class = match self.numbered {
                true => folder.parse().ok().filter(|class| *class < self.classes.len()),
                false => self.classes.iter().position(|class| *class == folder),
            };
            let Some(class) = class.map(|class| class as u32) else {
                bail!(
                    "{}: folder `{folder}` is not one of the training set's classes, {}",
                    self.name.display(),
                    self.shown()
                )
            };
            present.push(class);
            self.labels.extend(std::iter::repeat_n(class, images.len()));
            self.paths.extend(images);
        }
        present.sort_unstable();
        present.dedup();
        self.possible = (present.len() < self.classes.len()).then_some(present);
        Ok(())
    }

    fn add_lines(&mut self, lines: Vec<(PathBuf, u32)>) -> Result<()> {
        for (path, class) in lines {
            ensure!(
                (class as usize) < self.classes.len(),
                "{}: class {class} of {} is not one of the training set's {}",
                self.name.display(),
                path.display(),
                self.classes.len()
            );
            self.paths.push(path);
            self.labels.push(class);
        }
        Ok(())
    }

    /// The first classes, for messages.
    fn shown(&self) -> String {
        let shown: Vec<_> = self.classes.iter().take(5).map(|class| format!("`{class}`")).collect();
        let more = if shown.len() < self.classes.len() { ", …" } else { "" };
        let numbers = if self.numbered { "; numbers are their positions, from 0" } else { "" };
        format!("which are {}{more}{numbers}", shown.join(", "))
    }

    /// Whether the names of folders are numbers that were taken as positions of the classes.
    pub fn numbered(&self) -> bool {
        self.numbered
    }

    /// Classes without an image: numbers of a list that it leaves out.
    pub fn empty_classes(&self) -> Vec<&str> {
        let mut has = vec![false; self.classes.len()];
        self.labels.iter().for_each(|class| has[*class as usize] = true);
        let empty = self.classes.iter().zip(has).filter(|(_, has)| !has);
        empty.map(|(class, _)| class.as_str()).collect()
    }

    /// Where it was read from.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// The class of each image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The classes that can occur, ascending; `None` if all can.
    pub fn possible(&self) -> Option<&[u32]> {
        self.possible.as_deref()
    }

    /// The file of an image.
    pub fn path(&self, position: usize) -> &Path {
        &self.paths[position]
    }

    /// What tells this set from another one: classes, files, their sizes and, of a set of up to 256 MiB, their content.
    /// Larger ones take too long to read twice.
    pub fn digest(&self) -> Digest {
        const MOST: u64 = 256 << 20;
        let size = |path: &PathBuf| fs::metadata(path).map_or(u64::MAX, |file| file.len());
        let sizes: Vec<_> = self.paths.iter().map(size).collect();
        let small =
            sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size)).is_some_and(|sum| sum <= MOST);
        let mut digest = Digest::new("images");
        self.classes.iter().for_each(|class| digest.add(class.as_bytes()));
        for ((path, class), size) in self.paths.iter().zip(&self.labels).zip(sizes) {
            digest.add(path.file_name().unwrap_or_default().as_encoded_bytes());
            digest.add(&class.to_le_bytes());
            digest.add(&size.to_le_bytes());
            if small {
                // What cannot be read is noted when it is needed.
                digest.add(&fs::read(path).unwrap_or_default());
            }
            digest.count();
        }
        digest
    }

    /// These images, and after them those of another list of the same classes.
    #[must_use]
    pub fn with(&self, more: &Self) -> Self {
        Self {
            paths: [&self.paths[..], &more.paths].concat(),
            labels: [&self.labels[..], &more.labels].concat(),
            ..self.clone()
        }
    }

    /// The same images, any of whose classes may be predicted: for sets that have some of the classes by chance.
    #[must_use]
    pub fn of_any_class(self) -> Self {
        Self { possible: None, ..self }
    }

    /// For each image a number of what it shows: images of one class whose files are called the same up to the first dot
    /// show the same thing.
    pub fn units(&self) -> Vec<u64> {
        let unit = |(path, class): (&PathBuf, &u32)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let stem = name.split('.').next().unwrap_or_default();
            let mut digest = Digest::new("bytes");
            digest.add(&class.to_le_bytes());
            digest.add(stem.as_bytes());
            digest.number()
        };
        self.paths.iter().zip(&self.labels).map(unit).collect()
    }

    /// The images at some positions.
    #[must_use]
    pub fn select(&self, positions: &[usize]) -> Self {
        Self {
            paths: positions.iter().map(|position| self.paths[*position].clone()).collect(),
            labels: positions.iter().map(|position| self.labels[*position]).collect(),
            ..self.clone()
        }
    }
}

enum Found {
    Folders(Vec<Folder>),
    /// Images with the numbers of their classes.
    Lines(Vec<(PathBuf, u32)>),
}

fn read(source: &Source, problems: &Problems) -> Result<Found> {
    Ok(match source {
        Source::Folders(root) => Found::Folders(folders(root, problems)?),
        Source::List(file, root) => {
            let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            Found::Lines(parse_list(file, &bytes, root)?)
        }
    })
}

/// The classes of a list: the numbers from 0 to the largest.
fn numbers(name: &Path, lines: &[(PathBuf, u32)]) -> Result<Vec<String>> {
    let Some((path, largest)) = lines.iter().max_by_key(|(_, class)| class) else { return Ok(Vec::new()) };
    ensure!(
        *largest < CLASSES,
        "{}: class {largest} of {}: classes are numbers from 0 to {}",
        name.display(),
        path.display(),
        CLASSES - 1
    );
    ensure!(
        lines.iter().any(|(_, class)| *class == 0),
        "{}: class 0 has no images, but classes are numbered from 0: subtract 1 from all numbers of this list and of the test \
         lists if they begin at 1",
        name.display()
    );
    Ok((0..=*largest).map(|class| class.to_string()).collect())
}

fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests;
