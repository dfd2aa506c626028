//! Prompts of nodes in miniature: a small pre-trained graph network learns new classes of graphs by prompts, a head, or all its
//! weights, and meets other graphs than it has learned from. The README beside this file has the results.

mod cli;
mod graphs;
mod lab;
mod method;
mod net;
mod pretrain;
mod report;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use tpgm_examples::environment;
use tpgm_examples::failure;
use tpgm_examples::help;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

fn main() -> ExitCode {
    failure::exit_code(start())
}

fn start() -> Result<()> {
    environment::for_threads(1);
    let args: cli::Args = help::parse();
    let stop = Stop::never();
    stop.on_ctrl_c()?;
    cli::run(&args, &Progress::terminal(), &stop)
}
