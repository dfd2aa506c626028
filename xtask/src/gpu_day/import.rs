//! Results become rows of the benchmarks, and a table of what failed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tpgm_benches::Model;
use tpgm_benches::options::file_stem;
use tpgm_benches::report::Line;

use super::results::Results;
use crate::cargo;

/// Words in the names of devices that are none.
const STAND_INS: [&str; 3] = ["stand-in", "emulat", "fake"];

/// Lists what failed, appends the rows to the data files in `data`, and writes the page.
///
/// # Errors
///
/// If the archive is damaged; if it is of a dry run, or rows are not of a GPU or are in the files already, which stay as they
/// were.
pub(crate) fn run(archive: &Path, data: &Path) -> Result<()> {
    let results = Results::read(archive)?;
    print!("{}", report(&results));
    for (file, count) in append(&results, data)? {
        println!("{}: {count} rows more", file.display());
    }
    let page =
        ["run", "--quiet", "--release", "--package", "tpgm-benches", "--bin", "side_by_side", "--", "--page"];
    let status = cargo(&page).status().context("cannot start cargo")?;
    ensure!(status.success(), "the rows are there, and the page could not be written ({status})");
    println!("benches/RESULTS.md is written from all rows");
    Ok(())
}

/// What was run, and a table of what failed.
pub(crate) fn report(results: &Results) -> String {
    let mut text = format!("built from commit {}\n\n", results.commit);
    for stage in &results.stages {
        let _ = writeln!(text, "{:<8} {} ({} s)", stage.verdict, stage.name, stage.seconds);
    }
    let _ = writeln!(text, "\n{} rows", results.rows.len());
    if results.failures.is_empty() {
        text += "nothing failed\n\n";
        return text;
    }
    text += "\n| stage | what | message |\n|---|---|---|\n";
    for failure in &results.failures {
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        let (what, message) = (cell(&failure.what), cell(&failure.message));
        let _ = writeln!(text, "| {} | {what} | {message} |", failure.stage);
    }
    text + "\n"
}

/// Appends the rows to the file of their device and returns the files with how many. All or none.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn append(results: &Results, data: &Path) -> Result<Vec<(PathBuf, usize)>> {
    ensure!(
        !results.dry_run,
        "these are results of a dry run, under a stand-in for the driver: they say nothing about a GPU, and no row is taken"
    );
    ensure!(!results.rows.is_empty(), "there are no rows, so the data files stay as they are");
    let mut files = BTreeMap::<PathBuf, Vec<&(String, Line)>>::new();
    for row in &results.rows {
        let (_, line) = row;
        let device = &line.run.device;
        let lower = device.to_lowercase();
        if lower == "cpu" || STAND_INS.iter().any(|word| lower.contains(word)) {
            bail!("there are rows of the device `{device}`, which is no GPU: no row is taken");
        }
        let tiny = Model::Tiny.name();
        ensure!(
            line.run.model != tiny,
            "there are rows of the model `{tiny}`, which mean nothing: no row is taken"
        );
        files.entry(data.join(format!("{}.jsonl", file_stem(device)))).or_default().push(row);
    }
    for (file, rows) in &files {
        let known = keys(file)?;
        let again: Vec<_> = rows.iter().filter(|(_, line)| known.contains(&key(line))).collect();
        if let Some((_, first)) = again.first() {
            bail!(
                "{} of {} rows are in `{}` already, the first of them {} of {} from {}: no row is taken",
                again.len(),
                rows.len(),
                file.display(),
                first.row.contestant,
                first.row.method,
                first.run.machine.date
            );
        }
    }
    let mut appended = Vec::new();
    for (path, rows) in files {
        let text: String = rows.iter().map(|(text, _)| format!("{text}\n")).collect();
        let file = OpenOptions::new().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot append to `{}`", path.display()))?;
        appended.push((path, rows.len()));
    }
    Ok(appended)
}

/// What no two rows share.
type Key = [String; 5];

fn key(line: &Line) -> Key {
    let Line { run, row } = line;
    [&run.machine.date, &run.model, run.dtype.name(), &row.method, &row.contestant].map(str::to_owned)
}

fn keys(file: &Path) -> Result<Vec<Key>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let line = |(number, line): (usize, &str)| {
        let line = serde_json::from_str(line)
            .with_context(|| format!("{}:{} is not a row", file.display(), number + 1))?;
        Ok(key(&line))
    };
    text.lines().enumerate().map(line).collect()
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)] // helpers of tests
mod tests {
    use std::process::Command;

    use super::*;

    const ROW: &str = r#"{"date":"2030-01-01","commit":"c1","cpu":"some cpu","os":"linux","version":"0.1.0","torch":null,"device":"DEVICE","model":"MODEL","params":3,"threads":2,"method":"adamw","contestant":"WHO","rounds":15,"median_s":0.1,"min_s":0.1,"max_s":0.1}"#;

