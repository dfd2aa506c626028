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
//! graph and replayed: by [`Cuda::capture`](Gpu::capture), or as a part of a graph that the caller captures on the backend's
//! stream.
//!
//! ```no_run
//! # use tpgm_core::{AdamW, Backend, DType, Error, Ftp, Optimizer, ParamSet, StepOptions, TensorIo};
//! # use tpgm_cuda::Cuda;
//! # let cuda = Cuda::new(0)?;
//! # let set = ParamSet::builder().tensor("w", [32, 32], DType::F32).build()?;
//! # let mut weight = cuda.zeros(DType::F32, 1024)?;
//! # let (grad, anchor) = (cuda.zeros(DType::F32, 1024)?, cuda.zeros(DType::F32, 1024)?);
//! # let mut optimizer = Optimizer::new(cuda.clone(), &set, AdamW::default(), Ftp::default())?;
//! let mut io = [TensorIo::new(weight.view_mut()).grad(grad.view()).anchor(anchor.view())];
//! let mut options = StepOptions::lr(1e-4);
//! // Loads kernels and sends tables, which cannot be part of a graph.
//! optimizer.prepare_step(&mut io, &options)?;
//! let graph = cuda.capture(|| optimizer.step(&mut io, &options).map(drop))?;
//! for lr in [1e-4, 2e-4, 3e-4] {
//!     options.lr = Some(lr);
//!     optimizer.prepare_step(&mut io, &options)?; // queued on the same stream, ahead of the replay
//!     // SAFETY: weights, gradients and anchors are there until the replays are through.
//!     unsafe { graph.replay() }?;
//! }
//! match optimizer.outcome() {
//!     Err(Error::NonFiniteGradient { .. }) => println!("the last replay was refused"),
//!     outcome => drop(outcome?),
//! }
//! # Ok::<(), Error>(())
//! ```
//!
//! - Before the capture, [`prepare_step`](tpgm_core::Optimizer::prepare_step) with the same operands and options; without it,
//!   capturing the step is an error. Between replays it changes the learning rate or the operands, and sends nothing that the
//!   device has already. State that was loaded counts as a change of operands.
//! - A captured step says nothing, whatever [`Reports`] is, and a replay that is refused changes nothing.
//!   [`outcome`](tpgm_core::Optimizer::outcome) waits and says what became of the last one.
//! - [`Captured`] keeps all memory of the backend, also when optimizers and buffers are dropped before it. What the caller lent
//!   is the caller's to keep. A graph captured by other means keeps nothing: drop it before the optimizer.
//!
//! # Streams and threads
//!
//! Everything is queued on the backend's stream, without events between the calls; cudarc's events are looked after for what is
//! lent by [`lend`](Gpu::lend) and [`lend_mut`](Gpu::lend_mut). Optimizers may change threads, but for one kind of stream: the
//! one that every thread has its own of (`CudaContext::per_thread_stream`, which candle's devices take by default). On
//! another thread than the one that made the backend, their calls are errors.
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
pub mod layers;
mod layout;
mod memory;
mod modules;
mod operands;
mod tables;
mod workspace;

pub use cuda::{Captured, Cuda, CudaDevice, CudaMemory, CudaStaging, Lent, LentMut};
pub use device::Device;
#[cfg(feature = "emulated")]
pub use emulator::Emulator;
pub use gpu::{Gpu, Reports, Scalars, rows_at_a_time};
pub use memory::{Buffer, View, ViewMut};
pub use workspace::Workspace;

/// Runs the example of the README as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
