//! Standard output, and small files.

use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::{Serialize, Serializer};

use crate::failure::Failure;

/// Prints text. Whoever reads it may stop early (`tpgm inspect FILE | head`).
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(tpgm_files::io("standard output")(error).into())
        }
        _ => Ok(()),
    }
}

/// A path in JSON. What of it is not UTF-8 is replaced, as in messages.
#[derive(Debug)]
pub(crate) struct Shown<'a>(pub(crate) &'a Path);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.display())
    }
}

/// Prints JSON. Numbers that are not finite are `null`.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).expect("names and numbers can be written as JSON");
    print(&(text + "\n"))
}

/// Writes a small file, with its folder.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(tpgm_files::io(folder))?;
    }
    Ok(tpgm_files::write_beside(path, text.as_bytes())?)
}

/// Refuses an output that would take the place of a checkpoint, or of a file of it: `what` is what the checkpoint is called.
pub(crate) fn refuse_input(out: &Path, checkpoint: &Path, what: &str) -> Result<(), Failure> {
    if !out.exists() {
        return Ok(());
    }
    let part = if same_file(checkpoint, out) {
        ""
    } else if tpgm_files::files_of(checkpoint)?.iter().any(|file| same_file(file, out)) {
        "a file of "
    } else {
        return Ok(());
    };
    Err(Failure::usage(format!("--out {} is {part}{what}: it would be lost", out.display())))
}

/// Whether two paths lead to one file.
fn same_file(a: &Path, b: &Path) -> bool {
    a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}
