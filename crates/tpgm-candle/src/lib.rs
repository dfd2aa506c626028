//! Robust fine-tuning of candle models.
//!
//! You need this crate when you fine-tune a pre-trained candle model and want it to keep what it knew. It loads the
//! checkpoint with its values kept as *anchors*, finds out which parameters candle gives no gradient, takes the optimizer
//! steps of `tpgm-core` on candle's variables in place, and saves a run so that it goes on with the same bits.
//!
//! ```no_run
//! use candle_core::{Device, Module, Tensor};
//! use tpgm_candle::{AdamW, Ftp, Group, Params, RobustOptimizer, nn};
//! # fn batch() -> candle_core::Result<(Tensor, Tensor)> { unimplemented!() }
//! let params = Params::open("pretrained.safetensors", &Device::Cpu)?
//!     .head("head.*") // not in the checkpoint: made anew, no anchor
//!     .group(Group::new("head.*").lr(1e-2));
//! let vb = params.var_builder();
//! let (encoder, head) = (nn::linear(784, 128, vb.pp("encoder"))?, nn::linear(128, 10, vb.pp("head"))?);
//! let loss = || {
//!     let (images, labels) = batch()?;
//!     nn::cross_entropy(&head.forward(&nn::gelu(&encoder.forward(&images)?)?)?, &labels)
//! };
//! params.audit(loss)?; // does every parameter get a gradient?
//! let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(1e-3), Ftp::default())?;
//! for _ in 0..1000 {
//!     optimizer.backward_step(&loss()?)?;
//! }
//! # Ok::<(), tpgm_candle::Error>(())
//! ```
//!
//! # Map
//!
//! | you want | look at |
//! |---|---|
//! | to load a checkpoint into a model | [`Params`] |
//! | to know which parameters get no gradient, or a wrong one | [`Audit`] |
//! | layers that have a gradient | [`nn`] |
//! | a trainable BERT, ViT, ResNet, EfficientNet, MobileNet or CLIP | [`models`] |
//! | to train | [`RobustOptimizer`], [`Schedule`], [`Ema`] |
//! | to learn TPGM's radii on held-out data | [`Tpgm`] |
//! | a frozen or averaged teacher to distill from | [`teacher`] |
//! | to train on several devices | [`distributed`] |
//! | to train low-rank factors | [`lora`] |
//! | to adapt a model to unlabelled samples | [`adapt`] |
//! | to merge, measure or project checkpoints | [`weight_space`] |
//! | to save and resume | [`checkpoint`], [`DataOrder`] |
//! | to search learning rates and weights of losses | `search`, with feature `search` |
//! | to watch radii and ratios | [`telemetry`] |
//!
//! # Devices
//!
//! Everything runs on the CPU. With feature `cuda` parameters may be on an NVIDIA GPU (`Device::new_cuda`): steps, averages,
//! interpolations and projections then run there, in candle's own memory and on candle's own stream, in one or two launches
//! for all tensors. Anchors are copied to the GPU once. Work with a model on one thread: candle's default device has a
//! stream per thread (see [`RobustOptimizer`]). [`keep_freed_memory`] spares candle getting its memory anew in every step.
//! With feature `nccl`, several GPUs train one model. With feature `mpi`, the processes that `mpirun` started do.

pub mod adapt;
pub mod audit;
pub mod checkpoint;
pub mod data;
pub mod distributed;
pub mod engine;
mod error;
pub mod files;
pub mod lora;
pub mod memory;
pub mod optim;
pub mod params;
mod room;
#[cfg(feature = "search")]
pub mod search;
pub mod teacher;
pub mod telemetry;
pub mod weight_space;

pub use audit::{Audit, AuditReport, Cause, MissingGradient, WrongGradient};
pub use checkpoint::{Checkpoint, Checkpointer, TrainState};
pub use data::DataOrder;
pub use error::{Error, Result};
pub use files::AnchorData;
pub use memory::keep_freed_memory;
pub use optim::{
    Anneal, AuditPolicy, Averaged, Ema, Every, OptimizerBuilder, OptimizerConfig, PostHoc, Radii,
    RobustOptimizer, Schedule, StepInfo, Tpgm,
};
pub use params::{Anchor, Param, Params, Report};
pub use telemetry::{JsonlWriter, Telemetry, TensorBoardWriter};
pub use tpgm_core as core;
pub use tpgm_core::{
    AdamW, Constraint, Digrap, FixedRadius, FixedScale, Ftp, Gradients, Group, L2Sp, Masters, Norm,
    Projection, Pull, PullScale, PullWeights, Rule, Sgd, Spd, StateDict, TensorScalars, Tpgm as TpgmConfig,
};
#[cfg(feature = "cuda")]
pub use tpgm_cuda::Reports;
pub use tpgm_nn as nn;
pub use tpgm_nn::models;

/// Runs the example of the README as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
