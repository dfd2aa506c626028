//! `cargo xtask <command>`: every chore of the workspace under one name.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

mod parity;

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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Parity(args) => parity::run(&args),
    }
}
