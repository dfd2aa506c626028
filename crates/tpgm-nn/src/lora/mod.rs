//! LoRA (arXiv 2106.09685): low-rank updates beside frozen weights. Wrap the layers of your model as it is built:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Linear, VarBuilder, VarMap};
//! use tpgm_nn::lora::{LoraConfig, VarFactors};
//!
//! let config = LoraConfig { rank: 2, alpha: 4.0, targets: vec!["query".into()], ..Default::default() };
//! let (vars, base) = (VarMap::new(), VarBuilder::zeros(DType::F32, &Device::Cpu));
//! let factors = VarFactors::new(base, &vars);
//! let weight = Tensor::ones((3, 5), DType::F32, &Device::Cpu)?; // frozen
//! let mut layer = config.wrap("encoder.0.query", Linear::new(weight, None), &factors)?;
//! config.check_targets(&factors)?;
//! assert_eq!(vars.data().lock().unwrap()["encoder.0.query.lora_A.weight"].dims(), [2, 5]);
//!
//! let xs = Tensor::ones((1, 5), DType::F32, &Device::Cpu)?;
//! assert_eq!(layer.forward(&xs)?.to_vec2::<f32>()?, [[5.0; 3]]); // as its base until it is trained
//! layer.merge()?; // inference at the cost of the base layer
//! # Ok::<(), tpgm_nn::Error>(())
//! ```
//!
//! # Factors
//!
//! Names and shapes are PEFT's, for a weight of the shape in the second column. In files, `base_model.model.` comes before
//! the name.
//!
//! | layer | weight | A | B | names |
//! |---|---|---|---|---|
//! | [`LoraLinear`] | `[out, in]` | `[r, in]` | `[out, r]` | `<module>.lora_A.weight`, `<module>.lora_B.weight` |
//! | [`LoraConv2d`] | `[out, in/groups, kh, kw]` | `[r, in/groups, kh, kw]` | `[out, r, 1, 1]` | the same |
//! | [`LoraEmbedding`] | `[entries, width]` | `[r, entries]` | `[width, r]` | `<module>.lora_embedding_A`, `<module>.lora_embedding_B` |
//!
//! A convolution with groups departs from PEFT, whose factors have the shapes `[r, in, kh, kw]` and `[out, r/groups, 1, 1]`
//! and cannot be merged. Here A is shared by the groups; the update of the weight is `B A`, whatever the groups are. So an
//! adapter of PEFT with such a layer is refused for its shapes.
//!
//! # Gradients at the first step
//!
//! One factor of each pair starts at zero (B; of embeddings A), so the *other* one has a gradient of zeros at the first
//! step. It is there, and passes an audit that asks for missing gradients; an audit that also asks for zeros must allow
//! `*.lora_A.weight` and `*.lora_embedding_B` at the first step.

mod config;
mod factors;
mod kinds;
mod layer;
mod names;
mod peft;
mod peft_names;
mod peft_options;
#[cfg(test)]
mod tests;

pub use self::config::LoraConfig;
pub use self::factors::{Factors, VarFactors};
pub use self::layer::{Adaptable, Lora, LoraConv2d, LoraEmbedding, LoraLinear};
pub use self::names::module_of;
pub use self::peft::{
    Adapter, CONFIG, FILE_PREFIX, PICKLED_WEIGHTS, UnknownOption, WEIGHTS, adapter_weights,
};
