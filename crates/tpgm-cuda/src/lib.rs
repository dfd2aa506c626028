//! The CUDA backend of `tpgm-core`: norm, clip and interpolation of all tensors in one launch.
//!
//! You need this crate when weights and gradients are in GPU memory and a step should cost what its bytes cost: two launches
//! for any number of tensors, no temporaries, no waiting for the device. With candle, take `tpgm-candle` with its feature
//! `cuda` instead, which uses this.
//!
//! Building it takes no CUDA toolkit: the kernels come compiled, and the driver is looked up at run time. Without a driver or a
//! device (compute capability 7.5 or newer), [`Cuda::new`] is an error that says so.
//!
//! [`Cuda`] implements [`Backend`](tpgm_core::Backend), so [`Optimizer`](tpgm_core::Optimizer),
//! [`Projector`](tpgm_core::Projector), [`Ema`](tpgm_core::Ema) and
//! [`Interpolator`](tpgm_core::weight_space::Interpolator) run on it as on the CPU. Memory stays the caller's: see the example
//! at [`Cuda`]. Results are those of the CPU backend but for how sums are taken, and have the same bits in every run on one GPU.
//!
//! # Refused steps
//!
//! A gradient that is not finite makes the device skip the whole step. When the host learns of it is [`Reports`]' choice: with
//! the default a later call returns the error, because finding out at once means waiting.
//!
//! # CUDA graphs
//!
//! Learning rate, step counts, pointers and everything else that changes is in device memory, so a step can be captured in a
//! graph and replayed. Take one step with the same operands and options before capturing: the first one loads kernels and
//! sends tables. Between replays, [`Optimizer::prepare_step`](tpgm_core::Optimizer::prepare_step) changes the learning rate or
//! the operands.
//!
//! # Other machines
//!
//! The backend is [`Gpu`] over any [`Device`]. With the feature `emulated` there is `Emulator`, which runs the same kernels,
//! compiled by a C++ compiler, on the CPU: for tests (`cargo xtask emulate`), not for speed.

mod cuda;
pub mod device;
#[cfg(feature = "emulated")]
pub mod emulator;

mod gpu;
mod layout;
mod memory;
mod modules;
mod operands;
mod tables;
mod workspace;

pub use cuda::{Cuda, CudaDevice};
pub use device::Device;
#[cfg(feature = "emulated")]
pub use emulator::Emulator;
pub use gpu::{Gpu, Reports, Scalars};
pub use memory::{Buffer, View, ViewMut};
pub use workspace::Workspace;
