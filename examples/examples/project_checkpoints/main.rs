//! How far fine-tuned checkpoints are from their anchor, tensor by tensor, and what brings them back: interpolation,
//! projection on a radius, Model Stock, soups. Works on files, also on those larger than memory. The README beside this
//! file shows it.

mod cli;
mod report;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tpgm_examples::failure;
use tpgm_examples::progress::Progress;

fn main() -> ExitCode {
    failure::exit_code(start())
}

fn start() -> Result<()> {
    cli::run(&cli::Args::parse(), &Progress::terminal())
}
