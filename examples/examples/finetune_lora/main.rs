//! Fine-tunes a decoder of the families Llama and Qwen2 on a text with LoRA, with its factors bounded around zero, and says
//! what was learned and what was forgotten. The README beside this file shows it.

mod cli;
mod language;
mod page;
mod sample;
mod text;
mod tiny;
mod train;

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
    let args: cli::Args = help::parse();
    // Before any thread is there: this starts the program anew.
    if args.without_model() {
        environment::for_threads(1);
    }
    let stop = Stop::never();
    stop.on_ctrl_c()?;
    cli::run(&args, &Progress::terminal(), &stop)
}
