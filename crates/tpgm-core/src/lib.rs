//! The mathematics of robust fine-tuning by projection, on plain slices.

pub mod element;

mod constraint;
mod error;
mod norm;
mod params;
mod rule;

pub use constraint::{
    Constraint, Coupling, Digrap, DigrapTest, FixedRadius, FixedScale, Ftp, FtpMemory, L2Sp, RADIUS_FLOOR,
    RadiusAdam, Spd, Tpgm,
};
pub use element::{Buffer, DType, Element, Real, Slice, SliceMut};
pub use error::{Error, Result};
pub use norm::{Norm, rows_of};
pub use params::{AnchorKind, Group, ParamSet, ParamSetBuilder, Settings, TensorSpec};
pub use rule::{AdamW, Decay, Rule, Sgd};
