//! `cargo xtask test`: what CI runs and the README calls the test command.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// No options yet.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Numbers computed by the authors' published code.
const GOLDEN: &str = "crates/tpgm-core/tests/golden";

/// One stage: a name, the arguments of cargo, and an environment variable for it.
struct Stage {
    name: &'static str,
    args: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
    /// Why the stage cannot run here, if so.
    skip: fn() -> Result<Option<&'static str>>,
}

const fn stage(name: &'static str, args: &'static [&'static str]) -> Stage {
    Stage { name, args, env: None, skip: || Ok(None) }
}

/// All features but those of `tpgm-candle` that take a CUDA toolkit.
const FEATURES: &str =
    "tpgm-core/serde,tpgm-core/testing,tpgm-cuda/emulated,tpgm-examples/hf-hub,tpgm-benches/end-to-end";

const STAGES: [Stage; 15] = [
    stage("formatting", &["fmt", "--all", "--check"]),
    stage(
        "lints",
        &["clippy", "--workspace", "--all-targets", "--features", FEATURES, "--", "-D", "warnings"],
    ),
    stage(
        "tests",
        &["test", "--workspace", "--features", FEATURES, "--lib", "--bins", "--tests", "--examples"],
    ),
    stage("documentation tests", &["test", "--workspace", "--features", FEATURES, "--doc"]),
    Stage {
        env: Some(("RUSTDOCFLAGS", "-D warnings")),
        ..stage("documentation", &["doc", "--workspace", "--features", FEATURES, "--no-deps"])
    },
    stage("lints of the CUDA features", &["xtask", "cuda-check"]),
    Stage { skip: crate::ptx::missing, ..stage("committed PTX", &["xtask", "ptx", "--check"]) },
    stage("kernels on the CPU", &["xtask", "emulate"]),
    // Addresses and undefined behavior; the tests that reach all kernels.
    stage(
        "kernels under the address sanitizer",
        &["xtask", "emulate", "--asan", "--", "device::", "suite::averages", "suite::projector"],
    ),
    stage("kernels under the thread sanitizer", &["xtask", "emulate", "--tsan"]),
    stage("mistakes planted in kernels", &["xtask", "emulate", "--self-test"]),
    Stage {
        skip: crate::emulate::missing,
        ..stage("parity of the kernels", &["xtask", "parity", GOLDEN, "--backend", "emulated"])
    },
    // Only ratios within the run count: a machine that is merely slow passes.
    stage("speed against that of memory", &["xtask", "bench", "--quick"]),
    stage("parity of the oracle", &["xtask", "parity", GOLDEN, "--backend", "oracle"]),
    stage("parity of the CPU backend", &["xtask", "parity", GOLDEN, "--backend", "cpu"]),
];

/// Runs every stage, also after one has failed, and ends with a summary.
///
/// # Errors
///
/// If a stage fails or cargo cannot be started.
pub(crate) fn run(_: &Args) -> Result<()> {
    let root = crate::root()?;
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for stage in &STAGES {
        println!("\n== {}: cargo {}", stage.name, stage.args.join(" "));
        if let Some(reason) = (stage.skip)()? {
            println!("skipped: {reason}");
            lines.push(format!("skipped {}: {reason}", stage.name));
            continue;
        }
        let start = Instant::now();
        let mut command = cargo(stage.args);
        command.current_dir(root).envs(stage.env);
        let success = command.status().context("cannot start cargo")?.success();
        if !success {
            failed.push(stage.name);
        }
        let verdict = if success { "ok" } else { "FAILED" };
        lines.push(format!("{verdict:<7} {} ({} s)", stage.name, start.elapsed().as_secs()));
    }
    println!("\n== summary\n{}", lines.join("\n"));
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
