//! What is compiled only with the feature `mpi`.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::test::FEATURES;

/// Builds the program as the tests are built, so that all of its dependencies but MPI are there already. To measure, this
/// workspace's part of it is optimized.
pub(super) fn build(optimized: bool) -> Result<PathBuf> {
    let features = format!("{FEATURES},tpgm-candle/mpi");
    let output = cargo(&["test", "--workspace", "--features", &features, "--test", "mpi", "--no-run"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(if optimized { &["--config", "profile.dev.package.tpgm-candle.opt-level=3"][..] } else { &[] })
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the program cannot be built");
    let lines = String::from_utf8(output.stdout)?;
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == "mpi");
    let program = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo does not say where the program is")
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
