//! What the test command remembers of its stages: how long they took, and on which files they passed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What is known of the stages that ran with this target folder, by name.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record(BTreeMap<String, Last>);

/// The last run of a stage.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    seconds: u64,
    /// The [`digest`] it passed on. Absent where it failed, or where its files are not known.
    passed: Option<String>,
}

impl Record {
    /// What was kept; nothing where that is no record, which is made anew.
    pub(super) fn read() -> Result<Self> {
        Ok(fs::read(path()?).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default())
    }

    /// Seconds that a stage took when it last ran.
    pub(super) fn seconds(&self, stage: &str) -> Option<u64> {
        self.0.get(stage).map(|last| last.seconds)
    }

    /// Whether a stage passed when its files had this digest.
    pub(super) fn passed(&self, stage: &str, digest: &str) -> bool {
        self.0.get(stage).is_some_and(|last| last.passed.as_deref() == Some(digest))
    }

    /// Takes in a run and writes all to the target folder.
    pub(super) fn add(&mut self, stage: &str, seconds: u64, passed: Option<String>) -> Result<()> {
        self.0.insert(stage.to_owned(), Last { seconds, passed });
        let path = path()?;
        let text = serde_json::to_vec_pretty(self).context("numbers by name")?;
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("cannot write `{}`", path.display()))
    }
}

fn path() -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or(crate::root()?.join("target"), PathBuf::from);
    Ok(target.join("xtask-test.json"))
}

/// A number for everything a stage's outcome hangs on: the files below `inputs`, names and contents, the compilers, and the
/// variables that choose them.
pub(super) fn digest(root: &Path, inputs: &[&str]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for (program, args) in [("rustc", ["-vV"].as_slice()), ("g++", &["--version"])] {
        let variable = if program == "rustc" { "RUSTC" } else { "CXX" };
        let program = env::var_os(variable).unwrap_or_else(|| program.into());
        Command::new(program).args(args).output().ok().map(|output| output.stdout).hash(&mut hasher);
    }
    ["RUSTFLAGS", "TPGM_OFFLINE"].map(env::var_os).hash(&mut hasher);
    // What git does not know (a file of an editor, a cache) is part of no build.
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"])
        .args(inputs)
        .current_dir(root)
        .output()
        .context("cannot start git")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).context("a file name that is not UTF-8")?;
    let mut files: Vec<_> = listed.split_terminator('\0').collect();
    files.sort_unstable();
    files.dedup();
    for file in files {
        // A file that was deleted is listed still.
        (file, fs::read(root.join(file)).ok()).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository of two folders, in which nothing is committed.
    fn repository() -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        let success = Command::new("git").arg("init").arg("-q").current_dir(&folder).status()?.success();
        ensure!(success, "git init");
        for (file, text) in [("a/x.rs", "1"), ("b/y.rs", "2"), (".gitignore", "*.tmp")] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
        }
        Ok(folder)
    }

    #[test]
    fn a_digest_changes_with_its_files_alone() -> Result<()> {
        let folder = repository()?;
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text);
        let of = || digest(folder.path(), &["a"]);
        let first = of()?;
        write("b/y.rs", "3")?;
        write("a/x.tmp", "of an editor")?;
        assert_eq!(of()?, first, "files of others, and those git ignores");
        write("a/x.rs", "2")?;
        let changed = of()?;
        assert_ne!(changed, first, "contents");
        write("a/z.rs", "")?;
        assert_ne!(of()?, changed, "a new file");
        fs::remove_file(folder.path().join("a/z.rs"))?;
        assert_eq!(of()?, changed, "and as before without it");
        Ok(())
    }

    #[test]
    fn a_stage_passed_on_one_digest() {
        let mut record = Record::default();
        record.0.insert("stage".into(), Last { seconds: 3, passed: Some("a".into()) });
        assert!(record.passed("stage", "a") && !record.passed("stage", "b") && !record.passed("other", "a"));
        assert_eq!((record.seconds("stage"), record.seconds("other")), (Some(3), None));
        record.0.insert("stage".into(), Last { seconds: 3, passed: None });
        assert!(!record.passed("stage", "a"), "it failed since");
    }
}
