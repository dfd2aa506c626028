//! The folder, run here: under a stand-in for the driver, with stand-ins for the tools of CUDA.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::folder::{create, write};
use super::import;
use super::results::Results;
use super::toolkit::Toolkit;
use crate::emulate;

/// Starts the program among its arguments, as a profiler or a sanitizer does: are its options right?
const STARTS_A_PROGRAM: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in /*) exec "$@" ;; esac
    shift
done
exit 2
"#;
const NVIDIA_SMI: &str = "#!/bin/sh\necho 'GPU 0: a stand-in for the driver'\n";
/// More than the script prints; less than a machine on loan shows.
const MOST_PRINTED: usize = 12_000;
const MOST_FILES: usize = 3;
/// Seconds beyond its budget that the script may take to end.
const GRACE: u64 = 10;
/// These must not be skipped, whatever this machine lacks.
const NEEDED: [&str; 7] =
    ["facts", "warm-up", "correctness", "parity", "bench-tiny-f32", "bench-tiny-bf16", "ncu-measure_f32"];

/// Runs the script of `folder` with its results in `place`, and checks what is left.
///
/// # Errors
///
/// If the script takes too long, leaves more files than may come back or prints more than is shown, if its results cannot be
/// read or would be taken for those of a GPU, or if a stage fails.
pub(crate) fn run(folder: &Path, place: &Path, budget: u64, toolkit: Option<&Toolkit>) -> Result<()> {
    let driver = emulate::stand_in()?
        .context("the dry run needs a stand-in for the driver; why there is none is said above")?;
    if place.exists() {
        fs::remove_dir_all(place).with_context(|| format!("cannot empty `{}`", place.display()))?;
    }
    let (tools, out) = (place.join("tools"), place.join("out"));
    create(&out)?;
    for (name, text) in
        [("nvidia-smi", NVIDIA_SMI), ("ncu", STARTS_A_PROGRAM), ("compute-sanitizer", STARTS_A_PROGRAM)]
    {
        write(&tools.join(name), text)?;
        crate::make_executable(&tools.join(name))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let libraries = std::iter::once(driver).chain(toolkit.map(Toolkit::libraries));
    println!("dry run of `{}`, of {budget} s at most", folder.display());
    let start = Instant::now();
    let mut command = Command::new("timeout");
    command.arg((budget + GRACE).to_string()).arg("sh").arg(folder.join("run.sh")).args(["--model", "tiny"]);
    command
        .env("PATH", std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path)))?)
        .env("LD_LIBRARY_PATH", std::env::join_paths(libraries)?)
        .env("TPGM_DRY_RUN", "1")
        // The stand-in has none of candle's kernels.
        .env("DEVICE", "cpu")
        .env(CANDLE_DEVICE, "cpu")
        .env("BUDGET", budget.to_string())
        .env("OUT", &out)
        .env("FOLDER", place.join("unpacked"));
    let output = command.output().context("cannot start `timeout` (Debian: install coreutils)")?;
    let seconds = start.elapsed().as_secs();
    let printed = String::from_utf8_lossy(&output.stdout);
    print!("{printed}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(
        seconds <= budget + GRACE && output.status.code() != Some(124),
        "the script took {seconds} s of {budget}"
    );
    let problems = check(&printed, &out)?;
    ensure!(problems.is_empty(), "the dry run: {}", problems.join("; "));
    println!("the dry run took {seconds} s and left what it should in `{}`", out.display());
    Ok(())
}

/// Lets the tests of tpgm-candle that want a GPU use the processor.
const CANDLE_DEVICE: &str = "TPGM_TEST_DEVICE";

/// What is wrong with what the script printed and left.
fn check(printed: &str, out: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut files: Vec<_> = fs::read_dir(out)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
        .with_context(|| format!("cannot read `{}`", out.display()))?;
    files.sort();
    if files.len() > MOST_FILES {
        problems.push(format!("{} files came back: {files:?}", files.len()));
    }
    if printed.len() > MOST_PRINTED {
        problems.push(format!("{} characters were printed, more than {MOST_PRINTED}", printed.len()));
    }
    let summary = fs::read_to_string(out.join("summary.txt")).unwrap_or_default();
    if summary.is_empty() || !printed.ends_with(&summary) {
        problems.push("summary.txt is not the end of what was printed".to_owned());
    }
    let results = Results::read(&out.join("results.tar.gz"))?;
    print!("{}", import::report(&results));
    match import::append(&results, out) {
        Err(error) if error.to_string().contains("dry run") => {}
        Err(error) => bail!("results of a dry run are refused for another reason: {error:#}"),
        Ok(_) => problems.push("results of a dry run were taken for those of a GPU".to_owned()),
    }
    for stage in &results.stages {
        // What takes too long under the emulator is cut, and says nothing; what misses something here is skipped.
        if stage.verdict == "FAILED" {
            problems.push(format!("{} failed: {}", stage.name, stage.reason));
        }
    }
    for needed in NEEDED {
        match results.stages.iter().find(|stage| stage.name == needed) {
            None => problems.push(format!("there was no stage {needed}")),
            Some(stage) if ["skipped", "partly"].contains(&stage.verdict.as_str()) => {
                problems.push(format!("{needed} was {}: {}", stage.verdict, stage.reason));
            }
            Some(_) => {}
        }
    }
    Ok(problems)
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)] // helpers of tests
mod tests {
    use super::*;

    /// A folder with results of these stages.
    fn out(name: &str, stages: &[(&str, &str)], dry_run: bool) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-dry-run-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let results = folder.join("packed/results");
        write(&results.join("COMMIT"), "abc").unwrap();
        let lines: String =
            stages.iter().map(|(name, verdict)| format!("{name}\t{verdict}\t1\twhy\n")).collect();
        write(&results.join("stages.tsv"), &lines).unwrap();
        if dry_run {
            write(&results.join("DRY_RUN"), "").unwrap();
        }
        write(&folder.join("out/summary.txt"), "1s ok facts\n").unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-czf").arg(folder.join("out/results.tar.gz")).arg("-C").arg(folder.join("packed"));
        assert!(tar.arg("results").status().unwrap().success());
        folder
    }

    #[test]
    fn what_a_dry_run_leaves_is_checked() {
        let good: Vec<_> = NEEDED.iter().map(|name| (*name, "ok")).collect();
        let problems = |name: &str, stages: &[(&str, &str)], dry: bool, printed: &str, more: usize| {
            let folder = out(name, stages, dry);
            (0..more).for_each(|i| fs::write(folder.join(format!("out/{i}")), "").unwrap());
            let problems = check(printed, &folder.join("out"));
            fs::remove_dir_all(&folder).unwrap();
            problems
        };
        let printed = "...\n1s ok facts\n";
        assert_eq!(problems("good", &good, true, printed, 1).unwrap(), [""; 0]);

        let bad: Vec<_> =
            NEEDED[1..].iter().map(|name| (*name, "skipped")).chain([("ncu", "FAILED")]).collect();
        let text = problems("bad", &bad, true, &"x".repeat(MOST_PRINTED + 1), 2).unwrap().join("; ");
        for part in [
            "4 files came back",
            "12001 characters were printed",
            "summary.txt is not the end",
            "ncu failed: why",
            "there was no stage facts",
            "warm-up was skipped: why",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Without its mark, the archive is refused for the want of rows only.
        let error = problems("unmarked", &good, false, printed, 0).unwrap_err().to_string();
        assert!(error.contains("refused for another reason"), "{error}");
    }

    #[test]
    fn the_stand_in_for_tools_starts_their_program() {
        let folder = std::env::temp_dir().join(format!("xtask-tools-{}", std::process::id()));
        let tool = folder.join("ncu");
        write(&tool, STARTS_A_PROGRAM).unwrap();
        let run = |args: &[&str]| Command::new("sh").arg(&tool).args(args).output().unwrap();
        let output = run(&["--kill", "yes", "/bin/echo", "a", "/b"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a /b\n");
        assert_eq!(run(&["--kill", "yes"]).status.code(), Some(2));
        fs::remove_dir_all(&folder).unwrap();
    }
}
