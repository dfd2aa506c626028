//! Reading a `config.json`.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// What a file says, not yet checked. `what` is for messages: "the configuration of a BERT model".
pub(super) fn read<C: DeserializeOwned>(path: &Path, what: &'static str) -> Result<C> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|problem| Error::file(path, what, problem))
}
