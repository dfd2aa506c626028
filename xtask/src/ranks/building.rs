//! What is compiled only with the feature `mpi`.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::test::FEATURES;

/// What is built.
pub(super) struct Programs {
    /// What ranks run.
    pub(super) ranks: PathBuf,
    /// The unit tests of `tpgm-candle`.
    pub(super) library: PathBuf,
}

/// Builds the programs as the tests are built, so that all of their dependencies but MPI are there already. To measure, this
/// workspace's part of them is optimized.
pub(super) fn build(optimized: bool) -> Result<Programs> {
    let features = format!("{FEATURES},tpgm-candle/mpi");
    let output =
        cargo(&["test", "--workspace", "--features", &features, "--lib", "--test", "mpi", "--no-run"])
            .args(["--message-format", "json-render-diagnostics"])
            .args(if optimized {
                &["--config", "profile.dev.package.tpgm-candle.opt-level=3"][..]
            } else {
                &[]
            })
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
    ensure!(output.status.success(), "the program cannot be built");
    let lines = String::from_utf8(output.stdout)?;
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let (mut ranks, mut library) = (None, None);
    for message in messages {
        let program = message["executable"].as_str().map(PathBuf::from);
        match message["target"]["name"].as_str() {
            Some("mpi") if program.is_some() => ranks = program,
            Some("tpgm_candle" | "tpgm-candle") if program.is_some() => library = program,
            _ => {}
        }
    }
    let found = ranks.zip(library).map(|(ranks, library)| Programs { ranks, library });
    found.context("cargo does not say where the programs are")
}

/// Lints what the stage of lints does not see. Dependencies were checked there already, but for MPI.
pub(super) fn lint() -> Result<()> {
    let features = format!("{FEATURES},tpgm-examples/mpi");
    let targets = ["--lib", "--test", "mpi", "--example", "data_parallel"];
    let status = cargo(&["clippy", "--workspace", "--features", &features])
        .args(targets)
        .args(["--", "-D", "warnings"])
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "lints with the feature `mpi`: see above");
    Ok(())
}
