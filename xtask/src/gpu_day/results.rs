//! What came back from a GPU machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use tpgm_benches::report::Line;

use super::folder::create;

/// Lines of a message that are shown.
const MESSAGE_LINES: usize = 3;
/// Findings of one sanitizer that are shown.
const FINDINGS: usize = 10;

/// An archive that was read.
#[derive(Debug)]
pub(crate) struct Results {
    /// Where the programs were built from.
    pub(crate) commit: String,
    /// Made without a GPU, under the stand-in for the driver.
    pub(crate) dry_run: bool,
    pub(crate) stages: Vec<Stage>,
    /// Rows of the benchmarks, as they were written, and what they say.
    pub(crate) rows: Vec<(String, Line)>,
    pub(crate) failures: Vec<Failure>,
}

/// A line of `stages.tsv`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) name: String,
    /// `ok`, `partly`, `FAILED`, `cut` or `skipped`.
    pub(crate) verdict: String,
    pub(crate) seconds: String,
    pub(crate) reason: String,
}

/// Something that did not go as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) stage: String,
    /// A test, a finding, or the stage itself.
    pub(crate) what: String,
    pub(crate) message: String,
}

impl Results {
    /// Unpacks an archive into a folder that is removed again, and reads it.
    ///
    /// # Errors
    ///
    /// If it is damaged, or is not what the script packs; names the file.
    pub(crate) fn read(archive: &Path) -> Result<Self> {
        ensure!(archive.is_file(), "there is no file `{}`", archive.display());
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("results-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = crate::root()?.join("target/gpu-day").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot empty `{}`", folder.display()))?;
        }
        create(&folder)?;
        let results = unpack(archive, &folder).and_then(|folder| Self::of(&folder, archive));
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
        results
    }

    fn of(folder: &Path, archive: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            let bytes =
                fs::read(&path).with_context(|| format!("`{}` has no results/{name}", archive.display()))?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let commit = text("COMMIT").context("is it from run.sh of gpu-day?")?.trim().to_owned();
        let stages = text("stages.tsv")?.lines().map(stage).collect::<Result<Vec<_>>>();
        let stages = stages.with_context(|| format!("in `{}`", archive.display()))?;
        let mut failures = Vec::new();
        for stage in &stages {
            let log = text(&format!("{}.log", stage.name)).unwrap_or_default();
            failures.append(&mut stage.failures(&log));
        }
        let mut rows = Vec::new();
        if folder.join("rows.jsonl").exists() {
            for (number, line) in text("rows.jsonl")?.lines().enumerate() {
                match serde_json::from_str(line) {
                    Ok(row) => rows.push((line.to_owned(), row)),
                    // Whole rows are not lost for one that was cut off while it was written.
                    Err(error) => failures.push(Failure {
                        stage: "rows.jsonl".to_owned(),
                        what: format!("line {} is no row", number + 1),
                        message: error.to_string(),
                    }),
                }
            }
        }
        Ok(Self { commit, dry_run: folder.join("DRY_RUN").exists(), stages, rows, failures })
    }
}

/// Returns the folder with the results.
fn unpack(archive: &Path, folder: &Path) -> Result<PathBuf> {
    let output = Command::new("tar")
        .args(["--extract", "--gzip", "--no-same-owner", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .output()
        .context("cannot start `tar` (Debian: install tar and gzip)")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let first = message.trim().lines().next().unwrap_or_default();
        bail!("`{}` is damaged, or no archive: {first}", archive.display());
    }
    Ok(folder.join("results"))
}

fn stage(line: &str) -> Result<Stage> {
    let mut words = line.splitn(4, '\t').map(str::to_owned);
    let mut next = || words.next().with_context(|| format!("stages.tsv: `{line}` is no stage"));
    Ok(Stage { name: next()?, verdict: next()?, seconds: next()?, reason: next()? })
}

impl Stage {
    /// What its log tells of; the stage itself, if the log does not tell why it failed.
    fn failures(&self, log: &str) -> Vec<Failure> {
        let failure = |(what, message): (String, String)| Failure { stage: self.name.clone(), what, message };
        let mut failures: Vec<_> = failed_tests(log).into_iter().chain(findings(log)).map(failure).collect();
        let whole = match self.verdict.as_str() {
            "ok" => false,
            "FAILED" => failures.is_empty(),
            _ => true,
        };
        if whole {
            failures.insert(0, failure((self.verdict.clone(), self.reason.clone())));
        }
        failures
    }
}

/// Names of the tests that failed, with the first lines of what they said.
fn failed_tests(log: &str) -> Vec<(String, String)> {
    let mut names = BTreeSet::new();
    let mut listed = false;
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix("test ") {
            names.extend(rest.strip_suffix(" ... FAILED"));
        }
        // The list at the end, which a log has that was not cut off.
        match line.strip_prefix("    ") {
            Some(name) if listed && !name.contains(' ') => drop(names.insert(name)),
            _ => listed = line == "failures:" || listed && line.is_empty(),
        }
    }
    names.into_iter().map(|name| (name.to_owned(), message_of(name, log))).collect()
}

