//! The mathematics of robust fine-tuning by projection, on plain slices.

pub mod backend;
pub mod cpu;
pub mod element;
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

pub use backend::{Backend, StepReport, TensorIo, Variance};
pub use constraint::{
    Constraint, Coupling, Digrap, DigrapTest, FixedRadius, FixedScale, Ftp, FtpMemory, L2Sp, RADIUS_FLOOR,
    RadiusAdam, Spd, Tpgm,
};
pub use cpu::Cpu;
pub use element::{Buffer, DType, Element, Real, Slice, SliceMut};
pub use ema::Ema;
pub use engine::EngineOptions;
pub use error::{Error, Result};
pub use norm::{Norm, rows_of};
pub use optimizer::{Gradients, Optimizer, Projection, StepOptions};
pub use params::{AnchorKind, Group, ParamSet, ParamSetBuilder, Settings, TensorSpec};
pub use projector::Projector;
pub use rule::{AdamW, Decay, Rule, Sgd};
pub use scalars::TensorScalars;
pub use state::{Masters, Slot, Slots, StateDict};
