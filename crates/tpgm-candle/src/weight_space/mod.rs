//! Merging models after training: over checkpoint files, over values in memory, and over a live model.
//!
//! | you have | you want | use |
//! |---|---|---|
//! | checkpoint files, also larger than memory | WiSE-FT, a uniform soup, Model Stock, a fixed-radius projection | [`merge_files`] |
//! | two checkpoint files | to know how far each tensor moved | [`distances`] |
//! | values by name | WiSE-FT, soups, Model Stock | [`wise_tensors`], [`uniform_soup`], [`greedy_soup`], [`model_stock`] |
//! | a fine-tuned model with its anchors | to evaluate it between the two | [`Interpolation`], [`wise`] |
//! | the same, and unlabelled samples | weights for each of them (DaWin) | [`Dawin`] |
//!
//! The mathematics is `tpgm-core`'s ([`tpgm_core::weight_space`]). Merged weights need running statistics of their own:
//! after a merge of a model with BatchNorm, estimate them again. Radii that are learned between two checkpoints (TPGM post
//! hoc) need gradients, so they are the TPGM trainer's business.

mod average_updates;
mod dawin;
mod distance;
mod error;
mod finite;
mod inputs;
mod integers;
mod interpolate;
mod merge_files;
mod norms;
mod plan;
mod quantized;
mod rename;
mod report;
mod select;
mod tensors;

pub use self::average_updates::{average_updates, ensemble};
pub use self::dawin::{Dawin, DawinCluster, DawinOutput};
pub use self::distance::{DistanceOptions, Distances, TensorDistance, distances, distances_with};
pub use self::error::{Error, Result};
pub(crate) use self::finite::non_finite;
pub use self::interpolate::{Interpolation, wise};
pub use self::merge_files::{merge_files, merge_files_with};
pub use self::plan::{FilePass, MergeMethod, MergePlan, MergedTensor};
pub use self::rename::Rename;
pub use self::report::{LeftOut, MergeReport, Why};
pub use self::tensors::{TensorSoup, Tensors, greedy_soup, model_stock, uniform_soup, wise_tensors};
