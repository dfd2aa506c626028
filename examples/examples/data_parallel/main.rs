//! One model fine-tuned by several ranks: each works on its part of every batch, gradients are averaged before the step,
//! and all ranks end with the same weights, to the bit.
//!
//! Started alone, it has threads for ranks, on the CPU; with feature `nccl`, and as many GPUs as ranks, each has a GPU of its own.
//! Started as several processes, each is a rank: with feature `mpi` those of `mpirun` or `srun`, with feature `nccl` those of `torchrun`
//! or of a script that sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`. `--device` asks for the CPU or for GPUs:
//!
//! ```sh
//! cargo run --release -p tpgm-examples --example data_parallel -- --ranks 2
//!
//! cargo build --release -p tpgm-examples --example data_parallel --features mpi
//! mpirun -n 2 target/release/examples/data_parallel
//! ```
//!
//! With `--divide-state` each rank keeps the optimizer's state of its own tensors alone; the weights are the same bits.
//! `docs/ranks.md` has more of all this.

mod cli;
mod group;

use std::process::ExitCode;

use anyhow::Result;
use tpgm_examples::environment;
use tpgm_examples::failure;
use tpgm_examples::help;
use tpgm_examples::progress::Progress;

fn main() -> ExitCode {
    failure::exit_code(start())
}

fn start() -> Result<()> {
    environment::for_threads(1);
    let args: cli::Args = help::parse();
    cli::run(&args, &Progress::terminal())
}
