//! `cargo xtask test`: what CI runs and the README calls the test command.

mod output;
mod record;

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use std::{env, thread};

use anyhow::{Context, Result, anyhow, ensure};

use self::output::Output;
use self::record::{Record, digest};
use crate::cargo;

/// Options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only formatting, lints and unit tests, for the inner loop
    #[arg(long)]
    quick: bool,
    /// Run nothing: list the stages with the seconds they took last time
    #[arg(long)]
    list: bool,
    /// Run also the stages over kernels that passed in this target folder on the same files
    #[arg(long)]
    all: bool,
}

/// Numbers computed by the authors' published code.
const GOLDEN: &str = "crates/tpgm-core/tests/golden";

/// One stage: a name, the arguments of cargo, and environment variables for it.
struct Stage {
    name: &'static str,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
    /// Part of the inner loop.
    quick: Quick,
    /// All that its outcome hangs on, if that is a small part of the workspace: then it runs only where something of it changed
    /// since it passed.
    inputs: Option<&'static [&'static str]>,
    /// What `--all` adds to the arguments.
    all: &'static [&'static str],
    turn: Turn,
    /// Why the stage cannot run here, if so.
    skip: fn() -> Result<Option<&'static str>>,
}

/// When a stage runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quick {
    /// Always
    Too,
    /// With `--quick` alone: the full run has a stage that does more
    Only,
    /// In the full run alone
    Not,
}

/// Where in a run a stage has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// One after the other
    First,
    /// Then these, one after the other
    Then,
    /// And these at the same time, one after the other: no stage keeps all processors busy to its end
    Beside,
    /// By themselves again: they measure, or take no time
    Last,
}

