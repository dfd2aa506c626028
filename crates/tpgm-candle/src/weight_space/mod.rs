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
//! The mathematics is `tpgm-core`'s ([`tpgm_core::weight_space`]), and what works on files is `tpgm-files`', as the program `tpgm` has it.
//! Merged weights need running statistics of their own:
//! after a merge of a model with BatchNorm, estimate them again. Radii that are learned between two checkpoints (TPGM post
//! hoc) need gradients, so they are the TPGM trainer's business.

mod average_updates;
mod dawin;
mod error;
mod interpolate;
mod tensors;

/// Models that do not fit together.
pub use tpgm_files::weight_space::Error as MergeError;
pub(crate) use tpgm_files::weight_space::non_finite;
pub use tpgm_files::weight_space::{
    DistanceOptions, Distances, FilePass, LeftOut, MergeMethod, MergePlan, MergeReport, MergedTensor, Rename,
    TensorDistance, Why, distances, distances_with, merge_files, merge_files_with,
};

pub use self::average_updates::{average_updates, ensemble};
pub use self::dawin::{Dawin, DawinCluster, DawinOutput};
pub use self::error::{Error, Result};
pub use self::interpolate::{Interpolation, wise};
pub use self::tensors::{TensorSoup, Tensors, greedy_soup, model_stock, uniform_soup, wise_tensors};
