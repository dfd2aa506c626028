//! `cargo xtask <command>`: every chore of the workspace under one name.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

mod bench;
mod emulate;
mod parity;
mod simd;
mod test;

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
    /// Runs the CUDA kernels on the CPU, through the tests of every backend
    Emulate(emulate::Args),
    /// Checks that the hot CPU kernels use 256-bit vector instructions
    Simd(simd::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Parity(args) => parity::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Emulate(args) => emulate::run(&args),
        Command::Simd(args) => simd::run(&args),
    }
}

/// A call of the cargo that started us.
fn cargo(args: &[&str]) -> std::process::Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(program);
    command.args(args);
    command
}
