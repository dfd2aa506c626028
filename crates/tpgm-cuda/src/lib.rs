//! The CUDA backend of `tpgm-core`: norm, clip and interpolation of all tensors in one launch.

pub mod device;

pub use device::Device;
