//! `cargo xtask bench`: builds and starts the side-by-side harness of `benches/`.

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// Options of the harness, handed on as they are: `cargo xtask bench --help` shows its help.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Runs the harness.
///
/// # Errors
///
/// If it cannot be built or fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let status = cargo(&["run", "--quiet", "--release", "--package", "tpgm-benches"])
        .args(["--bin", "side_by_side", "--"])
        .args(&args.options)
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the harness ended with {status}");
    Ok(())
}
