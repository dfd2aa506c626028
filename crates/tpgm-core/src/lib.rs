//! The mathematics of robust fine-tuning by projection, on plain slices.
//!
//! You need this crate when you fine-tune a pre-trained model, want it to keep what it knew, and have weights, gradients
//! and pre-trained values ("anchors") as slices: from a framework of yours, or from checkpoints. It takes the optimizer
//! step and bounds the displacement from the anchor, for all tensors in one fused pass. It computes no gradients and reads
//! no files.
//!
//! ```
//! use tpgm_core::{AdamW, Cpu, DType, Ftp, Optimizer, ParamSet, StepOptions, TensorIo};
//!
//! let set = ParamSet::builder().tensor("weight", [2, 2], DType::F32).build()?;
//! let anchor = [1.0f32, -2.0, 0.5, 0.25];
//! let mut weight = anchor;
//! let mut optimizer = Optimizer::new(Cpu::new(), &set, AdamW::default().lr(0.1), Ftp::default())?;
//! for _ in 0..5 {
//!     let grad = weight; // of the loss |W|^2 / 2
//!     let io = TensorIo::new(&mut weight).grad(&grad).anchor(&anchor);
//!     optimizer.step(&mut [io], &StepOptions::default())?;
//! }
//! let radius = optimizer.scalars()?[0].radius;
//! for (w, a) in weight.chunks(2).zip(anchor.chunks(2)) {
//!     let norm: f32 = w.iter().zip(a).map(|(w, a)| (w - a).abs()).sum();
//!     assert!(f64::from(norm) <= radius + 1e-6); // every row is within the learned radius
//! }
//! # Ok::<(), tpgm_core::Error>(())
//! ```
//!
//! # Map
//!
//! | you want | look at |
//! |---|---|
//! | to name tensors and give some of them other settings | [`ParamSet`], [`Group`] |
//! | to train | [`Optimizer`], a [`Rule`] ([`AdamW`], [`Sgd`]) and a [`Constraint`] |
//! | to learn TPGM's radii, during or after training | [`Projector`] |
//! | to save and resume | [`StateDict`], [`Optimizer::state`] |
//! | to average weights over time | [`Ema`] |
//! | to change gradients before a step | [`gradient`] |
//! | to merge models: WiSE-FT, soups, Model Stock, DaWin | [`weight_space`] |
//! | to train or keep few entries: SeleKT, SAFT | [`sparse`] |
//! | to know what a step costs | [`cpu`] |
//! | other memory than the host's | [`backend`], [`plan`] |
//!
//! Sets, rules and constraints are plain data; every fallible function returns [`Error`], which names the tensor or the
//! option, and has then changed nothing. The same input gives the same bits on any number of threads.
//!
//! # Features
//!
//! - `serde`: `Serialize` and `Deserialize` for rules, constraints, groups, and the options of steps, engines, [`sparse`] and
//!   [`weight_space`].
//! - `testing`: the f64 reference `oracle`, and `testing` with the conformance suite that any backend can be run through
//!   and the runner of golden cases.
//!
//! None is on by default.

pub mod backend;
pub mod cpu;
pub mod element;
pub mod gradient;
#[cfg(feature = "testing")]
pub mod oracle;
pub mod plan;
pub mod sparse;
#[cfg(feature = "testing")]
pub mod testing;
pub mod weight_space;

mod blocks;
mod constraint;
mod ema;
mod engine;
mod error;
mod norm;
mod optimizer;
mod params;
mod projector;
mod rule;
mod scalars;
mod state;
mod step;

pub use backend::{Backend, Blend, StepReport, TensorIo, Variance};
pub use backend::{Slot, Slots};
pub use constraint::{
    Constraint, Coupling, Digrap, DigrapTest, FixedRadius, FixedScale, Ftp, FtpMemory, L2Sp, Pull, PullScale,
    PullWeights, RADIUS_FLOOR, RadiusAdam, Spd, Tpgm,
};
pub use cpu::Cpu;
pub use element::{Buffer, DType, Element, Real, Slice, SliceMut};
pub use ema::Ema;
pub use engine::EngineOptions;
pub use error::{Error, Result};
pub use norm::{Norm, rows_of};
pub use optimizer::Optimizer;
pub use params::{AnchorKind, Group, ParamSet, ParamSetBuilder, Settings, TensorSpec};
pub use projector::Projector;
pub use rule::{AdamW, Decay, Rule, Sgd};
pub use scalars::TensorScalars;
pub use state::{Masters, StateDict};
pub use step::{Gradients, Projection, StepOptions, StepSums};

/// Runs the example of the README as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
