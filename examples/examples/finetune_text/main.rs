//! Fine-tunes a BERT-like sentence encoder on classified texts with nine methods, and looks at shifted test sets. The README
//! beside this file has the results on a real model and real texts.

mod cli;
mod pooling;
mod task;
mod texts;

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
    let args: cli::Args = help::parse_quick(|| quick::texts("runs/quick_finetune_text".as_ref()))?;
    environment::for_threads(args.threads()?);
    let stop = Stop::never();
    stop.on_ctrl_c()?;
    cli::run(&args, &Progress::terminal(), &stop)
}
