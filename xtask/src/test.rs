//! `cargo xtask test`: what CI runs and the README calls the test command.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

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

const fn stage(name: &'static str, args: &'static [&'static str]) -> Stage {
    Stage { name, args, env: &[], quick: Quick::Not, skip: || Ok(None) }
}

/// All features but those that take a CUDA toolkit.
pub(crate) const FEATURES: &str =
    "tpgm-core/serde,tpgm-core/testing,tpgm-cuda/emulated,tpgm-examples/hf-hub,tpgm-benches/end-to-end";

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
    stage(
        "tests",
        &["test", "--workspace", "--features", FEATURES, "--lib", "--bins", "--tests", "--examples"],
    ),
    stage("documentation tests", &["test", "--workspace", "--features", FEATURES, "--doc"]),
    Stage {
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        ..stage("documentation", &["doc", "--workspace", "--features", FEATURES, "--no-deps"])
    },
    // A short turn from every seed; what needs longer is found by hand.
    Stage {
        skip: crate::fuzz::missing,
        ..stage("readers under a fuzzer", &["xtask", "fuzz", "--seconds", "1"])
    },
    stage("lints of the CUDA features", &["xtask", "cuda-check"]),
    Stage { skip: crate::ptx::missing, ..stage("committed kernels", &["xtask", "ptx", "--check"]) },
    stage("kernels on the CPU", &["xtask", "emulate"]),
    stage("kernels with a GPU's blocks", &["xtask", "emulate", "--threads", "256"]),
    stage("kernels with the sums of other GPUs", &["xtask", "emulate", "--compensated"]),
    // Addresses and undefined behavior; the tests that reach all kernels.
    stage(
        "kernels under the address sanitizer",
        &["xtask", "emulate", "--asan", "--", "device::", "suite::averages", "suite::projector"],
    ),
    stage("kernels under the thread sanitizer", &["xtask", "emulate", "--tsan"]),
    stage("mistakes planted in kernels", &["xtask", "emulate", "--self-test"]),
    stage("the host's code over a stand-in for the driver", &["xtask", "emulate", "--driver"]),
    stage("mistakes planted in calls of the driver", &["xtask", "emulate", "--driver", "--self-test"]),
    Stage {
        skip: crate::emulate::missing,
        ..stage("parity of the kernels", &["xtask", "parity", GOLDEN, "--backend", "emulated"])
    },
    // Only ratios within the run count: a machine that is merely slow passes.
    stage("speed against that of memory", &["xtask", "bench", "--quick"]),
    stage("parity of the oracle", &["xtask", "parity", GOLDEN, "--backend", "oracle"]),
    stage("parity of the CPU backend", &["xtask", "parity", GOLDEN, "--backend", "cpu"]),
    Stage {
        skip: || {
            Ok(crate::cuda_tools::offline()
                .then_some("TPGM_OFFLINE=1, and packing asks the registry for its index"))
        },
        ..stage("packages", &["xtask", "packages"])
    },
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
}

/// Seconds that stages took when they last ran, by name.
type Seconds = BTreeMap<String, u64>;

/// Where they are kept: a file of this checkout's target folder.
fn record() -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or(crate::root()?.join("target"), PathBuf::from);
    Ok(target.join("xtask-test.json"))
}

/// What was kept; nothing where that is no record, which is made anew.
fn remembered() -> Result<Seconds> {
    Ok(fs::read(record()?).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default())
}

fn remember(seconds: &Seconds) -> Result<()> {
    let path = record()?;
    let text = serde_json::to_vec_pretty(seconds).context("numbers by name")?;
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// Runs every stage, also after one has failed, and ends with a summary.
///
/// # Errors
///
/// If a stage fails or cargo cannot be started.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut seconds = remembered()?;
    let stages = || STAGES.iter().filter(|stage| stage.runs(args.quick));
    if args.list {
        let last = |name| seconds.get(name).map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s"));
        stages().for_each(|stage| println!("{:>7}  {}: {}", last(stage.name), stage.name, stage.command()));
        let total: u64 = stages().filter_map(|stage| seconds.get(stage.name)).sum();
        println!("{:>7}  in all", format!("{total} s"));
        return Ok(());
    }
    let root = crate::root()?;
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for stage in stages() {
        println!("\n== {}: {}", stage.name, stage.command());
        if let Some(reason) = (stage.skip)()? {
            println!("skipped: {reason}");
            lines.push(format!("skipped {}: {reason}", stage.name));
            continue;
        }
        let start = Instant::now();
        let mut command = cargo(stage.args);
        command.current_dir(root).envs(stage.env.iter().copied());
        let success = command.status().context("cannot start cargo")?.success();
        let took = start.elapsed().as_secs();
        seconds.insert(stage.name.to_owned(), took);
        remember(&seconds)?;
        let verdict = if success { "ok" } else { "FAILED" };
        lines.push(format!("{verdict:<7} {} ({took} s)", stage.name));
        if !success {
            failed.push(stage);
        }
    }
    println!("\n== summary\n{}", lines.join("\n"));
    for stage in &failed {
        println!("to repeat {} alone: {}", stage.name, stage.command());
    }
    let names: Vec<_> = failed.iter().map(|stage| stage.name).collect();
    ensure!(names.is_empty(), "failed: {}", names.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
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
        assert!(names(false).starts_with(&["formatting", "lints", "tests"]));
    }
}
