//! `cargo xtask bench`: builds and starts the side-by-side harness of `benches/`.

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::emulate::{Variant, library};

/// Options of the harness, handed on as they are: `cargo xtask bench --help` shows its help.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Runs the harness; if it is to emulate kernels, compiles them first.
///
/// # Errors
///
/// If it cannot be built or fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = cargo(&["run", "--quiet", "--release", "--package", "tpgm-benches"]);
    command.args(["--bin", "side_by_side", "--"]).args(&args.options);
    if emulates(&args.options) {
        match library(Variant::Plain)? {
            Some(library) => command.env("TPGM_EMULATOR", library),
            None => return Ok(()),
        };
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the harness ended with {status}");
    Ok(())
}

/// True for `--backend emulated`.
fn emulates(options: &[String]) -> bool {
    let apart = options.windows(2).any(|pair| pair == ["--backend", "emulated"]);
    apart || options.iter().any(|option| option == "--backend=emulated")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_emulated_backend_needs_the_emulator() {
        let emulates = |line: &str| emulates(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert!(emulates("--rounds 2 --backend emulated") && emulates("--backend=emulated"));
        assert!(!emulates("--backend cuda") && !emulates("--out emulated"));
    }
}
