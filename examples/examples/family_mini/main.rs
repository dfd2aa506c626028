//! The wider family in miniature: fine-tunes a small pair of image and text towers on real images with 24 methods, and looks at
//! four other domains. The README beside this file has the results.

mod cli;
mod lab;
mod method;
mod net;
mod pretrain;
mod report;
mod rows;
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
