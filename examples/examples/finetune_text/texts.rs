//! The texts of a study.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tpgm_examples::data::text::{Fields, TextEncoder, TextSet, classes, read};
use tpgm_examples::data::{Problems, hold_out};

/// Share of the training file that is held out when there is no file of held-out texts.
const HELD_OUT: f64 = 0.2;

/// Which texts are held out does not depend on the seed of training: seeds are compared on the same texts.
const SPLIT_SEED: u64 = 0;

/// Files of texts.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    pub(crate) train: &'a Path,
    pub(crate) held_out: Option<&'a Path>,
    /// With the names of the sets; the first has the distribution of the training texts.
    pub(crate) tests: &'a [(String, PathBuf)],
    pub(crate) fields: Fields,
}

/// Encoded texts.
pub(crate) struct Texts {
    /// Names of the classes, sorted.
    pub(crate) classes: Vec<String>,
    pub(crate) train: TextSet,
    /// For learning radii.
    pub(crate) radii: TextSet,
    /// The former after each other.
    pub(crate) both: TextSet,
    /// For choosing settings.
    pub(crate) choice: TextSet,
    /// That no choice depends on.
    pub(crate) tests: Vec<(String, TextSet)>,
}

impl Texts {
    /// Reads and encodes all files. Held-out texts are divided into halves: one for learning radii, one for choosing
    /// settings, so that TPGM is not judged on what it has learned from.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or has no usable texts, or too few texts to hold some out.
    pub(crate) fn read(files: &Files<'_>, encoder: &TextEncoder, problems: &Problems) -> Result<Self> {
        let rows = |path: &Path| read(path, &files.fields, problems);
        let training = rows(files.train)?;
        let classes = classes(&training).with_context(|| files.train.display().to_string())?;
        let encode = |path: &Path| encoder.encode(path, &rows(path)?, &classes, problems);
        let all = encoder.encode(files.train, &training, &classes, problems)?;
        let (train, held_out) = match files.held_out {
            Some(path) => (all, encode(path)?),
            None => {
                let (train, held_out) = hold_out(all.labels(), HELD_OUT, SPLIT_SEED)
                    .with_context(|| files.train.display().to_string())?;
                (all.select(&train), all.select(&held_out))
            }
        };
        let (radii, choice) = hold_out(held_out.labels(), 0.5, SPLIT_SEED)
            .context("the held-out texts are divided into halves")?;
        let test = |(name, path): &(String, PathBuf)| Ok((name.clone(), encode(path)?));
        let radii = held_out.select(&radii);
        Ok(Self {
            both: train.with(&radii),
            train,
            radii,
            choice: held_out.select(&choice),
            tests: files.tests.iter().map(test).collect::<Result<_>>()?,
            classes,
        })
    }
}
