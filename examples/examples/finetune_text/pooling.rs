//! How the model makes one vector of a text: what sentence-transformers' files say.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Deserialize;
use tpgm_candle::models::bert::Pooling;
use tpgm_examples::files;

/// Where the setting is, in the folder of a model.
pub(crate) const FILE: &str = "1_Pooling/config.json";

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

/// The pooling that a model was trained with; that of its first token where the folder does not say.
///
/// # Errors
///
/// The file cannot be read, or asks for another pooling.
pub(crate) fn of_model(folder: &Path) -> Result<Pooling> {
    let path = folder.join(FILE);
    match files::read_json::<Config>(&path)? {
        None => Ok(Pooling::Cls),
        Some(Config { pooling_mode_mean_tokens: true, pooling_mode_cls_token: false }) => Ok(Pooling::Mean),
        Some(Config { pooling_mode_mean_tokens: false, pooling_mode_cls_token: true }) => Ok(Pooling::Cls),
        Some(_) => bail!("{}: only the mean over tokens or the first token is supported", path.display()),
    }
}