    fn row(device: &str, model: &str, who: &str) -> String {
        ROW.replace("DEVICE", device).replace("MODEL", model).replace("WHO", who) + "\n"
    }

    /// A folder of its own, gone with the value.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("xtask-import-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(folder.join("results")).unwrap();
            fs::create_dir_all(folder.join("data")).unwrap();
            let scratch = Self(folder);
            scratch.write("results/COMMIT", "abc\n");
            scratch.write("results/stages.tsv", "facts\tok\t1\t\ncorrectness\tFAILED\t7\tcode 101\n");
            scratch.write("results/correctness.log", "test a|b ... FAILED\n");
            scratch
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        fn archive(&self) -> PathBuf {
            let archive = self.0.join("results.tar.gz");
            let mut tar = Command::new("tar");
            tar.arg("-czf").arg(&archive).arg("-C").arg(&self.0).arg("results");
            assert!(tar.status().unwrap().success());
            archive
        }

        fn append(&self) -> Result<Vec<(PathBuf, usize)>> {
            append(&Results::of_archive(&self.archive()), &self.0.join("data"))
        }

        /// The message of an import that must fail, with data files that stay empty.
        fn refused(&self) -> String {
            let message = self.append().unwrap_err().to_string();
            assert_eq!(fs::read_dir(self.0.join("data")).unwrap().count(), 0, "{message}");
            message
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    impl Results {
        fn of_archive(archive: &Path) -> Self {
            Self::read(archive).unwrap()
        }
    }

    #[test]
    fn rows_go_to_the_file_of_their_device_once() {
        let scratch = Scratch::new("rows");
        let ours = row("NVIDIA H100", "vit-b-16", "ours");
        scratch.write("results/rows.jsonl", &(ours.clone() + &row("NVIDIA H100", "vit-b-16", "torch")));
        let file = scratch.0.join("data/nvidia-h100.jsonl");
        scratch.write("data/nvidia-h100.jsonl", &row("NVIDIA H100", "resnet-50", "ours"));
        assert_eq!(scratch.append().unwrap(), [(file.clone(), 2)]);
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!((text.lines().count(), text.lines().nth(1)), (3, Some(ours.trim_end())));

        let again = scratch.append().unwrap_err().to_string();
        assert!(again.contains("2 of 2 rows are in") && again.contains("ours of adamw from 2030"), "{again}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        scratch.write("data/nvidia-h100.jsonl", "{}\n");
        assert!(scratch.append().unwrap_err().to_string().ends_with("nvidia-h100.jsonl:1 is not a row"));
    }

    #[test]
    fn what_is_not_of_a_gpu_is_refused() {
        let scratch = Scratch::new("trial");
        let good = row("NVIDIA H100", "vit-b-16", "ours");
        assert!(scratch.refused().contains("there are no rows"));
        for device in ["cpu", "libcuda stand-in", "CUDA kernels, emulated"] {
            scratch.write("results/rows.jsonl", &(good.clone() + &row(device, "vit-b-16", "ours")));
            assert!(scratch.refused().contains(&format!("the device `{device}`")));
        }
        scratch.write("results/rows.jsonl", &(good.clone() + &row("NVIDIA H100", "tiny", "ours")));
        assert!(scratch.refused().contains("the model `tiny`"));
        scratch.write("results/rows.jsonl", &good);
        scratch.write("results/DRY_RUN", "");
        assert!(scratch.refused().contains("results of a dry run"));
    }

    #[test]
    fn failures_are_a_table() {
        let scratch = Scratch::new("failures");
        let half = &row("NVIDIA H100", "vit-b-16", "ours")[..60];
        scratch.write("results/rows.jsonl", &(row("NVIDIA H100", "vit-b-16", "ours") + half));
        let results = Results::of_archive(&scratch.archive());
        assert_eq!(results.rows.len(), 1);
        let text = report(&results);
        for part in
            ["commit abc", "FAILED   correctness (7 s)", "| correctness | a\\|b |", "line 2 is no row"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn damaged_archives_are_named() {
        let scratch = Scratch::new("damaged");
        let archive = scratch.archive();
        let whole = fs::read(&archive).unwrap();
        let message = |bytes: &[u8]| {
            fs::write(&archive, bytes).unwrap();
            format!("{:#}", Results::read(&archive).unwrap_err())
        };
        for damaged in [message(&whole[..whole.len() / 2]), message(b"no archive")] {
            assert!(damaged.contains("results.tar.gz` is damaged, or no archive: "), "{damaged}");
        }
        fs::remove_file(scratch.0.join("results/stages.tsv")).unwrap();
        let other = format!("{:#}", Results::read(&scratch.archive()).unwrap_err());
        assert!(other.contains("results.tar.gz` has no results/stages.tsv"), "{other}");
        let none = Results::read(Path::new("nowhere.tar.gz")).unwrap_err().to_string();
        assert_eq!(none, "there is no file `nowhere.tar.gz`");
    }
}
