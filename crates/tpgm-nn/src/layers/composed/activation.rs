//! Activations, composed of candle's operations.

use candle_core::{Result, Tensor};

use super::widened;
use crate::layers::activation::QUICK;

/// [`gelu`](crate::gelu).
///
/// # Errors
///
/// If candle fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    widened(x)?.gelu_erf()?.to_dtype(x.dtype())
}

/// [`gelu_tanh`](crate::gelu_tanh).
///
/// # Errors
///
/// If candle fails.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    widened(x)?.gelu()?.to_dtype(x.dtype())
}

/// [`quick_gelu`](crate::quick_gelu).
///
/// # Errors
///
/// If candle fails.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    let wide = widened(x)?;
    (&wide / ((&wide * -QUICK)?.exp()? + 1.0)?)?.to_dtype(x.dtype())
}

/// [`silu`](crate::silu).
///
/// # Errors
///
/// If candle fails.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    widened(x)?.silu()?.to_dtype(x.dtype())
}

/// [`relu`](crate::relu).
///
/// # Errors
///
/// If candle fails.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.relu()
}

/// [`relu6`](crate::relu6). On a bound of its inner part the gradient is half of what comes in.
///
/// # Errors
///
/// If candle fails.
pub fn relu6(x: &Tensor) -> Result<Tensor> {
    x.clamp(0f64, 6f64)
}

/// [`sigmoid`](crate::sigmoid).
///
/// # Errors
///
/// If candle fails.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::sigmoid(&widened(x)?)?.to_dtype(x.dtype())
}

/// [`hard_sigmoid`](crate::hard_sigmoid). On a bound of its inner part the gradient is half of what comes in.
///
/// # Errors
///
/// If candle fails.
pub fn hard_sigmoid(x: &Tensor) -> Result<Tensor> {
    ((widened(x)? + 3.0)?.clamp(0f64, 6f64)? / 6.0)?.to_dtype(x.dtype())
}

/// [`hard_swish`](crate::hard_swish). On a bound of its inner part the gradient is half of what comes in.
///
/// # Errors
///
/// If candle fails.
pub fn hard_swish(x: &Tensor) -> Result<Tensor> {
    let wide = widened(x)?;
    (&wide * ((&wide + 3.0)?.clamp(0f64, 6f64)? / 6.0)?)?.to_dtype(x.dtype())
}
