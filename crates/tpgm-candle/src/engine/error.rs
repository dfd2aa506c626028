//! What can go wrong with what a pass works on.

use crate::room::into_candle;
use crate::{memory, params};

/// What can go wrong with the operands of a pass, or with its device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method refused its options or operands.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// candle failed: a shape, a device, a closure.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor has another type or device than is needed.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The parameters are not what is needed.
    #[error(transparent)]
    Params(#[from] params::Error),
    /// Two trainable parameters are the same memory, which a step would change twice.
    #[error(
        "parameters `{first}` and `{second}` share their memory; register tied weights once, under one name"
    )]
    SharedStorage {
        /// Name of one.
        first: String,
        /// Name of the other.
        second: String,
    },
    /// A tensor is on a device that steps cannot run on.
    #[error(
        "tensor `{tensor}` is on {device:?}; steps run on the CPU{}",
        if cfg!(feature = "cuda") { " and on NVIDIA GPUs" } else { ", and on NVIDIA GPUs with feature `cuda`" }
    )]
    Device {
        /// Its name.
        tensor: String,
        /// Where it is.
        device: candle_core::DeviceLocation,
    },
    /// Parameters of one optimizer are on several devices.
    #[error(
        "tensor `{tensor}` is on {device:?}, but `{first}` on {expected:?}; \
         all must be on one device, made by one call of `Device::new_cuda`"
    )]
    Devices {
        /// Name of a parameter that is elsewhere than the first.
        tensor: String,
        /// Where it is.
        device: candle_core::DeviceLocation,
        /// Name of the first parameter.
        first: String,
        /// Where that is.
        expected: candle_core::DeviceLocation,
    },
    /// An operand is on another device than its parameter.
    #[error("tensor `{tensor}`: its {what} is on {got:?}, but must be on {expected:?}, where the tensor is")]
    OperandDevice {
        /// Name of the parameter.
        tensor: String,
        /// Which operand, for example "gradient".
        what: &'static str,
        /// Where the parameter is.
        expected: candle_core::DeviceLocation,
        /// Where the operand is.
        got: candle_core::DeviceLocation,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Params);
