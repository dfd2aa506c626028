//! The activation of a feed-forward block, as configurations name it.

use serde::{Deserialize, Serialize};

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
    pub(super) fn layer(self) -> crate::layers::Activation {
        match self {
            Activation::Gelu => crate::layers::Activation::Gelu,
            Activation::GeluNew => crate::layers::Activation::GeluTanh,
            Activation::QuickGelu => crate::layers::Activation::QuickGelu,
            Activation::Relu => crate::layers::Activation::Relu,
        }
    }
}
