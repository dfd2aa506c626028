//! What can go wrong with the memory of a tensor.

use crate::room::into_candle;

/// What can go wrong with a tensor's type, its memory, or its device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pass over elements was refused.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// candle failed: a shape, or a device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor has an element type that cannot be trained.
    #[error("tensor `{tensor}` is {dtype:?}; only f64, f32, f16 and bf16 can be trained")]
    ElementType {
        /// Its name.
        tensor: String,
        /// Its element type.
        dtype: candle_core::DType,
    },
    /// A call that is for CUDA devices was given another one.
    #[error(
        "`{call}` is for CUDA devices, but got {device:?}{}",
        if cfg!(feature = "cuda") { "" } else { "; build with feature `cuda` to have them" }
    )]
    NotCuda {
        /// The function.
        call: &'static str,
        /// The device.
        device: candle_core::DeviceLocation,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle);