const fn stage(name: &'static str, args: &'static [&'static str]) -> Stage {
    Stage {
        name,
        args,
        env: &[],
        quick: Quick::Not,
        inputs: None,
        all: &[],
        turn: Turn::First,
        skip: || Ok(None),
    }
}

/// The same at another turn.
const fn at(turn: Turn, stage: Stage) -> Stage {
    Stage { turn, ..stage }
}

/// A stage over the kernels.
const fn kernels(name: &'static str, args: &'static [&'static str]) -> Stage {
    Stage { inputs: Some(KERNELS), turn: Turn::Then, ..stage(name, args) }
}

/// What the kernels, their tests and the commands over them are made of.
const KERNELS: &[&str] = &[
    ".cargo",
    "Cargo.lock",
    "Cargo.toml",
    "benches",
    "crates/tpgm-core",
    "crates/tpgm-cuda",
    "kernels",
    "xtask",
];

/// All features but those that take a CUDA toolkit.
pub(crate) const FEATURES: &str = "tpgm-core/serde,tpgm-core/testing,tpgm-cuda/emulated,tpgm-candle/search,\
                                   tpgm-examples/hf-hub,tpgm-benches/end-to-end";

const STAGES: &[Stage] = &[
    Stage { quick: Quick::Too, ..stage("formatting", &["fmt", "--all", "--check"]) },
    Stage {
        quick: Quick::Too,
        ..stage(
            "lints",
            &["clippy", "--workspace", "--all-targets", "--features", FEATURES, "--", "-D", "warnings"],
        )
    },
    Stage {
        quick: Quick::Only,
        ..stage("unit tests", &["test", "--workspace", "--features", FEATURES, "--lib", "--bins"])
    },
    // The tests of the examples have their modules in them, so that the examples themselves need not be linked; lints have
    // compiled their main files.
    stage(
        "tests, built",
        &["test", "--workspace", "--features", FEATURES, "--lib", "--bins", "--tests", "--no-run"],
    ),
    // Two rows of stages from here on. Cargo has a lock for each target folder, and a stage that builds waits for another that
    // does: so those that build in the same folder for long stand at the end of the second row.
    at(
        Turn::Then,
        stage(
            "tests",
            &["test", "--workspace", "--features", FEATURES, "--lib", "--bins", "--tests", "--no-fail-fast"],
        ),
    ),
    at(
        Turn::Then,
        stage(
            "documentation tests",
            &["test", "--workspace", "--features", FEATURES, "--doc", "--no-fail-fast"],
        ),
    ),
    // Compiled again, which takes minutes, where something changed since they were written, and with --all.
    Stage {
        skip: crate::ptx::missing,
        all: &["--anew"],
        ..kernels("committed kernels", &["xtask", "ptx", "--check"])
    },
    kernels("kernels on the CPU", &["xtask", "emulate"]),
    kernels("kernels with a GPU's blocks", &["xtask", "emulate", "--threads", "256"]),
    kernels("kernels with the sums of other GPUs", &["xtask", "emulate", "--compensated"]),
    // Addresses and undefined behavior; the tests that reach all kernels.
    kernels(
        "kernels under the address sanitizer",
        &["xtask", "emulate", "--asan", "--", "device::", "suite::averages", "suite::projector"],
    ),
    Stage {
        skip: crate::emulate::missing,
        ..kernels("parity of the kernels", &["xtask", "parity", GOLDEN, "--backend", "emulated"])
    },
    at(Turn::Then, stage("layers over the kernels on the CPU", &["xtask", "emulate", "--layers"])),
    // A short turn from every seed; what needs longer is found by hand.
    Stage {
        skip: crate::fuzz::missing,
        turn: Turn::Beside,
        ..stage("readers under a fuzzer", &["xtask", "fuzz", "--seconds", "1"])
    },
    Stage {
        skip: || {
            Ok(crate::cuda_tools::offline()
                .then_some("TPGM_OFFLINE=1, and packing asks the registry for its index"))
        },
        turn: Turn::Beside,
        ..stage("packages", &["xtask", "packages"])
    },
    // Mostly waits: for timeouts, and for what has been killed.
    Stage {
        skip: crate::ranks::missing,
        turn: Turn::Beside,
        ..stage("ranks as processes", &["xtask", "ranks"])
    },
    // The pages are checked by a unit test, too; this makes the book, where mdBook is installed.
    at(Turn::Beside, stage("guide", &["xtask", "guide"])),
    at(Turn::Beside, kernels("kernels under the thread sanitizer", &["xtask", "emulate", "--tsan"])),
    at(Turn::Beside, kernels("mistakes planted in kernels", &["xtask", "emulate", "--self-test"])),
    at(
        Turn::Beside,
        kernels("the host's code over a stand-in for the driver", &["xtask", "emulate", "--driver"]),
    ),
    at(
        Turn::Beside,
        kernels("mistakes planted in calls of the driver", &["xtask", "emulate", "--driver", "--self-test"]),
    ),
    at(Turn::Beside, stage("lints of the CUDA features", &["xtask", "cuda-check"])),
    Stage {
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        turn: Turn::Beside,
        ..stage("documentation", &["doc", "--workspace", "--features", FEATURES, "--no-deps"])
    },
    at(
        Turn::Beside,
        stage(
            "benchmark, built",
            &["build", "--release", "--package", "tpgm-benches", "--bin", "side_by_side"],
        ),
    ),
    // Only ratios within the run count: a machine that is merely slow passes.
    at(Turn::Last, stage("speed against that of memory", &["xtask", "bench", "--quick"])),
    at(Turn::Last, stage("parity of the oracle", &["xtask", "parity", GOLDEN, "--backend", "oracle"])),
    at(Turn::Last, stage("parity of the CPU backend", &["xtask", "parity", GOLDEN, "--backend", "cpu"])),
];

impl Stage {
    /// The command that repeats the stage alone, for a shell.
    fn command(&self) -> String {
        let quoted = |word: &&str| match word.contains(' ') {
            true => format!("'{word}'"),
            false => (*word).to_owned(),
        };
        let variables: String =
            self.env.iter().map(|(name, value)| format!("{name}={} ", quoted(value))).collect();
        let args: Vec<String> = self.args.iter().map(quoted).collect();
        format!("{variables}cargo {}", args.join(" "))
    }

    fn runs(&self, quick: bool) -> bool {
        self.quick == Quick::Too || (self.quick == Quick::Only) == quick
    }

    /// Runs it, unless there is a reason not to.
    fn run(&self, program: &Path, all: bool, record: &Mutex<Record>, output: &mut Output) -> Result<Outcome> {
        output.say(&format!("\n== {}: {}", self.name, self.command()))?;
        if let Some(reason) = (self.skip)()? {
            output.say(&format!("skipped: {reason}"))?;
            return Ok(Outcome { line: format!("skipped {}: {reason}", self.name), failed: None });
        }
        let root = crate::root()?;
        let files = match self.inputs.map(|inputs| digest(root, inputs)).transpose() {
            Ok(files) => files,
            Err(error) => {
                output.say(&format!("it runs whether its files changed or not: {error:#}"))?;
                None
            }
        };
        let record = || record.lock().unwrap_or_else(PoisonError::into_inner);
        if !all && files.as_ref().is_some_and(|files| record().passed(self.name, files)) {
            output.say("unchanged since it passed here; --all repeats it")?;
            let line = format!("ok      {} (unchanged since it passed)", self.name);
            return Ok(Outcome { line, failed: None });
        }
        let start = Instant::now();
        let mut command = match self.args {
            // This program itself: as cargo would start it, without waiting for what else is being built.
            ["xtask", args @ ..] => {
                let mut command = Command::new(program);
                command.args(args);
                command
            }
            args => cargo(args),
        };
        command.current_dir(root).envs(self.env.iter().copied());
        if all {
            command.args(self.all);
        }
        let success = output.run(command).context("cannot start cargo")?.success();
        let took = start.elapsed().as_secs();
        record().add(self.name, took, files.filter(|_| success))?;
        let verdict = if success { "ok" } else { "FAILED" };
        Ok(Outcome {
            line: format!("{verdict:<7} {} ({took} s)", self.name),
            failed: (!success).then_some(self.name),
        })
    }
}

/// What became of a stage.
#[derive(Clone)]
struct Outcome {
    /// For the summary.
    line: String,
    failed: Option<&'static str>,
}

/// Runs every stage, also after one has failed, and ends with a summary. A stage over a small part of the workspace that passed
/// in this target folder counts as passed while nothing of that part changes.
///
/// # Errors
///
/// If a stage fails or cargo cannot be started.
pub(crate) fn run(args: &Args) -> Result<()> {
    let record = Record::read()?;
    let stages = || STAGES.iter().filter(|stage| stage.runs(args.quick));
    if args.list {
        let last =
            |name| record.seconds(name).map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s"));
        stages().for_each(|stage| println!("{:>7}  {}: {}", last(stage.name), stage.name, stage.command()));
        let of = |turn| -> u64 {
            stages().filter(|stage| stage.turn == turn).filter_map(|stage| record.seconds(stage.name)).sum()
        };
        let total = of(Turn::First) + of(Turn::Then).max(of(Turn::Beside)) + of(Turn::Last);
        println!("{:>7}  in all", format!("{total} s"));
        return Ok(());
    }
    // Asked for now: the tests build the program anew, and it is in its place then.
    let program = env::current_exe().context("where this program is")?;
    let record = Mutex::new(record);
    let of = |turn: Turn, output: &mut Output| -> Vec<Outcome> {
        // Its output comes later, and not at all if the run is cut off: who ran is known in any case.
        let tell = |line: &str| {
            if turn == Turn::Beside {
                println!("\n== at the same time: {line}");
            }
        };
        let mut outcomes = Vec::new();
        for stage in stages().filter(|stage| stage.turn == turn) {
            tell(stage.name);
            let outcome = stage.run(&program, args.all, &record, output).unwrap_or_else(|error| Outcome {
                line: format!("FAILED  {}: {error:#}", stage.name),
                failed: Some(stage.name),
            });
            tell(&outcome.line);
            outcomes.push(outcome);
        }
        outcomes
    };
    let mut outcomes = of(Turn::First, &mut Output::Shown);
    outcomes.extend(thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let mut output = Output::kept();
            (of(Turn::Beside, &mut output), output)
        });
        let outcomes = of(Turn::Then, &mut Output::Shown);
        // Shown in any case: it says what went wrong.
        let (others, output) = beside.join().map_err(|_| anyhow!("a stage panicked"))?;
        output.show()?;
        anyhow::Ok([outcomes, others].concat())
    })?);
    outcomes.extend(of(Turn::Last, &mut Output::Shown));
    let lines: Vec<_> = outcomes.iter().map(|outcome| outcome.line.as_str()).collect();
    println!("\n== summary\n{}", lines.join("\n"));
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.failed).collect();
    for stage in STAGES.iter().filter(|stage| failed.contains(&stage.name)) {
        println!("to repeat {} alone: {}", stage.name, stage.command());
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_stage_says_how_it_is_repeated() {
        let stage = Stage {
            env: &[("FLAGS", "-D warnings"), ("A", "b")],
            ..stage("docs", &["doc", "--features", "a,b"])
        };
        assert_eq!(stage.command(), "FLAGS='-D warnings' A=b cargo doc --features a,b");
    }

    #[test]
    fn the_short_run_is_a_part_of_the_full_one_with_fewer_tests() {
        let names = |quick| -> Vec<_> {
            STAGES.iter().filter(|stage| stage.runs(quick)).map(|stage| stage.name).collect()
        };
        assert_eq!(names(true), ["formatting", "lints", "unit tests"]);
        assert!(names(false).starts_with(&["formatting", "lints", "tests, built", "tests"]));
    }

    /// The benchmark measures, so nothing runs beside it; the inner loop is shown as it comes.
    #[test]
    fn stages_have_their_turns() {
        let turns = |turn| STAGES.iter().filter(move |stage| stage.turn == turn);
        assert!(turns(Turn::Last).any(|stage| stage.args.contains(&"bench")));
        assert!(turns(Turn::Beside).all(|stage| !stage.args.contains(&"bench")));
        assert!(STAGES.iter().filter(|stage| stage.runs(true)).all(|stage| stage.turn == Turn::First));
    }

    /// Otherwise a change there would be missed.
    #[test]
    fn the_kernels_files_are_those_of_every_crate_they_build() -> Result<()> {
        let output = cargo(&["metadata", "--format-version", "1", "--no-deps"]).output()?;
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let packages = metadata["packages"].as_array().context("packages")?;
        let mut needed = vec!["xtask", "tpgm-cuda"];
        for i in 0.. {
            let Some(name) = needed.get(i) else { break };
            let package = packages.iter().find(|package| package["name"] == *name).context("a package")?;
            for dependency in package["dependencies"].as_array().context("dependencies")? {
                let name = dependency["name"].as_str().context("a name")?;
                if !dependency["path"].is_null() && dependency["optional"] == false && !needed.contains(&name)
                {
                    needed.push(name);
                }
            }
            let manifest = package["manifest_path"].as_str().context("a path")?;
            let folder = Path::new(manifest).parent().context("a folder")?.strip_prefix(crate::root()?)?;
            assert!(KERNELS.iter().any(|input| folder.starts_with(input)), "{}", folder.display());
        }
        assert!(needed.contains(&"tpgm-core"), "{needed:?}");
        Ok(())
    }

    /// Otherwise they, and `tpgm-core` above them, are built twice: see `Cargo.toml`.
    #[test]
    fn what_is_built_for_this_program_has_the_features_that_the_tests_give_it() -> Result<()> {
        // Packages with their features, on one kind of machine.
        let tree = |args: &[&str]| -> Result<BTreeSet<String>> {
            let common =
                ["tree", "--target", "x86_64-unknown-linux-gnu", "--prefix", "none", "--format", "{p} {f}"];
            let output = cargo(&common).args(args).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let lines = String::from_utf8(output.stdout)?;
            Ok(lines.lines().map(|line| line.trim_end_matches(" (*)").trim_end().to_owned()).collect())
        };
        let here = tree(&["--package", "xtask", "--edges", "normal,build"])?;
        let tests = tree(&["--workspace", "--features", FEATURES])?;
        // Of the benchmarks, only what takes no candle is used here.
        let twice: Vec<_> =
            here.difference(&tests).filter(|package| !package.starts_with("tpgm-benches ")).collect();
        assert!(here.len() > 50 && twice.is_empty(), "{twice:#?}");
        Ok(())
    }
}
