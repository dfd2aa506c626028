//! The images of a study.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tpgm_examples::data::images::{ImageList, Source};
use tpgm_examples::data::{Problems, hold_out};
use tpgm_examples::fingerprint::Fingerprint;

/// Share of the training images that is held out when there are no others.
const HELD_OUT: f64 = 0.1;

/// Which images are held out does not depend on the seed of training: seeds are compared on the same images.
const SPLIT_SEED: u64 = 0;

/// Where images are.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    pub(crate) train: &'a Path,
    pub(crate) held_out: Option<&'a Path>,
    /// Held out for radii; `held_out` is then for choices alone.
    pub(crate) radii: Option<&'a Path>,
    /// With the names of the sets; the first has the distribution of the training images.
    pub(crate) tests: &'a [(String, PathBuf)],
    /// What the paths of list files are relative to.
    pub(crate) root: Option<&'a Path>,
}

/// Lists of images, and how they are prepared.
pub(crate) struct Images {
    pub(crate) train: ImageList,
    /// For learning radii.
    pub(crate) radii: ImageList,
    /// The former after each other.
    pub(crate) both: ImageList,
    /// For choosing settings.
    pub(crate) choice: ImageList,
    /// That no choice depends on.
    pub(crate) tests: Vec<(String, ImageList)>,
    /// What tells them from other images.
    pub(crate) prints: Fingerprint,
}

impl Images {
    /// Finds all images; they are read when they are needed. Held-out images are divided into halves: one for learning
    /// radii, one for choosing settings, so that TPGM is not judged on what it has learned from; unless there are images for
    /// radii.
    ///
    /// # Errors
    ///
    /// A folder or list that cannot be read or has no images, or too few images to hold some out.
    pub(crate) fn find(places: &Places<'_>, problems: &Problems) -> Result<Self> {
        let source = |path: &Path| Source::new(path, places.root);
        let all = ImageList::training(&source(places.train)?, problems)?;
        let test = |path: &Path| ImageList::test(&source(path)?, all.classes(), problems);
        let mut prints = Fingerprint::default().with("training images", &all.digest());
        let split = |list: &ImageList, share| {
            hold_out(list.labels(), share, SPLIT_SEED)
                .map(|(rest, out)| (list.select(&rest), list.select(&out)))
                .with_context(|| format!("held-out images from {}", list.name().display()))
        };
        let (train, held_out) = match places.held_out {
            Some(path) => {
                let held_out = test(path)?;
                prints = prints.with("held-out images", &held_out.digest());
                (all.clone(), held_out)
            }
            None => split(&all, HELD_OUT)?,
        };
        let (radii, choice) = match places.radii {
            Some(path) => {
                let radii = test(path)?;
                prints = prints.with("images for radii", &radii.digest());
                // Each may have some of the classes by chance: all can be predicted.
                (radii, held_out.of_any_class())
            }
            None => split(&held_out, 0.5)?,
        };
        let mut tests = Vec::new();
        for (number, (name, path)) in places.tests.iter().enumerate() {
            let list = test(path)?;
            prints = prints.with(format!("test images {}, {name}", number + 1), &list.digest());
            tests.push((name.clone(), list));
        }
        Ok(Self { both: train.with(&radii), train, radii, choice, tests, prints })
    }

    /// The names of the classes.
    pub(crate) fn classes(&self) -> &[String] {
        self.train.classes()
    }

    /// Names and sizes of all lists, for the terminal.
    pub(crate) fn describe(&self) -> String {
        let lists = [("training", &self.train), ("radii", &self.radii), ("choice", &self.choice)];
        let tests = self.tests.iter().map(|(name, list)| (name.as_str(), list));
        let size = |(name, list): (&str, &ImageList)| {
            let mut size = format!("{name} {}", list.len());
            if let Some(possible) = list.possible() {
                size += &format!(" (of {} classes)", possible.len());
            } else if let [first, others @ ..] = &list.empty_classes()[..] {
                size += &format!(" (none of class {first}");
                if !others.is_empty() {
                    size += &format!(" and {} others", others.len());
                }
                size += ")";
            }
            if list.numbered() {
                size += " (folders are positions of classes)";
            }
            size
        };
        let sizes: Vec<_> = lists.into_iter().chain(tests).map(size).collect();
        format!("{} classes; images: {}", self.classes().len(), sizes.join(", "))
    }
}
