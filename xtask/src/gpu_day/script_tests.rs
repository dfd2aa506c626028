//! The script, with stand-ins for everything that it calls.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::folder::{SCRIPT, write};
use super::results::Results;

/// A folder like the one for a GPU machine, whose programs are small scripts.
struct Day(PathBuf);

/// As libtest ends.
const PASSED: &str = "#!/bin/sh\necho 'test result: ok. 2 passed; 0 failed'\n";
const GPU: &str = "#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)'\n";

impl Day {
    fn new(name: &str, tests: &str) -> Self {
        let day = Self(std::env::temp_dir().join(format!("xtask-script-{name}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&day.0);
        day.write("day/run.sh", SCRIPT);
        day.write("core/COMMIT", "abc");
        day.program("core/bin/test-tpgm-cuda", tests);
        day.program(
            "core/bin/side_by_side",
            "#!/bin/sh\nfor last; do :; done\necho \"adamw  ours  1.5 $4 $last\"\n",
        );
        day.program("tools/nvidia-smi", GPU);
        // No interpreter of this machine has a part in the tests.
        day.program("tools/python3", "#!/bin/sh\nexit 1\n");
        day.pack("core", "core.tar.gz");
        day
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.0.join(name), text).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        self.write(name, text);
        crate::make_executable(&self.0.join(name)).unwrap();
    }

    fn pack(&self, folder: &str, archive: &str) {
        let mut tar = Command::new("tar");
        tar.arg("-caf").arg(self.0.join("day").join(archive)).arg("-C").arg(self.0.join(folder)).arg(".");
        assert!(tar.status().unwrap().success());
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let path = std::env::var("PATH").unwrap();
        command.arg(self.0.join("day/run.sh")).args(args).current_dir(&self.0);
        command.env("PATH", format!("{}:{path}", self.0.join("tools").display()));
        command.env("OUT", self.0.join("out"));
        for name in ["BUDGET", "LIMITS", "PYTHON", "FOLDER", "TPGM_DRY_RUN"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn results(&self) -> Results {
        Results::read(&self.0.join("out/results.tar.gz")).unwrap()
    }

    /// Verdicts by stage.
    fn verdicts(&self) -> Vec<(String, String)> {
        let stages = self.results().stages;
        stages.into_iter().map(|stage| (stage.name, stage.verdict)).collect()
    }

    fn summary(&self) -> String {
        fs::read_to_string(self.0.join("out/summary.txt")).unwrap()
    }
}

impl Drop for Day {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, verdict)| ((*name).to_owned(), (*verdict).to_owned())).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn mistakes_and_missing_gpus_are_named() {
    let day = Day::new("wrong", PASSED);
    let wrong = day.run(&["everything"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("unknown stage `everything`"), "{}", text(&wrong.stderr));
    let wrong = day.command(&[]).env("BUDGET", "soon").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("not `soon`"));
    if !Path::new("/dev/nvidia0").exists() {
        day.program("tools/nvidia-smi", "#!/bin/sh\necho 'no devices were found'\nexit 6\n");
        let none = day.run(&[]);
        assert_eq!(none.status.code(), Some(77));
        assert!(text(&none.stderr).contains("no NVIDIA GPU here"));
        assert!(!day.0.join("out").exists());
    }
}

#[test]
fn what_is_missing_is_skipped_with_its_reason() {
    let day = Day::new("missing", PASSED);
    let run = day.command(&["correctness", "candle", "anchors", "end-to-end"]).output().unwrap();
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stdout));
    let skipped = [("candle", "skipped"), ("anchors", "skipped"), ("end-to-end", "skipped")];
    assert_eq!(day.verdicts(), [pairs(&[("correctness", "ok")]), pairs(&skipped)].concat());
    let summary = day.summary();
    assert_eq!(text(&run.stdout), summary);
    for part in
        ["2 passed", "candle was left out of this folder", "no Python with PyTorch", "1 ok, 3 skipped"]
    {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    let mut files: Vec<_> =
        fs::read_dir(day.0.join("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["results.tar.gz", "summary.txt"]);
    assert!(!day.results().dry_run);
    // A second call with the same folder does not cost the results of the first one.
    assert_eq!(day.run(&["parity"]).status.code(), Some(0));
    assert_eq!(day.verdicts(), pairs(&[("parity", "ok")]));
    let earlier = Results::read(&day.0.join("out/earlier.tar.gz")).unwrap();
    assert_eq!(earlier.stages.len(), 4);
}

#[test]
fn a_stage_that_fails_stops_nothing() {
    let tests = "#!/bin/sh\ncase \"$*\" in *golden_cases_pass*--nocapture*) echo 'test result: ok. 1 passed' ;;\n\
                 *) echo 'test suite::steps ... FAILED'; exit 101 ;; esac\n";
    let day = Day::new("fails", tests);
    let run = day.run(&["correctness", "parity", "benchmarks", "--model", "vit-b-16"]);
    assert_eq!(run.status.code(), Some(1));
    let expected = [
        ("correctness", "FAILED"),
        ("parity", "ok"),
        ("bench-vit-b-16-f32", "ok"),
        ("bench-vit-b-16-bf16", "ok"),
    ];
    assert_eq!(day.verdicts(), pairs(&expected));
    assert_eq!(day.results().failures[0].what, "suite::steps");
    let summary = day.summary();
    for part in [
        "code 101",
        "test suite::steps ... FAILED",
        // The model, and what --time-limit is given.
        "adamw  ours  1.5 vit-b-16 40",
    ] {
        assert!(summary.contains(part), "{part}: {summary}");
    }
}

#[test]
fn a_stage_that_hangs_is_cut_and_the_rest_runs() {
    let tests = "#!/bin/sh\ncase \"$*\" in *--skip*) echo 'test a ... ok'; sleep 600 ;; *) echo 'test result: ok.' ;; esac\n";
    let day = Day::new("hangs", tests);
    let start = Instant::now();
    // A twentieth of 90 seconds.
    let run = day.command(&["correctness", "parity"]).env("LIMITS", "9").output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(day.verdicts(), pairs(&[("correctness", "cut"), ("parity", "ok")]));
    assert!(day.summary().contains("at its limit of 8 s"), "{}", day.summary());

    // With less time than stages: what is left decides, and the last ones are named.
    let run = day.command(&["correctness", "parity"]).env("BUDGET", "13").output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(day.verdicts(), pairs(&[("correctness", "cut"), ("parity", "skipped")]));
    assert!(day.summary().contains("no time is left"), "{}", day.summary());
}

#[test]
fn a_call_that_is_cut_off_has_brought_the_stages_before() {
    let tests = "#!/bin/sh\ncase \"$*\" in *--nocapture*) echo 'test result: ok. 2 passed' ;; *) exec sleep 600 ;; esac\n";
    for signal in ["KILL", "TERM"] {
        let day = Day::new(signal, tests);
        // What outlives the script is soon ended by its limit.
        let mut command = day.command(&["warm-up", "correctness"]);
        let mut call = command.env("LIMITS", "25").stdout(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while !day.0.join("out/results.tar.gz").exists() && start.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(50));
        }
        // The second stage is under way.
        sleep(Duration::from_millis(500));
        let id = call.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        call.wait().unwrap();
        let expected = match signal {
            "KILL" => pairs(&[("warm-up", "ok")]),
            _ => pairs(&[("warm-up", "ok"), ("correctness", "cut")]),
        };
        assert_eq!(day.verdicts(), expected, "{signal}");
        assert!(day.summary().contains("2 passed"));
    }
}

#[test]
fn tools_are_called_for_kernels_and_tests() {
    let day = Day::new("tools", PASSED);
    for tool in ["ncu", "compute-sanitizer"] {
        day.program(&format!("tools/{tool}"), "#!/bin/sh\necho \"$0 $*\"\n");
    }
    day.program("core/bin/test-tpgm-cuda", PASSED);
    let run = day.command(&["ncu", "sanitizers"]).env("TPGM_DRY_RUN", "1").output().unwrap();
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stdout));
    let names: Vec<_> = day.verdicts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 6 + 3);
    for name in ["ncu-measure_f32", "ncu-blend_f32", "sanitizer-memcheck", "sanitizer-synccheck"] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
    assert!(day.results().dry_run);
}

#[test]
fn archives_are_unpacked_once_and_damage_is_named() {
    let day = Day::new("archives", PASSED);
    day.program("candle/bin/test-tpgm-candle", "#!/bin/sh\necho 'test result: ok. 9 passed'\n");
    day.pack("candle", "candle.tar.xz");
    assert_eq!(day.run(&["candle"]).status.code(), Some(0));
    assert!(day.summary().contains("9 passed"), "{}", day.summary());
    // The second call takes what the first one has unpacked.
    fs::write(day.0.join("day/core.tar.gz"), "damaged").unwrap();
    assert_eq!(day.run(&["parity"]).status.code(), Some(0));
    fs::remove_dir_all(day.0.join("day/unpacked")).unwrap();
    assert_eq!(day.run(&["parity"]).status.code(), Some(1));
    assert_eq!(day.verdicts(), pairs(&[("unpack", "FAILED")]));
    assert!(day.summary().contains("core.tar.gz: "), "{}", day.summary());
}
