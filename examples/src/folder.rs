//! The folder of a run.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files;

/// Makes the folder `out` ready, and returns that in it whose name is `inner`: what is there is deleted, unless the run goes on.
/// `config` is what must be the same to go on.
///
/// # Errors
///
/// There is nothing to resume, or it was begun with another `config`; files that cannot be read, written or deleted.
pub fn prepare<C>(out: &Path, inner: &str, resume: bool, config: &C) -> Result<PathBuf>
where
    C: PartialEq + Debug + Serialize + DeserializeOwned,
{
    let (inner, path) = (out.join(inner), out.join("config.json"));
    let saved: Option<C> = files::read_json(&path)?;
    match saved {
        None if resume => bail!("there is no run in {}: leave out --resume to begin one", out.display()),
        Some(saved) if resume => ensure!(
            saved == *config,
            "{} was begun with other options ({saved:?}): give the same ones, or leave out --resume to begin anew",
            out.display()
        ),
        // Only what an earlier run of this example wrote is deleted.
        Some(_) if inner.exists() => {
            fs::remove_dir_all(&inner).with_context(|| format!("cannot delete {}", inner.display()))?;
        }
        _ => {}
    }
    files::write_json(&path, config)?;
    Ok(inner)
}

/// What to type to go on with the run that this process has interrupted.
pub fn how_to_resume() -> String {
    let again: String =
        std::env::args().skip(1).filter(|arg| arg != "--resume").map(|arg| format!("{arg} ")).collect();
    format!("\nstopped and saved. To go on: the same command with `-- {again}--resume`")
}
