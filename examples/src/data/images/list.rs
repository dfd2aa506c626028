//! Which images there are, and their classes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

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
}

/// Image files with their classes.
#[derive(Debug, Clone)]
pub struct ImageList {
    name: PathBuf,
    paths: Vec<PathBuf>,
    labels: Vec<u32>,
    classes: Vec<String>,
    /// The classes that can occur, ascending; `None` if all can.
    possible: Option<Vec<u32>>,
}

/// Ends of the names of image files, in lower case.
const ENDS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

impl ImageList {
    /// The images of a training set. Their classes are the folders, sorted by name, or the numbers of the list file.
    ///
    /// # Errors
    ///
    /// A folder or file that cannot be read, a line that is not `path class`, fewer than two classes, or no images.
    pub fn training(source: &Source) -> Result<Self> {
        let (name, found) = read(source)?;
        let classes = match &found {
            Found::Folders(folders) => folders.iter().map(|(class, _)| class.clone()).collect(),
            Found::Lines(lines) => {
                let count = lines.iter().map(|(_, class)| class + 1).max().unwrap_or(0);
                (0..count).map(|class| class.to_string()).collect::<Vec<_>>()
            }
        };
        ensure!(classes.len() > 1, "{} has {} classes, at least 2 are needed", name.display(), classes.len());
        Self::new(name, found, classes)
    }

    /// The images of a test set, of the classes of a training set. If folders are named by numbers, as in ImageNet-V2, a
    /// number is the position of the class. If there are folders for some classes only, as in ImageNet-A and -R, the
    /// others cannot occur, and a prediction is made among those that can.
    ///
    /// # Errors
    ///
    /// As [`ImageList::training`], or a class that is not in `classes`.
    pub fn test(source: &Source, classes: &[String]) -> Result<Self> {
        let (name, found) = read(source)?;
        Self::new(name, found, classes.to_vec())
    }

    fn new(name: PathBuf, found: Found, classes: Vec<String>) -> Result<Self> {
        let (mut paths, mut labels, mut possible) = (Vec::new(), Vec::new(), None);
        match found {
            Found::Folders(folders) => {
                let numbers = folders.iter().all(|(folder, _)| folder.parse::<usize>().is_ok());
                let numbered = numbers && folders.iter().any(|(folder, _)| !classes.contains(folder));
                let class = |folder: &str| match numbered {
                    true => folder.parse().ok().filter(|class| *class < classes.len()),
                    false => classes.binary_search_by(|class| class.as_str().cmp(folder)).ok(),
                };
                let mut present = Vec::new();
                for (folder, images) in folders {
                    let Some(class) = class(&folder) else {
                        bail!(
                            "{}: folder `{folder}` is not one of the training set's classes",
                            name.display()
                        )
                    };
                    present.push(class as u32);
                    labels.extend(std::iter::repeat_n(class as u32, images.len()));
                    paths.extend(images);
                }
                if present.len() < classes.len() {
                    present.sort_unstable();
                    possible = Some(present);
                }
            }
            Found::Lines(lines) => {
                for (path, class) in lines {
                    ensure!(
                        (class as usize) < classes.len(),
                        "{}: class {class} of {} is not one of the training set's {}",
                        name.display(),
                        path.display(),
                        classes.len()
                    );
                    paths.push(path);
                    labels.push(class);
                }
            }
        }
        ensure!(!paths.is_empty(), "{} has no images", name.display());
        Ok(Self { name, paths, labels, classes, possible })
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
    /// Folders and the images in each, both sorted by name.
    Folders(Vec<(String, Vec<PathBuf>)>),
    /// Images with the numbers of their classes.
    Lines(Vec<(PathBuf, u32)>),
}

fn read(source: &Source) -> Result<(PathBuf, Found)> {
    match source {
        Source::Folders(root) => {
            let mut folders = Vec::new();
            for path in entries(root)?.into_iter().filter(|path| path.is_dir()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                folders.push((name, entries(&path)?.into_iter().filter(|path| is_image(path)).collect()));
            }
            Ok((root.clone(), Found::Folders(folders)))
        }
        Source::List(file, root) => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let read = |(number, line): (usize, &str)| {
                let parts = line.trim().rsplit_once(char::is_whitespace);
                let parsed =
                    parts.and_then(|(path, class)| Some((root.join(path.trim()), class.parse().ok()?)));
                parsed.with_context(|| {
                    format!("{}:{}: expected `path class`, found `{line}`", file.display(), number + 1)
                })
            };
            Ok((file.clone(), Found::Lines(lines.map(read).collect::<Result<_>>()?)))
        }
    }
}

