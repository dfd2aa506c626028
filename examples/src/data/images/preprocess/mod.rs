//! What the files beside a model say of how its images are prepared.

mod entries;
mod formats;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use self::entries::Entries;
use super::{Resample, Transform};
use crate::data::utf8;

/// The files that may say it, the first one being asked first: Hugging Face's old and new one, timm's, OpenCLIP's.
pub const PREPROCESSING_FILES: [&str; 4] =
    ["preprocessor_config.json", "processor_config.json", "config.json", "open_clip_config.json"];

/// What a file says of how images are prepared; `None` where it does not.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Preprocessing {
    /// Side of the result in pixels.
    pub side: Option<usize>,
    /// The length that the shorter side is scaled to, before the middle is cut out.
    pub resize: Option<usize>,
    /// Whether both sides are scaled to that length.
    pub squash: Option<bool>,
    /// How it is scaled.
    pub resample: Option<Resample>,
    /// Mean of each color, of values in `[0, 1]`.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of each color.
    pub deviation: Option<[f32; 3]>,
}

/// Entries of Hugging Face's file: one is enough to know it by.
const HUGGING_FACE: [&str; 11] = [
    "image_processor_type",
    "feature_extractor_type",
    "image_mean",
    "image_std",
    "do_normalize",
    "do_resize",
    "do_rescale",
    "do_center_crop",
    "crop_size",
    "resample",
    "rescale_factor",
];

impl Preprocessing {
    /// Looks through the files beside a model; the result has the file that was found.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or that asks for something that is not supported; names it.
    pub fn beside(folder: &Path) -> Result<Option<(PathBuf, Self)>> {
        for path in PREPROCESSING_FILES.map(|name| folder.join(name)) {
            if !path.is_file() {
                continue;
            }
            if let Some(found) = Self::of_file(&path)? {
                return Ok(Some((path, found)));
            }
            ensure!(
                !path.ends_with(PREPROCESSING_FILES[0]),
                "{} does not say how images are prepared: delete it, or name another file",
                path.display()
            );
        }
        Ok(None)
    }

    /// Reads a file; `None` if it is about other things.
    ///
    /// # Errors
    ///
    /// As [`Preprocessing::beside`].
    pub fn of_file(path: &Path) -> Result<Option<Self>> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| path.display().to_string())
    }

    /// Understands the content of a file: Hugging Face's `preprocessor_config.json` (or `processor_config.json`, with
    /// `image_processor`), timm's `config.json` (`pretrained_cfg`,
    /// or its entries at the top) or OpenCLIP's `open_clip_config.json` (`preprocess_cfg`). `None` if it is none of them.
    ///
    /// # Errors
    ///
    /// No JSON object, an entry of another type than usual, or one that asks for something that is not supported; names the
    /// entry.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let file: Map<String, Value> = serde_json::from_slice(&utf8(bytes)?).context("is no JSON object")?;
        let section = |name: &str| match file.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(section)) => Ok(Some(section)),
            Some(_) => bail!("`{name}` is no object"),
        };
        if let Some(timm) = section("pretrained_cfg")? {
            return Entries(timm).timm().context("`pretrained_cfg`").map(Some);
        }
        if let Some(open_clip) = section("preprocess_cfg")? {
            return Entries(open_clip).open_clip().context("`preprocess_cfg`").map(Some);
        }
        if let Some(hugging_face) = section("image_processor")? {
            return Entries(hugging_face).hugging_face().context("`image_processor`").map(Some);
        }
        if HUGGING_FACE.iter().any(|name| file.contains_key(*name)) {
            return Entries(&file).hugging_face().map(Some);
        }
        if file.contains_key("architecture") && file.contains_key("mean") {
            return Entries(&file).timm().map(Some);
        }
        Ok(None)
    }

    /// What to do with images: as `usual`, except for what is said here. `side` is that of the network's images, whatever
    /// is said here; where it is another one, images are scaled in proportion.
    ///
    /// # Errors
    ///
    /// The middle is larger than the scaled image.
    pub fn transform(&self, usual: Transform, side: Option<usize>) -> Result<Transform> {
        let own = self.side.unwrap_or(usual.side);
        let side = side.unwrap_or(own);
        let (resize, of) = match self.resize {
            Some(resize) => (resize, own),
            None => (usual.resize, usual.side),
        };
        let resize = (side * resize).div_ceil(of);
        ensure!(
            resize >= side,
            "images are scaled to {resize} pixels, but the middle that is cut out has {side}: padding is not supported"
        );
        Ok(Transform {
            side,
            resize,
            squash: self.squash.unwrap_or(usual.squash),
            resample: self.resample.unwrap_or(usual.resample),
            mean: self.mean.unwrap_or(usual.mean),
            deviation: self.deviation.unwrap_or(usual.deviation),
            augmentation: usual.augmentation,
        })
    }
}
