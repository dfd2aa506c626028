//! `cargo xtask <command>`: every chore of the workspace under one name.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

mod bench;
mod cuda_check;
mod cuda_tools;
mod data;
mod emulate;
mod fuzz;
mod gpu_day;
mod guide;
#[cfg(test)]
mod layers;
mod packages;
mod parity;
mod ptx;
mod ranks;
mod simd;
mod test;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Every chore of the workspace under one name
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compares an implementation with numbers computed by the authors' published code
    Parity(parity::Args),
    /// Everything that must pass before a change lands: formatting, lints, tests, documentation
    Test(test::Args),
    /// Times our methods beside the speed of memory and PyTorch, in one run
    Bench(bench::Args),
    /// Fetches pictures, texts and pre-trained networks from package registries, as the examples read them
    Data(data::Args),
    /// Runs the CUDA kernels on the CPU, through the tests of every backend
    Emulate(emulate::Args),
    /// Lints the code behind the CUDA features, without CUDA
    CudaCheck(cuda_check::Args),
    /// Compiles the CUDA kernels to PTX, or checks that the committed PTX is what they compile to
    Ptx(ptx::Args),
    /// Hands readers of untrusted files what a fuzzer thinks up
    Fuzz(fuzz::Args),
    /// Packs the library crates and compiles each from its package
    Packages(packages::Args),
    /// Packs a day on a GPU into one folder, tries it here, and takes its results in
    GpuDay(gpu_day::Args),
    /// Checks links and code of all pages, and makes the book of the guide
    Guide(guide::Args),
    /// Ranks as processes, under Open MPI: the checks of threads, other numbers of processes, and processes that are killed
    Ranks(ranks::Args),
    /// Checks that the hot CPU kernels use 256-bit vector instructions
    Simd(simd::Args),
}

fn main() -> ExitCode {
    // Never with a stack of frames, which `RUST_BACKTRACE=1` would ask of a returned error.
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    match Cli::parse().command {
        Command::Parity(args) => parity::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Emulate(args) => emulate::run(&args),
        Command::CudaCheck(args) => cuda_check::run(&args),
        Command::Ptx(args) => ptx::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Packages(args) => packages::run(&args),
        Command::GpuDay(args) => gpu_day::run(&args),
        Command::Guide(args) => guide::run(&args),
        Command::Ranks(args) => ranks::run(&args),
        Command::Simd(args) => simd::run(&args),
    }
}

/// The folder of the workspace.
fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the folder above xtask")
}

/// A call of the cargo that started us.
fn cargo(args: &[&str]) -> std::process::Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(program);
    command.args(args);
    command
}

/// Lets a script be started by its name.
#[cfg(unix)]
fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make `{}` executable", file.display()))
}

#[cfg(not(unix))]
fn make_executable(file: &Path) -> Result<()> {
    anyhow::bail!("`{}` is a shell script, which takes a Unix to run", file.display())
}