/// What is in a folder, sorted by name, without hidden files.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || {
        let mut paths = fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()?;
        paths.retain(|path| !path.file_name().unwrap_or_default().to_string_lossy().starts_with('.'));
        paths.sort();
        Ok::<_, std::io::Error>(paths)
    };
    read().with_context(|| format!("cannot read {}", folder.display()))
}

fn is_image(path: &Path) -> bool {
    let end = path.extension().map(|end| end.to_string_lossy().to_lowercase());
    end.is_some_and(|end| ENDS.contains(&end.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn source(folder: &tempfile::TempDir) -> Source {
        Source::new(folder.path(), None).unwrap()
    }

    #[test]
    fn folders_are_classes_sorted_by_name() {
        let folder =
            tree(&["n02/b.JPEG", "n02/a.png", "n01/c.jpg", "n01/notes.txt", "n01/.d.jpg", "readme.jpg"]);
        let list = ImageList::training(&source(&folder)).unwrap();
        assert_eq!(list.classes(), ["n01", "n02"]);
        let names: Vec<_> =
            (0..list.len()).map(|i| list.path(i).file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            (names.as_slice(), list.labels()),
            (["c.jpg", "a.png", "b.JPEG"].as_slice(), [0, 1, 1].as_slice())
        );
        assert_eq!(list.select(&[2, 0]).labels(), [1, 0]);
    }

    #[test]
    fn a_test_set_of_some_classes_knows_which_can_occur() {
        let classes = ["n01", "n02", "n07", "n09"].map(str::to_owned);
        let list = ImageList::test(&source(&tree(&["n07/a.jpg", "n02/b.jpg"])), &classes).unwrap();
        assert_eq!((list.labels(), list.possible()), ([1, 2].as_slice(), Some([1, 2].as_slice())));
        let numbered = tree(&["0/a.jpg", "1/a.jpg", "10/a.jpg", "2/a.jpg", "3/a.jpg"]);
        let eleven: Vec<_> = (0..11).map(|class| format!("n{class:02}")).collect();
        assert_eq!(ImageList::test(&source(&numbered), &eleven).unwrap().labels(), [0, 1, 10, 2, 3]);
        let error = ImageList::test(&source(&numbered), &classes).unwrap_err().to_string();
        assert!(error.contains("folder `10` is not one"), "{error}");
        let error = ImageList::test(&source(&tree(&["n03/a.jpg"])), &classes).unwrap_err().to_string();
        assert!(error.contains("folder `n03` is not one"), "{error}");
    }

    #[test]
    fn list_files_have_paths_with_spaces_and_classes() {
        let folder = tree(&[]);
        let path = folder.path().join("real_train.txt");
        fs::write(&path, "real/alarm clock/a.jpg 0\n\nreal/zebra/b.jpg 2\n").unwrap();
        let list = ImageList::training(&Source::new(&path, None).unwrap()).unwrap();
        assert_eq!((list.classes().len(), list.labels()), (3, [0, 2].as_slice()));
        assert_eq!(list.path(0), folder.path().join("real/alarm clock/a.jpg"));
        assert!(list.possible().is_none());
        let other = Source::new(&path, Some(Path::new("/images"))).unwrap();
        assert_eq!(
            ImageList::test(&other, list.classes()).unwrap().path(1),
            Path::new("/images/real/zebra/b.jpg")
        );
        let two = &list.classes()[..2];
        assert!(ImageList::test(&other, two).unwrap_err().to_string().contains("class 2 of"));
        fs::write(&path, "a.jpg 0\nb.jpg one\n").unwrap();
        let error = ImageList::training(&Source::new(&path, None).unwrap()).unwrap_err().to_string();
        assert!(error.contains("real_train.txt:2: expected `path class`"), "{error}");
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        assert!(Source::new(Path::new("/nowhere"), None).unwrap_err().to_string().contains("/nowhere"));
        let error = ImageList::training(&source(&tree(&["a/b.jpg"]))).unwrap_err().to_string();
        assert!(error.contains("has 1 classes"), "{error}");
        let error = ImageList::training(&source(&tree(&["a/b.txt", "b/c.txt"]))).unwrap_err().to_string();
        assert!(error.contains("has no images"), "{error}");
    }
}
