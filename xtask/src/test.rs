//! `cargo xtask test`: what CI runs and the README calls the test command.

mod record;

use std::time::Instant;

use anyhow::{Context, Result, ensure};

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
    Stage { name, args, env: &[], quick: Quick::Not, inputs: None, skip: || Ok(None) }
}

/// A stage over the kernels.
const fn kernels(name: &'static str, args: &'static [&'static str]) -> Stage {
    Stage { inputs: Some(KERNELS), ..stage(name, args) }
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
    Stage { skip: crate::ptx::missing, ..kernels("committed kernels", &["xtask", "ptx", "--check"]) },
    kernels("kernels on the CPU", &["xtask", "emulate"]),
    kernels("kernels with a GPU's blocks", &["xtask", "emulate", "--threads", "256"]),
    kernels("kernels with the sums of other GPUs", &["xtask", "emulate", "--compensated"]),
    // Addresses and undefined behavior; the tests that reach all kernels.
    kernels(
        "kernels under the address sanitizer",
        &["xtask", "emulate", "--asan", "--", "device::", "suite::averages", "suite::projector"],
    ),
    kernels("kernels under the thread sanitizer", &["xtask", "emulate", "--tsan"]),
    kernels("mistakes planted in kernels", &["xtask", "emulate", "--self-test"]),
    kernels("the host's code over a stand-in for the driver", &["xtask", "emulate", "--driver"]),
    kernels("mistakes planted in calls of the driver", &["xtask", "emulate", "--driver", "--self-test"]),
    Stage {
        skip: crate::emulate::missing,
        ..kernels("parity of the kernels", &["xtask", "parity", GOLDEN, "--backend", "emulated"])
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

/// Runs every stage, also after one has failed, and ends with a summary. A stage over a small part of the workspace that passed
/// in this target folder counts as passed while nothing of that part changes.
///
/// # Errors
///
/// If a stage fails or cargo cannot be started.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut record = Record::read()?;
    let stages = || STAGES.iter().filter(|stage| stage.runs(args.quick));
    if args.list {
        let last =
            |name| record.seconds(name).map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s"));
        stages().for_each(|stage| println!("{:>7}  {}: {}", last(stage.name), stage.name, stage.command()));
        let total: u64 = stages().filter_map(|stage| record.seconds(stage.name)).sum();
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
        let files = stage.inputs.map(|inputs| digest(root, inputs)).transpose().unwrap_or_else(|error| {
            println!("it runs whether its files changed or not: {error:#}");
            None
        });
        if !args.all && files.as_ref().is_some_and(|files| record.passed(stage.name, files)) {
            println!("unchanged since it passed here; --all repeats it");
            lines.push(format!("ok      {} (unchanged since it passed)", stage.name));
            continue;
        }
        let start = Instant::now();
        let mut command = cargo(stage.args);
        command.current_dir(root).envs(stage.env.iter().copied());
        let success = command.status().context("cannot start cargo")?.success();
        let took = start.elapsed().as_secs();
        record.add(stage.name, took, files.filter(|_| success))?;
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
    use std::path::Path;

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
}
