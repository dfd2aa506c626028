//! What to adapt, and how.

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::factors::Factors;
use super::layer::{Adaptable, Lora};
use super::names::module_of;
use crate::error::{Error, Result};

/// The options of LoRA (arXiv 2106.09685). Defaults are PEFT's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// Rank `r` of the update, at least 1. Default 8.
    pub rank: usize,
    /// The update is scaled by `alpha / r`. Default 8.
    pub alpha: f64,
    /// Probability, in `[0, 1)`, with which an element of the adapter's input is dropped in training. Default 0. The input
    /// of an embedding is not dropped, as in PEFT.
    pub dropout: f64,
    /// Scales by `alpha / sqrt(r)` instead (rsLoRA, arXiv 2312.03732). Default false.
    pub rslora: bool,
    /// The modules that are adapted: a whole name, its end after a dot (`query` is `encoder.0.attention.query`), or a
    /// pattern with `*` and `?` over the whole name.
    pub targets: Vec<String>,
    /// Modules that are trained whole and belong to the adapter, such as a new classifier: a whole name, or its end after a
    /// dot. Their tensors are those of the model whose names begin with the module's. Default none.
    pub modules_to_save: Vec<String>,
    /// Seed of the initial factors and of dropout. Default 0.
    pub seed: u64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            targets: Vec::new(),
            modules_to_save: Vec::new(),
            seed: 0,
        }
    }
}

impl LoraConfig {
    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] with the name of the option.
    pub fn validate(&self) -> Result<()> {
        let check = |option, value, requirement, fits| {
            if fits { Ok(()) } else { Err(tpgm_core::Error::InvalidOption { option, value, requirement }) }
        };
        check("LoraConfig::rank", self.rank as f64, "at least 1", self.rank >= 1)?;
        check("LoraConfig::alpha", self.alpha, "a number", self.alpha.is_finite())?;
        Ok(check("LoraConfig::dropout", self.dropout, "in [0, 1)", (0.0..1.0).contains(&self.dropout))?)
    }

    /// What the product of the factors is multiplied by.
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// True if the module of this name is adapted.
    pub fn is_target(&self, module: &str) -> bool {
        self.targets.iter().any(|target| is_match(target, module))
    }

    /// True if the tensor of this name belongs to one of [`LoraConfig::modules_to_save`], itself or within a module of it.
    pub fn is_saved(&self, tensor: &str) -> bool {
        let modules = tensor.match_indices('.').map(|(dot, _)| &tensor[..dot]);
        modules.into_iter().any(|module| self.modules_to_save.iter().any(|saved| is_end(saved, module)))
    }

    /// Makes sure that every target has adapted some module. Call it when the model is built.
    ///
    /// # Errors
    ///
    /// [`Error::LoraTarget`] for a target that has not.
    pub fn check_targets<F: Factors>(&self, factors: &F) -> Result<(), F::Error> {
        let names = factors.names();
        let modules: Vec<&str> = names.iter().filter_map(|name| module_of(name)).collect();
        match self.targets.iter().find(|target| !modules.iter().any(|module| is_match(target, module))) {
            Some(target) => {
                Err(Error::LoraTarget { target: target.clone(), adapted: modules.len() / 2 }.into())
            }
            None => Ok(()),
        }
    }

    /// Adapts the layer `base`, the module called `name`, if that is a target.
    ///
    /// # Errors
    ///
    /// As [`Lora::new`].
    pub fn wrap<L: Adaptable, F: Factors>(
        &self,
        name: &str,
        base: L,
        factors: &F,
    ) -> Result<Lora<L>, F::Error> {
        if self.is_target(name) { Lora::new(base, name, self, factors) } else { Ok(Lora::plain(base)) }
    }
}

/// True for targets that are patterns, which PEFT does not know.
pub(super) fn is_pattern(target: &str) -> bool {
    target.contains(['*', '?'])
}

fn is_match(target: &str, module: &str) -> bool {
    if is_pattern(target) {
        return WildMatch::new(target).matches(module);
    }
    is_end(target, module)
}

/// True for a whole name, and for its end after a dot.
fn is_end(end: &str, module: &str) -> bool {
    match module.strip_suffix(end) {
        Some(before) => before.is_empty() || before.ends_with('.'),
        None => false,
    }
}
