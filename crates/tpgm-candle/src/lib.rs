//! Robust fine-tuning of candle models.

mod audit;
pub mod checkpoint;
pub mod data;
mod dtype;
mod error;
pub mod lora;
pub mod nn;
mod optim;
mod params;
pub mod telemetry;
mod tpgm;
pub mod weight_space;

pub use audit::{Audit, AuditReport, Cause, MissingGradient, WrongGradient};
pub use checkpoint::{Checkpoint, Checkpointer, TrainState};
pub use data::DataOrder;
pub use error::{Error, Result};
pub use optim::{
    Anneal, AuditPolicy, Averaged, Ema, OptimizerBuilder, OptimizerConfig, RobustOptimizer, Schedule,
    StepInfo,
};
pub use params::{Anchor, AnchorData, Param, Params, Report};
pub use telemetry::{JsonlWriter, Telemetry, TensorBoardWriter};
pub use tpgm::{Every, PostHoc, Radii, Tpgm};
pub use tpgm_core as core;
pub use tpgm_core::{
    AdamW, Constraint, Digrap, FixedRadius, FixedScale, Ftp, Gradients, Group, L2Sp, Masters, Norm,
    Projection, Rule, Sgd, Spd, StateDict, TensorScalars, Tpgm as TpgmConfig,
};
