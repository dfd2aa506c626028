//! In which element type a model is trained: the option `--dtype`.

use candle_core::{DType, Result, Tensor};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// An element type of weights and activations.
///
/// In half precision the optimizer keeps the weights in f32 beside them (masters), so that small steps are not rounded away; norms,
/// softmax and losses compute in f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 4 bytes
    #[default]
    F32,
    /// 2 bytes with the range of f32
    Bf16,
    /// 2 bytes with a small range: the loss is scaled, so that small gradients do not vanish
    F16,
}

impl Precision {
    /// candle's name of it.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        }
    }

    /// By how much the loss is multiplied for the backward pass. The optimizer divides the gradients by it, in f32.
    pub fn loss_scale(self) -> f64 {
        if self == Precision::F16 { 1024.0 } else { 1.0 }
    }

    /// The loss to go backward from.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn scaled(self, loss: &Tensor) -> Result<Tensor> {
        match self.loss_scale() {
            1.0 => Ok(loss.clone()),
            scale => loss * scale,
        }
    }

    /// Whether this is what an example does without the option: such runs are written down as before there was one.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The name of a study in this type.
    pub fn study(self, name: &str) -> String {
        match self {
            Precision::F32 => name.to_owned(),
            Precision::Bf16 => format!("{name} in bf16"),
            Precision::F16 => format!("{name} in f16"),
        }
    }
}
