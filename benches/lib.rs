//! Benchmarks over the tensor lists of real models.
//!
//! - [`Model`]: names and shapes of the tensors of real models, the only place where sizes come from.
//! - [`data`]: synthetic weights, gradients and anchors, the same on every machine.
//! - [`floors`]: how fast memory is, measured in the same run: what every other number is compared with.
//!
//! Criterion benches are in `benches/benches`; `cargo xtask bench` runs the side-by-side comparison, which interleaves
//! our code, the floors and PyTorch in one run.

pub mod data;
pub mod floors;
mod models;

pub use models::Model;
