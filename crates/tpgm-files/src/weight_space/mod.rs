//! Checkpoint files measured and merged after training.
//!
//! | you want | use |
//! |---|---|
//! | WiSE-FT, a uniform soup, Model Stock, a fixed-radius projection | [`merge_files`] |
//! | to know how far each tensor moved | [`distances`] |
//!
//! The mathematics is `tpgm-core`'s ([`tpgm_core::weight_space`]). Merged weights need running statistics of their own: after a merge
//! of a model with BatchNorm, estimate them again.

mod distance;
mod error;
mod finite;
mod inputs;
mod integers;
mod merge_files;
mod norms;
mod plan;
mod quantized;
mod rename;
mod report;
mod select;

pub use self::distance::{DistanceOptions, Distances, TensorDistance, distances, distances_with};
pub use self::error::{Error, Result};
pub use self::finite::non_finite;
pub use self::merge_files::{merge_files, merge_files_with};
pub use self::plan::{FilePass, MergeMethod, MergePlan, MergedTensor};
pub use self::quantized::refuse_quantized;
pub use self::rename::{Rename, Renames};
pub use self::report::{LeftOut, MergeReport, Why};
pub use self::select::matching;
