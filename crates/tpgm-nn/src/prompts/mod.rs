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
//! them with `Params::head` of `tpgm-candle`. From a [`Factors`], which `Params` is, they have the zero
//! anchor, as factors of LoRA have, and FTP, SPD, TPGM or a fixed radius bound how far they get from there.

mod allocation;
mod feature;
mod ppo;
mod relocation;
mod visual;

use candle_core::{Tensor, Var};

use crate::dtype::cast;
use crate::error::Result;
use crate::lora::Factors;
use crate::random::SplitMix64;

pub use self::allocation::{Allocation, Thompson};
pub use self::feature::{FeaturePrompt, FeaturePromptBasis};
pub use self::ppo::{Memory, Ppo, PpoOptions};
pub use self::relocation::{Move, Relocation};
pub use self::visual::{Placement, VisualPromptShape, VisualPrompts};

/// A new parameter for `factors`, uniform within `bound` of 0, of the type and on the device of the base weights. Its values
/// depend on `seed` and the name alone.
fn insert_uniform<F: Factors>(
    factors: &F,
    name: String,
    shape: &[usize],
    bound: f64,
    seed: u64,
) -> Result<Tensor, F::Error> {
    let mut random = SplitMix64::named(seed, &name);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| (bound * (2.0 * random.uniform() - 1.0)) as f32).collect();
    let vb = factors.var_builder();
    let var = Var::from_tensor(&cast(&Tensor::from_vec(values, shape, vb.device())?, vb.dtype())?)?;
    let tensor = var.as_tensor().clone();
    factors.insert(name, var)?;
    Ok(tensor)
}

/// The name of a parameter of a module.
fn named(module: &str, parameter: &str) -> String {
    if module.is_empty() { parameter.to_owned() } else { format!("{module}.{parameter}") }
}
