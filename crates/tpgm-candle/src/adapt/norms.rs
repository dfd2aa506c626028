//! Which parameters are adapted.

use wildmatch::WildMatch;

use super::error::{Error, Result};
use crate::params::Params;

/// How norms are called in the checkpoints of [`models`](crate::models): `layernorm_before`, `LayerNorm`, `ln_1`, `bn1`,
/// torchvision's `downsample.1`, `norm1`, `input_layernorm`.
const NORMS: [&str; 5] = ["*norm*", "*Norm*", "*ln_*", "*bn?.*", "*downsample.1.*"];

/// The weights and biases of a model's norms, by the names that the usual checkpoints have: parameters of one dimension. They
/// share the model's variables and anchors; groups are left behind.
///
/// # Errors
///
/// [`Error::NoNorms`].
pub fn norms(params: &Params) -> Result<Params> {
    let patterns = NORMS.map(WildMatch::new);
    let all = params.all();
    let chosen: Vec<_> = all
        .iter()
        .filter(|param| {
            param.var().rank() == 1 && patterns.iter().any(|pattern| pattern.matches(param.name()))
        })
        .cloned()
        .collect();
    if chosen.is_empty() {
        let first = all.first().map(|param| param.name().to_owned()).unwrap_or_default();
        return Err(Error::NoNorms { params: all.len(), first });
    }
    Ok(Params::from_params(chosen)?)
}

/// The parameters that patterns select; `*` stands for any text. They share the model's variables and anchors; groups are left
/// behind.
///
/// # Errors
///
/// [`Error::UnmatchedPattern`].
pub fn select(params: &Params, patterns: &[&str]) -> Result<Params> {
    let all = params.all();
    let matchers: Vec<_> = patterns.iter().map(|pattern| WildMatch::new(pattern)).collect();
    for (pattern, matcher) in patterns.iter().zip(&matchers) {
        if !all.iter().any(|param| matcher.matches(param.name())) {
            let first = all.first().map(|param| param.name().to_owned()).unwrap_or_default();
            return Err(Error::UnmatchedPattern { pattern: (*pattern).to_owned(), params: all.len(), first });
        }
    }
    let chosen = all.into_iter().filter(|param| matchers.iter().any(|matcher| matcher.matches(param.name())));
    Ok(Params::from_params(chosen)?)
}