/// What a test said: its own part of the log, or else what follows its panic.
fn message_of(test: &str, log: &str) -> String {
    let (heading, panic) = (format!("---- {test} stdout ----"), format!("thread '{test}'"));
    let mut lines = log.lines().skip_while(|line| *line != heading).skip(1).peekable();
    let lines: Vec<_> = match lines.peek() {
        Some(_) => lines.take_while(|line| !line.starts_with("---- ") && *line != "failures:").collect(),
        None => log.lines().skip_while(|line| !line.starts_with(&panic)).collect(),
    };
    let said = lines.into_iter().filter(|line| !line.trim().is_empty() && !line.starts_with("note: "));
    said.take(MESSAGE_LINES).collect::<Vec<_>>().join(" / ")
}

/// What a sanitizer found, with how often.
fn findings(log: &str) -> Vec<(String, String)> {
    let mut found = Vec::<(&str, usize)>::new();
    for line in log.lines() {
        let Some(text) = line.strip_prefix("========= ") else { continue };
        // Where it was is indented below.
        if text.starts_with(' ') || text.contains("COMPUTE-SANITIZER") || text.contains("SUMMARY") {
            continue;
        }
        match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => found.push((text, 1)),
        }
    }
    found
        .into_iter()
        .take(FINDINGS)
        .map(|(text, count)| (text.to_owned(), format!("{count} times")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\nrunning 3 tests
test suite::steps ... ok
test device::mixed ... FAILED
test graph ... FAILED

successes:

successes:
    suite::steps

failures:

---- device::mixed stdout ----

thread 'device::mixed' (17) panicked at tests/common/mod.rs:9:5:
t3: element 4 is 0.5
  on the GPU
note: run with `RUST_BACKTRACE=1`

---- graph stdout ----
thread 'graph' panicked at tests/gpu.rs:60:1:
capture

failures:
    device::mixed
    graph

test result: FAILED. 1 passed; 2 failed
";

    #[test]
    fn failed_tests_come_with_their_first_lines() {
        let found = failed_tests(LOG);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let panic = "thread 'device::mixed' (17) panicked at tests/common/mod.rs:9:5:";
        assert_eq!(
            found,
            [
                pair("device::mixed", &format!("{panic} / t3: element 4 is 0.5 /   on the GPU")),
                pair("graph", "thread 'graph' panicked at tests/gpu.rs:60:1: / capture"),
            ]
        );
        // Cut off before the end, or without capture.
        let cut = "test a ... ok\ntest b ... FAILED\ntest c ... ";
        assert_eq!(failed_tests(cut), [pair("b", "")]);
        let bare = "running 1 test\ntest golden ... \nthread 'golden' panicked at x:1:\ncase 7\nFAILED\n\nfailures:\n\n\
                    failures:\n    golden\n";
        assert_eq!(
            failed_tests(bare),
            [pair("golden", "thread 'golden' panicked at x:1: / case 7 / FAILED")]
        );
        assert_eq!(failed_tests("test a ... ok\n\ntest result: ok. 1 passed\n"), []);
    }

    #[test]
    fn findings_of_sanitizers_are_counted() {
        let log = "========= COMPUTE-SANITIZER\n\
                   ========= Invalid __global__ read of size 4 bytes\n\
                   =========     at adamw_f32+0x40\n\
                   ========= Invalid __global__ read of size 4 bytes\n\
                   ========= Error: Race reported between Write access and Read access\n\
                   ========= ERROR SUMMARY: 3 errors\n";
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            findings(log),
            [
                pair("Invalid __global__ read of size 4 bytes", "2 times"),
                pair("Error: Race reported between Write access and Read access", "1 times"),
            ]
        );
        assert_eq!(findings("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"), []);
    }

    #[test]
    fn stages_stand_for_themselves_where_no_log_does() {
        let failures = |verdict: &str, log: &str| {
            let line = format!("correctness\t{verdict}\t12\tcode 101; why");
            let failures = stage(&line).unwrap().failures(log);
            failures.into_iter().map(|failure| failure.what).collect::<Vec<_>>()
        };
        assert_eq!(failures("ok", ""), [""; 0]);
        assert_eq!(failures("FAILED", LOG), ["device::mixed", "graph"]);
        assert_eq!(failures("FAILED", "killed"), ["FAILED"]);
        assert_eq!(failures("cut", LOG), ["cut", "device::mixed", "graph"]);
        assert_eq!(failures("skipped", ""), ["skipped"]);
        let error = stage("facts\tok").unwrap_err().to_string();
        assert_eq!(error, "stages.tsv: `facts\tok` is no stage");
    }
}
