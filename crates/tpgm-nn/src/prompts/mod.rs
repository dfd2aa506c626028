//! Prompts: vectors that are trained instead of, or beside, a model's weights.
//!
//! | you want | use |
//! |---|---|
//! | extra tokens of a vision transformer, in front of the first block, of all, or where they help most | [`VisualPrompts`] |
//! | to move tokens to other blocks while they are trained (PRO-VPT) | [`Relocation`] |
//! | a vector added to the features of all nodes of a graph, or of all tokens (GPF) | [`FeaturePrompt`] |
//! | one for each node, mixed from a few (GPF-plus) | [`FeaturePromptBasis`] |
//!
//! They are parameters like any others, so every constraint applies to them. From a `VarBuilder` they are new and free: declare
//! them with `Params::head` of `tpgm-candle`. From a [`Factors`](crate::lora::Factors), which `Params` is, they have the zero
//! anchor, as factors of LoRA have, and FTP, SPD, TPGM or a fixed radius bound how far they get from there.

mod allocation;
mod feature;
mod ppo;
mod relocation;
mod visual;

pub use self::allocation::{Allocation, Thompson};
pub use self::feature::{FeaturePrompt, FeaturePromptBasis};
pub use self::ppo::{Memory, Ppo, PpoOptions};
pub use self::relocation::{Move, Relocation};
pub use self::visual::{Placement, VisualPromptShape, VisualPrompts};
