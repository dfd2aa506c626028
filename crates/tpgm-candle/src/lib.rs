//! Robust fine-tuning of candle models.

mod dtype;
mod error;
mod params;

pub use error::{Error, Result};
pub use params::{Anchor, AnchorData, Param, Params};
pub use tpgm_core as core;
