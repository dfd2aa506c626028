//! Checkpoints of a training run.
//!
//! You need this when a run is longer than you want to lose: it is saved now and then, and goes on from where it stopped
//! with the same bits as if it had never stopped, provided that everything it reads is saved.
//!
//! ```no_run
//! # use tpgm_candle::{Checkpointer, DataOrder, Params, RobustOptimizer, Schedule, TrainState};
//! # fn example(params: Params, mut optimizer: RobustOptimizer) -> tpgm_candle::Result<()> {
//! let checkpoints = Checkpointer::new("run/checkpoints").keep(3).keep_every(10_000);
//! let mut order = DataOrder::new(50_000, 64, 42)?;
//! let mut schedule = Schedule::cosine(1e-4, 20_000).warmup(500);
//! let mut step = 0;
//!
//! if let Some(found) = checkpoints.latest_valid()? {
//!     found.skipped.iter().for_each(|skipped| eprintln!("skipped: {skipped}"));
//!     let saved = found.checkpoint;
//!     step = saved.step();
//!     saved.restore(&params)?;
//!     optimizer.resume(&saved.value("config")?, &saved.state("optimizer")?)?;
//!     order.load_state(&saved.value("data")?)?;
//!     schedule = saved.value("schedule")?;
//! }
//!
//! // ... train; every 500 steps, and when the user interrupts:
//! let state = TrainState::new(step)
//!     .weights(params.values())? // buffers too: running statistics are part of the model
//!     .state("optimizer", optimizer.state()?)?
//!     .value("config", optimizer.config())?
//!     .value("data", &order)?
//!     .value("schedule", &schedule)?;
//! checkpoints.save(&state)?;
//! # Ok(())
//! # }
//! ```
//!
//! The same way goes what else the run has: the state of [`Ema`](crate::Ema) and [`Tpgm`](crate::Tpgm), the
//! [`DropoutRng`](tpgm_nn::DropoutRng), an epoch, a best accuracy.
//!
//! # What is on the disk
//!
//! | file of `step-00001234/` | holds |
//! |---|---|
//! | `weights.safetensors` | weights and buffers under the model's names: any tool loads it |
//! | `state.safetensors` | sections of state, `optimizer/<tensor>/<slot>` |
//! | `state.json` | format version, step, named values |
//! | `checksums.txt` | CRC-32C and length of each |
//!
//! Of `n` ranks that save together ([`Checkpointer::save_on_ranks`]), each writes a file of state of its own,
//! `state-00000-of-00002.safetensors` and so on. Whatever their number was, such a checkpoint loads on any number of ranks, and
//! undivided.
//!
//! A folder rather than one file, because the weights are then usable as they are, and because renaming a folder is as
//! atomic as renaming a file. The checksums have a file of their own, so that they cover `state.json` too.
//!
//! # Saving when interrupted
//!
//! This crate installs no signal handlers. An application that wants to save on Ctrl-C lets its handler set a flag, and
//! looks at it between steps, when nothing is half done:
//!
//! ```no_run
//! use std::sync::atomic::{AtomicBool, Ordering};
//!
//! static INTERRUPTED: AtomicBool = AtomicBool::new(false);
//! // ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))?;
//!
//! for step in 0..1000 {
//!     // optimizer.backward_step(&loss)?;
//!     if INTERRUPTED.load(Ordering::Relaxed) {
//!         // checkpoints.save(&state)?; say how to go on
//!         break;
//!     }
//! }
//! ```
//!
//! # Memory
//!
//! Weights are written from their storage and read one at a time. A [`StateDict`](tpgm_core::StateDict) is a copy of the
//! state it was taken from (AdamW with FTP: three times the weights), so drop the [`TrainState`] after saving.

mod checkpointer;
mod error;
mod exact;
mod load;
mod manifest;
mod name;
mod problem;
mod ranks;
mod read;
mod state;
mod write;

pub use checkpointer::{Checkpointer, Entry, Found};
pub use error::{Error, Result};
pub use load::Checkpoint;
pub use problem::{CheckpointProblem, Skipped};
pub use state::TrainState;
