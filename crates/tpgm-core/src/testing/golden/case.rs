//! The JSON of a folder and of a case.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::error::GoldenError;
use super::model::{Model, Param};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    #[serde(default, rename = "set")]
    _set: IgnoredAny,
    pub(super) cases: Vec<IndexEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IndexEntry {
    pub(super) case: String,
    /// Path of the case's JSON, relative to the index.
    pub(super) json: String,
    /// Paths of its tensors by element type, relative to the index.
    pub(super) files: BTreeMap<String, String>,
}

/// All fields of all methods; each method asks for its own with [`required`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) case: String,
    pub(super) method: String,
    pub(super) model: Option<Model>,
    pub(super) params: Vec<Param>,
    pub(super) batch: Option<usize>,
    pub(super) n_batches: Option<usize>,

    // TPGM
    pub(super) norm: Option<NormName>,
    pub(super) proj_lr: Option<f64>,
    pub(super) adam: Option<RadiusAdamConfig>,
    pub(super) rounds: Option<Vec<Round>>,

    // FTP and SPD
    pub(super) steps: Option<usize>,
    pub(super) optimizer: Option<OptimizerConfig>,
    pub(super) ftp: Option<FtpConfig>,
    pub(super) anchor: Option<AnchorSource>,

    // WiSE
    pub(super) alphas: Option<Vec<f64>>,
    pub(super) fisher: Option<bool>,
    pub(super) fisher_floor: Option<f64>,

    // How the numbers were made: the files hold the results.
    #[serde(default, rename = "files")]
    _files: IgnoredAny,
    #[serde(default, rename = "note")]
    _note: IgnoredAny,
    #[serde(default, rename = "seed")]
    _seed: IgnoredAny,
    #[serde(default, rename = "versions")]
    _versions: IgnoredAny,
    #[serde(default, rename = "noise")]
    _noise: IgnoredAny,
    #[serde(default, rename = "zero_displacement")]
    _zero_displacement: IgnoredAny,
    #[serde(default, rename = "zero_displacement_rounds")]
    _zero_displacement_rounds: IgnoredAny,
    #[serde(default, rename = "zero_rows")]
    _zero_rows: IgnoredAny,
    #[serde(default, rename = "start")]
    _start: IgnoredAny,
    #[serde(default, rename = "lr_per_step")]
    _lr_per_step: IgnoredAny,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NormName {
    L2,
    Mars,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RadiusAdamConfig {
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    #[serde(default)]
    pub(super) weight_decay: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Round {
    pub(super) iters: usize,
    #[serde(default)]
    pub(super) apply_only: bool,
}

/// Adam's and SGD's options together; each method refuses the other's.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OptimizerConfig {
    pub(super) lr: f64,
    #[serde(default)]
    pub(super) weight_decay: f64,
    pub(super) betas: Option<[f64; 2]>,
    pub(super) eps: Option<f64>,
    pub(super) amsgrad: Option<bool>,
    pub(super) momentum: Option<f64>,
    pub(super) dampening: Option<f64>,
    pub(super) nesterov: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FtpConfig {
    pub(super) k: f64,
    pub(super) gamma_lr: f64,
    pub(super) gamma_betas: [f64; 2],
    pub(super) gamma_eps: f64,
    pub(super) gamma_init: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AnchorSource {
    /// In the file.
    File,
    Zeros,
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, GoldenError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| GoldenError::Io { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|source| GoldenError::Json { path: path.to_owned(), source })
}

/// A path that an index gives, which must stay inside its folder.
pub(super) fn inside(dir: &Path, index: &Path, relative: &str) -> Result<PathBuf, GoldenError> {
    let normal = Path::new(relative).components().all(|c| matches!(c, Component::Normal(_)));
    if normal && !relative.is_empty() {
        Ok(dir.join(relative))
    } else {
        Err(GoldenError::Field {
            path: index.to_owned(),
            field: relative.to_owned(),
            problem: "is not a path inside the folder".to_owned(),
        })
    }
}

/// A field that the method needs.
pub(super) fn required<T>(value: Option<T>, path: &Path, field: &str) -> Result<T, GoldenError> {
    value.ok_or_else(|| field_error(path, field, "is missing"))
}

pub(super) fn field_error(path: &Path, field: &str, problem: impl Into<String>) -> GoldenError {
    GoldenError::Field { path: path.to_owned(), field: field.to_owned(), problem: problem.into() }
}
