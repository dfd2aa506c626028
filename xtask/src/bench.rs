//! `cargo xtask bench`: builds and starts the harnesses of `benches/`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::emulate::{Variant, library};
use crate::{cargo, root};

/// Options of the harness, handed on as they are: `cargo xtask bench --help` shows its help, and
/// `cargo xtask bench --end-to-end --help` that of the other one.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Selects the harness of whole training steps.
const END_TO_END: &str = "--end-to-end";

/// Prints launches and bytes of training steps on a GPU, counted and not measured.
const COUNT: &str = "--count";

/// What `--install-torch` installs: PyTorch, and what the published code imports.
const TORCH: [&str; 2] = ["torch", "numpy"];

/// Runs the harness; if it is to emulate kernels, or to compare with candle, compiles these first. `--install-torch` makes a
/// virtual environment with PyTorch in `target/peers/torch`, once, and compares with it. `--count` alone prints the table of
/// [`COUNT`]. `--end-to-end` runs the harness of
/// whole training steps; with `--device cuda` it is built with the feature of that name, which takes the CUDA toolkit.
///
/// # Errors
///
/// If it cannot be built or fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut options = args.options.clone();
    if options.iter().any(|option| option == COUNT) {
        ensure!(options.len() == 1, "`{COUNT}` takes no other option, but got {options:?}");
        return start(&mut harness("count"));
    }
    if let Some(at) = options.iter().position(|option| option == "--install-torch") {
        let python = torch()?.display().to_string();
        options.splice(at..=at, ["--python".to_owned(), python]);
    }
    let mut whole_steps = false;
    options.retain(|option| {
        whole_steps |= option == END_TO_END;
        option != END_TO_END
    });
    if whole_steps {
        let features = if trains_on_gpu(&options) { "cuda" } else { "end-to-end" };
        return start(harness("end_to_end").args(["--features", features, "--"]).args(&options));
    }
    if compares_with_candle(&options) && !options.iter().any(|option| option.starts_with("--candle")) {
        options.extend(["--candle".to_owned(), candle()?.display().to_string()]);
    }
    let mut command = harness("side_by_side");
    command.arg("--").args(&options);
    if emulates(&options) {
        match library(Variant::Plain)? {
            Some(library) => command.env("TPGM_EMULATOR", library),
            None => return Ok(()),
        };
    }
    start(&mut command)
}

/// Cargo, about to build and run one of the programs.
fn harness(program: &str) -> Command {
    cargo(&["run", "--quiet", "--release", "--package", "tpgm-benches", "--bin", program])
}

fn start(command: &mut Command) -> Result<()> {
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the harness ended with {status}");
    Ok(())
}

/// The interpreter of a virtual environment with PyTorch, which is made if it is not there.
fn torch() -> Result<PathBuf> {
    let folder = root()?.join("target/peers/torch");
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    // Installed last: where it is, the environment is whole.
    let whole = folder.join("whole");
    if !whole.exists() {
        eprintln!("installing PyTorch into {}", folder.display());
        let run = |command: &mut Command| {
            let status = command.status().context("cannot start Python 3")?;
            ensure!(status.success(), "PyTorch could not be installed ({status})");
            Ok(())
        };
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(TORCH))?;
        std::fs::write(&whole, "").with_context(|| format!("cannot write {}", whole.display()))?;
    }
    Ok(python)
}

/// Builds candle's own optimizers, which are a workspace of their own, and returns the program.
fn candle() -> Result<PathBuf> {
    let target = root()?.join("target/peers");
    let manifest = root()?.join("benches/peers/candle/Cargo.toml");
    let mut command = cargo(&["build", "--quiet", "--release", "--locked"]);
    command.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(&target);
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "candle's optimizers could not be built ({status})");
    Ok(target.join("release").join(format!("candle-peer{}", std::env::consts::EXE_SUFFIX)))
}

/// True for `--backend emulated`.
fn emulates(options: &[String]) -> bool {
    has(options, "--backend", &["emulated"])
}

/// True for `--device cuda` and `--device cuda:1`.
fn trains_on_gpu(options: &[String]) -> bool {
    values(options, "--device").any(|value| value.starts_with("cuda"))
}

/// True for `--vs candle` and `--vs all`.
fn compares_with_candle(options: &[String]) -> bool {
    has(options, "--vs", &["candle", "all"])
}

/// Whether an option has one of some values.
fn has(options: &[String], name: &str, wanted: &[&str]) -> bool {
    values(options, name).any(|value| wanted.contains(&value))
}

/// The values of an option, as words of their own or behind `=`.
fn values<'a>(options: &'a [String], name: &'a str) -> impl Iterator<Item = &'a str> {
    let apart = options.windows(2).filter(move |pair| pair[0] == name).map(|pair| pair[1].as_str());
    let joined = options.iter().filter_map(move |option| option.strip_prefix(name)?.strip_prefix('='));
    apart.chain(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_emulated_backend_needs_the_emulator_and_only_candle_needs_candle() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let emulates = |line: &str| emulates(&words(line));
        let compares = |line: &str| compares_with_candle(&words(line));
        assert!(
            compares("--vs candle --rounds 2") && compares("--vs=all") && !compares("--vs torch --ftp all")
        );
        let on_gpu = |line: &str| trains_on_gpu(&words(line));
        assert!(on_gpu("--network mini --device cuda") && on_gpu("--device=cuda:1"));
        assert!(!on_gpu("--device cpu --out cuda") && !on_gpu("--rounds 2"));
        assert!(emulates("--rounds 2 --backend emulated") && emulates("--backend=emulated"));
        assert!(!emulates("--backend cuda") && !emulates("--out emulated"));
    }
}
