//! Benchmarks over the tensor lists of real models.
//!
//! - [`Model`]: names and shapes of the tensors of real models, the only place where sizes come from.
//! - [`data`]: synthetic weights, gradients and anchors, the same on every machine.
//! - [`floors`]: how fast memory is, measured in the same run: what every other number is compared with.
//! - [`Method`]: what is measured, and the bytes it must move.
//! - [`Target`]: where it is measured: the backend with its clock, its caches and its floors.
//! - [`Ours`]: our side of a comparison.
//! - [`Peers`]: PyTorch and the published code, or candle's own optimizers, in a child process.
//! - [`options`]: what both harnesses can be asked for.
//! - [`count`]: launches and bytes of whole training steps on a GPU, counted and not measured.
//! - [`Samples`]: medians and paired ratios.
//! - [`report`]: tables for people, rows for data files; [`machine`] says where they come from, [`contention`] who else was
//!   at work.
//!
//! Criterion benches are in `benches/benches`; `cargo xtask bench` runs the side-by-side comparison, which interleaves
//! the floors, our code and its peers in one run.

pub mod contention;
pub mod count;
pub mod data;
pub mod floors;
#[cfg(test)]
mod lanes;
pub mod machine;
mod methods;
mod models;
pub mod options;
mod ours;
mod peer;
pub mod report;
mod samples;
mod target;

pub use methods::{Call, Method, Operation, Traffic};
pub use models::Model;
pub use ours::{FLIP_EVERY, Ours};
pub use peer::{AS_IS, Hello, KEPT, Memory, Peers, TorchOptions};
pub use samples::{Samples, Timing};
pub use target::{CpuTarget, GpuTarget, Target, Timed, gpu};
