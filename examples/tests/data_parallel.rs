//! `data_parallel` with threads for ranks; `cargo xtask ranks` has processes.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "../examples/data_parallel/cli.rs"]
mod cli;
#[path = "../examples/data_parallel/group.rs"]
mod group;

use clap::{CommandFactory, Parser};
use tpgm_examples::progress::Progress;

fn run(options: &[&str]) -> anyhow::Result<()> {
    let args = ["data_parallel", "--device", "cpu"].into_iter().chain(options.iter().copied());
    cli::run(&cli::Args::try_parse_from(args)?, &Progress::hidden())
}

/// It compares the weights of all ranks itself, to the bit.
#[test]
fn ranks_end_with_the_same_weights() {
    run(&["--quick"]).unwrap();
    run(&["--quick", "--ranks", "3", "--divide-state", "--batch", "24"]).unwrap();
}

#[test]
fn what_does_not_fit_is_named() {
    let error = |options: &[&str]| format!("{:#}", run(options).unwrap_err());
    assert!(error(&["--ranks", "5", "--batch", "24"]).contains("--batch 24 is not a multiple of 5 ranks"));
    assert!(error(&["--steps", "0"]).contains("--steps is 0"));
    assert!(error(&["--ranks", "0"]).contains("0 is not in 1..=64"));
}

#[test]
fn the_help_fits_a_screen() {
    let mut command = cli::Args::command();
    command.clone().debug_assert();
    let screen = tpgm_examples::help::screen(&mut command);
    assert!(screen.lines().count() <= 30 && screen.contains("--quick"), "{screen}");
}
