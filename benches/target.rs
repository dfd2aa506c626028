//! Where methods are measured: a backend with its clock, its caches and the speed of its memory.

mod counted;
mod cpu;
mod cuda;
mod emulated;
#[cfg(test)]
mod fake;
mod gpu;

use std::time::Duration;

use anyhow::Result;
use tpgm_core::Backend;

pub use cpu::CpuTarget;
pub use cuda::gpu;
pub use gpu::{GpuTarget, Timed};

use crate::Timing;
use crate::floors::Floor;

/// A backend that can be measured.
pub trait Target {
    /// The backend.
    type Backend: Backend;

    /// The backend, for another owner. All share the target's clock and device.
    fn backend(&self) -> Self::Backend;

    /// Name of the device, `cpu` for the processor.
    fn device(&self) -> &str;

    /// Version of the device's driver, where it has one.
    fn driver(&self) -> Option<&str>;

    /// The floors that can be measured here.
    fn floors(&self) -> &'static [Floor];

    /// Number of elements of the arrays of the floors: more than any cache holds.
    fn floor_elements(&self) -> usize;

    /// Runs one floor and returns its seconds.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn floor(&mut self, floor: Floor) -> Result<f64>;

    /// Times the device's work on the calls that `work` makes, from caches that hold nothing of theirs and nothing that has yet
    /// to be written to memory. What the host does meanwhile is a time of its own.
    ///
    /// # Errors
    ///
    /// Those of `work`, or the device fails.
    fn time(&mut self, work: &mut dyn FnMut() -> tpgm_core::Result<()>) -> Result<Timing>;

    /// The parts of the device's work in the call `name`, with their seconds, in order: kernels on a GPU; elsewhere the
    /// call as one part.
    ///
    /// # Errors
    ///
    /// As [`Target::time`].
    fn parts(
        &mut self,
        name: &'static str,
        work: &mut dyn FnMut() -> tpgm_core::Result<()>,
    ) -> Result<Vec<(&'static str, f64)>>;

    /// Kernels started since the target was made; none where work is not started by kernels.
    fn launches(&self) -> Option<usize>;

    /// What to wait before every contestant. On the host, for the threads of the one before to go to sleep; on a GPU nothing:
    /// its clock would fall.
    fn pause(&self) -> Duration;

    /// Bytes of the memory that data and state lie in that are free, where that can be said.
    fn available(&self) -> Option<u64>;
}
