//! The activation of a feed-forward block, as configurations name it.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::layers::{gelu, gelu_tanh, quick_gelu, relu};

/// The activation between the two halves of a feed-forward block, by Hugging Face's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The exact GELU.
    Gelu,
    /// Its tanh approximation.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// Its sigmoid approximation.
    QuickGelu,
    /// Rectified linear.
    Relu,
}

impl Activation {
    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Gelu => gelu(x),
            Activation::GeluNew => gelu_tanh(x),
            Activation::QuickGelu => quick_gelu(x),
            Activation::Relu => relu(x),
        }
    }
}
