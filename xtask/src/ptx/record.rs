//! On what the committed modules were compiled: a number beside the sources, so that they need not be compiled again to know
//! that they are up to date.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::EXTENSION;
use crate::cuda_tools::{FATBINARY, NVRTC, PTXAS};

/// Our own code that calls the compilers; its options are in there.
const CALLERS: [&str; 4] = [
    include_str!("compile.rs"),
    include_str!("fatbinary.rs"),
    include_str!("nvrtc.rs"),
    include_str!("ptxas.rs"),
];

/// The file of the record.
pub(super) fn path(kernels: &Path) -> PathBuf {
    kernels.join("compiled.sha256")
}

/// Whether the modules are those that were written, and so is all that they are made of. The compilers are pinned and give the
/// same bytes for the same input, so they would give these again.
pub(super) fn holds(kernels: &Path, modules: &Path) -> Result<bool> {
    let recorded = fs::read_to_string(path(kernels)).unwrap_or_default();
    Ok(recorded.trim_end() == of(kernels, modules)?)
}

/// Writes the record.
pub(super) fn write(kernels: &Path, modules: &Path) -> Result<()> {
    super::write(&path(kernels), format!("{}\n", of(kernels, modules)?).as_bytes())
}

/// Removes the record.
pub(super) fn remove(kernels: &Path) -> Result<()> {
    let path = path(kernels);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

/// SHA-256 over all that the modules are made of (the sources, the pinned compilers and how they are called) and over the
/// modules.
fn of(kernels: &Path, modules: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut add = |name: &str, bytes: &[u8]| {
        // With lengths: no two sets of files read the same.
        for part in [name.as_bytes(), bytes] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    };
    for tool in [NVRTC, PTXAS, FATBINARY] {
        add("compiler", format!("{tool:?}").as_bytes());
    }
    for caller in CALLERS {
        add("caller", caller.as_bytes());
    }
    for (folder, extensions) in
        [(kernels, &["cu", "cuh"][..]), (&kernels.join("layers"), &["cu", "cuh"]), (modules, &[EXTENSION])]
    {
        let name = folder.file_name().context("a folder's name")?.to_string_lossy();
        for file in files(folder, extensions)? {
            let bytes = fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
            let file = file.file_name().context("a file's name")?.to_string_lossy();
            add(&format!("{name}/{file}"), &bytes);
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The files with one of the extensions, by name; none where there is no folder.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let path = entry?.path();
        if extensions.iter().any(|extension| path.extension().is_some_and(|found| found == *extension)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_record_changes_with_every_source_and_module() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (kernels, modules) = (folder.path().join("kernels"), folder.path().join("modules"));
        fs::create_dir_all(kernels.join("layers"))?;
        fs::create_dir_all(kernels.join("emulator"))?;
        let mut seen = BTreeSet::from([of(&kernels, &modules)?]);
        fs::create_dir(&modules)?;
        let sources = ["f32.cu", "tile.cuh", "layers/norm.cuh"].map(|file| kernels.join(file));
        for file in [&sources[..], &[modules.join("step.fatbin")]].concat() {
            for text in ["", "a", "b"] {
                fs::write(&file, text)?;
                assert!(seen.insert(of(&kernels, &modules)?), "{} with {text:?}", file.display());
            }
        }
        fs::rename(modules.join("step.fatbin"), modules.join("stem.fatbin"))?;
        assert!(seen.insert(of(&kernels, &modules)?), "another name");
        // What is compiled for the CPU, and the record itself, are no part of it.
        let before = of(&kernels, &modules)?;
        fs::write(kernels.join("emulator/thread.cuh"), "")?;
        assert!(!holds(&kernels, &modules)?);
        write(&kernels, &modules)?;
        fs::write(kernels.join("README.md"), "")?;
        assert_eq!(of(&kernels, &modules)?, before);
        assert!(holds(&kernels, &modules)?);
        remove(&kernels)?;
        remove(&kernels)?;
        assert!(!holds(&kernels, &modules)?);
        Ok(())
    }
}
