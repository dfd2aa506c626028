//! The CUDA backend of `tpgm-core`: norm, clip and interpolation of all tensors in one launch.

mod cuda;
pub mod device;
#[cfg(feature = "emulated")]
pub mod emulator;

mod gpu;
mod layout;
mod memory;
mod operands;
mod ptx;
mod tables;
mod workspace;

pub use cuda::{Cuda, CudaDevice};
pub use device::Device;
#[cfg(feature = "emulated")]
pub use emulator::Emulator;
pub use gpu::{Gpu, Reports, Scalars};
pub use memory::{Buffer, View, ViewMut};
pub use workspace::Workspace;
