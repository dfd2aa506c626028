//! Fine-tunes an image classifier on a folder or list of images, and looks at shifted test sets; the two experiments of the
//! TPGM paper are presets. The README beside this file says what data and models it takes.

mod cli;
mod images;
mod network;
mod options;
mod prepare;
mod preset;
mod pretrain;
mod published;
mod start;
mod task;
mod zero_shot;

use std::process::ExitCode;

use anyhow::Result;
use tpgm_examples::environment;
use tpgm_examples::failure;
use tpgm_examples::help;
use tpgm_examples::progress::Progress;
use tpgm_examples::quick;
use tpgm_examples::stop::Stop;

fn main() -> ExitCode {
    failure::exit_code(start())
}

fn start() -> Result<()> {
    let args: options::Args = help::parse_quick(|| quick::images("runs/quick_finetune_image".as_ref()))?;
    environment::for_threads(args.threads());
    let stop = Stop::never();
    stop.on_ctrl_c()?;
    cli::run(&args, &Progress::terminal(), &stop)
}
