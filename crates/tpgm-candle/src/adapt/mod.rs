//! Adaptation at test time: without labels, on the samples that are to be predicted.
//!
//! | you want | use |
//! |---|---|
//! | to make predictions on the stream more certain, by its norms | [`Tent`] |
//! | the same with several gradients at a time, and weights that follow slowly (FSTTA) | [`FastWeights`], [`SlowWeights`] |
//! | weights between two models for every sample, or every cluster of samples (DaWin) | [`Dawin`](crate::weight_space::Dawin) |
//!
//! ```
//! use candle_core::{Device, Module, Tensor, Var};
//! use tpgm_candle::adapt::Tent;
//! use tpgm_candle::{AdamW, Constraint, Param, Params, nn};
//!
//! let device = Device::Cpu;
//! let (weight, bias) = (Var::new(&[1.0f32, 1.0, 1.0], &device)?, Var::new(&[0.0f32, 0.0, 0.0], &device)?);
//! let norm = nn::LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-5);
//! let params = Params::from_params([
//!     Param::anchored_here("norm.weight", weight)?,
//!     Param::anchored_here("norm.bias", bias)?,
//! ])?;
//! let mut tent = Tent::new(&params, AdamW::default().lr(1e-2), Constraint::None)?;
//! let stream = Tensor::new(&[[0.1f32, 0.5, 0.3], [0.9, 0.2, 0.4]], &device)?;
//! let mut entropies = Vec::new();
//! for _ in 0..10 {
//!     let logits = norm.forward(&stream)?; // predict from these
//!     entropies.push(tent.step(&logits)?);
//! }
//! assert!(entropies[9] < entropies[0]);
//! # Ok::<(), tpgm_candle::Error>(())
//! ```
//!
//! Batch norms usually take the statistics of the stream meanwhile: run the model with `train`, and its dropout off.

mod error;
mod fast;
mod norms;
mod slow;
mod tent;

pub use self::error::{Error, Result};
pub use self::fast::{FastInfo, FastOptions, FastWeights};
pub use self::norms::{norms, select};
pub use self::slow::{SlowOptions, SlowWeights};
pub use self::tent::Tent;
pub use tpgm_core::gradient::SlowDirection;
