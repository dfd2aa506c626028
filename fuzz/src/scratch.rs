//! Files for readers that take paths.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = folder();
}

/// A new folder, in memory where the system has one there.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("there is room for temporary files")
}

/// The path of a file of this thread, whether it exists or not.
pub(crate) fn path(name: &str) -> PathBuf {
    FOLDER.with(|folder| folder.path().join(name))
}

/// Writes a file and says where it is.
pub(crate) fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = path(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("there is room for temporary files");
    }
    // A new file each time: the last one may still be mapped, and must not change then.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).expect("there is room for temporary files");
    path
}

/// Writes a file that stays as it is, once.
pub(crate) fn once(name: &str, bytes: impl FnOnce() -> Vec<u8>) -> PathBuf {
    let path = path(name);
    if path.exists() { path } else { file(name, &bytes()) }
}
