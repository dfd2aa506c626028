//! Files that are there whole or not at all.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes a file beside its place and renames it; creates missing folders.
///
/// # Errors
///
/// No space, no permission; names the file.
pub(crate) fn file(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let attempt = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&beside, content)?;
        fs::rename(&beside, path)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}
