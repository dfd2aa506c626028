//! LoRA ([`tpgm_nn::lora`]) with factors that are constrained around zero, and adapters in PEFT's files.
//!
//! [`Params`] is a [`Factors`]: it gives a factor the zero anchor. FTP, SPD, TPGM or a fixed radius then bound how far it gets
//! from zero, and so how far the adapted model gets from the pre-trained one.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::Linear;
//! use tpgm_candle::Params;
//! use tpgm_candle::lora::LoraConfig;
//!
//! let config = LoraConfig { rank: 2, alpha: 4.0, targets: vec!["query".into()], ..Default::default() };
//! let params = Params::default();
//! let weight = Tensor::ones((3, 5), DType::F32, &Device::Cpu)?; // frozen
//! let mut layer = config.wrap("encoder.0.query", Linear::new(weight, None), &params)?;
//! config.check_targets(&params)?;
//! assert_eq!(params.get("encoder.0.query.lora_A.weight")?.var().dims(), [2, 5]);
//!
//! let xs = Tensor::ones((1, 5), DType::F32, &Device::Cpu)?;
//! assert_eq!(layer.forward(&xs)?.to_vec2::<f32>()?, [[5.0; 3]]); // as its base until it is trained
//! layer.merge()?; // inference at the cost of the base layer
//! # Ok::<(), tpgm_candle::Error>(())
//! ```
//!
//! FTP's first step returns every tensor to its anchor, as published: here both factors to nearly zero, where the gradient of
//! each is as small as the other. SPD has no such step.

mod adapter;
mod error;

use candle_core::Var;
use candle_nn::VarBuilder;
pub use tpgm_nn::lora::{
    Adaptable, Adapter, Factors, Lora, LoraConfig, LoraConv2d, LoraEmbedding, LoraLinear, UnknownOption,
    VarFactors,
};

pub use self::adapter::{load_adapter, save_adapter};
pub use self::error::{Error, Result};
use crate::params::{Anchor, Param, Params};

/// Factors have the zero anchor: constraints bound them around zero.
impl Factors for Params {
    type Error = Error;

    fn var_builder(&self) -> VarBuilder<'static> {
        Params::var_builder(self)
    }

    /// # Errors
    ///
    /// [`Error::DuplicateParam`](crate::params::Error::DuplicateParam) if the module is adapted already.
    fn insert(&self, name: String, factor: Var) -> Result<()> {
        Ok(Params::insert(self, Param::new(name, factor, Anchor::Zero))?)
    }

    fn names(&self) -> Vec<String> {
        self.all().iter().map(|param| param.name().to_owned()).collect()
    }
}
