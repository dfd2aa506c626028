//! `tpgm`: checkpoint files on the command line, for people who train with any library. The README shows it.

mod args;
mod bars;
mod convert;
mod distances;
mod failure;
mod inspect;
mod kind;
mod merge;
mod output;
mod progress;
mod report;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::args::{Args, Command};
use self::failure::Failure;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Inspect(args) => inspect::run(args),
        Command::Distances(args) => distances::run(args),
        Command::Merge { method } => merge::run(method),
        Command::Convert(args) => convert::run(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "tpgm", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}
