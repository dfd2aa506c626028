//! DomainNet in miniature: fine-tunes a small backbone on real images with eleven methods, and looks at five other
//! domains. The README beside this file has the results.

mod cli;
mod evaluate;
mod pretrain;
mod samples;
mod task;
mod windows;
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
