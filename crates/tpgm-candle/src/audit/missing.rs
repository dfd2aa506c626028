//! Missing gradients: which, and why.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use super::error::{Error, Result, SHOWN};
use super::loss_with;
use crate::params::{Param, Patterns};

/// A trainable tensor without a gradient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingGradient {
    /// Its name.
    pub name: String,
    /// Why.
    pub cause: Cause,
}

/// Why a tensor has no gradient. Tensors of a kind, whose names differ in numbers only, are judged together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The loss changes with the tensor, so something between them cuts the graph.
    Cut,
    /// The loss does not change with the tensor.
    Unused,
    /// Nobody has tried, or the loss differs from call to call.
    Unknown,
}

/// Every tensor to be trained, unless it is empty, must have a gradient, unless a pattern of `allow` lets it do without.
///
/// # Errors
///
/// [`Error::NoGradient`] with causes unknown, or [`Error::UnmatchedPattern`](crate::params::Error::UnmatchedPattern) for a pattern that matches no name.
pub(super) fn missing_gradients<S: AsRef<str>>(
    params: &[Param],
    grads: &GradStore,
    allow: &[S],
) -> Result<()> {
    let mut allowed = Patterns::new("allow");
    allow.iter().for_each(|pattern| allowed.push(pattern.as_ref()));
    allowed.check(params.iter().map(Param::name))?;
    let needs = |param: &&Param| param.var().elem_count() > 0 && !allowed.matches(param.name());
    let missing = params.iter().filter(needs).filter(|param| grads.get(param.var()).is_none());
    require_none_missing(missing.map(Param::name), params.len())
}

/// # Errors
///
/// [`Error::NoGradient`] with causes unknown if there is a name in `missing`.
pub(crate) fn require_none_missing<'a>(
    missing: impl Iterator<Item = &'a str>,
    trainable: usize,
) -> Result<()> {
    let missing: Vec<MissingGradient> =
        missing.map(|name| MissingGradient { name: name.to_owned(), cause: Cause::Unknown }).collect();
    match missing[..] {
        [] => Ok(()),
        _ => Err(Error::NoGradient { missing, trainable }),
    }
}

/// Finds causes by moving tensors of a kind and looking whether the loss changes.
pub(super) fn explain(
    error: Error,
    params: &[Param],
    value: f64,
    loss: &mut dyn FnMut() -> candle_core::Result<Tensor>,
) -> Error {
    let Error::NoGradient { mut missing, trainable } = error else { return error };
    // A diagnosis that fails is no reason to hide what it was about.
    if !matches!(loss_with(&[], loss), Ok(again) if again == value) {
        return Error::NoGradient { missing, trainable };
    }
    let kinds: Vec<Vec<String>> = kinds(&missing).into_values().map(owned).collect();
    for members in kinds {
        let moved: Result<Vec<_>> = params
            .iter()
            .filter(|param| members.iter().any(|name| name == param.name()))
            .map(|param| Ok((param, moved(param.var())?)))
            .collect();
        let cause = match moved.and_then(|moved| loss_with(&moved, loss)) {
            Ok(changed) if changed == value => Cause::Unused,
            // Also a loss that overflows has changed.
            Ok(_) | Err(Error::NonFiniteLoss { .. }) => Cause::Cut,
            Err(_) => Cause::Unknown,
        };
        missing.iter_mut().filter(|m| members.contains(&m.name)).for_each(|m| m.cause = cause);
    }
    Error::NoGradient { missing, trainable }
}

fn owned(names: Vec<&str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// Other values of the same size, which no normalization can hide: entries go up and down by up to a tenth in no
/// regular pattern.
fn moved(tensor: &Tensor) -> Result<Tensor> {
    let noise = (0..tensor.elem_count() as u32).map(|i| {
        let hash = (i ^ 0x5bd1).wrapping_mul(0x9e37_79b9);
        (f64::from(hash ^ (hash >> 15)) / f64::from(u32::MAX) - 0.5) as f32
    });
    let noise = Tensor::from_vec(noise.collect::<Vec<f32>>(), tensor.shape(), tensor.device())?;
    let scale = ((tensor.to_dtype(DType::F32)?.abs()? * 0.1)? + 0.02)?;
    Ok((tensor.to_dtype(DType::F32)? + (noise * scale)?)?.to_dtype(tensor.dtype())?)
}

/// Names grouped by what they are but for numbers: `layer.*.bias`.
fn kinds(missing: &[MissingGradient]) -> BTreeMap<String, Vec<&str>> {
    let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for MissingGradient { name, .. } in missing {
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let kind = name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>();
        kinds.entry(kind.join(".")).or_default().push(name);
    }
    kinds
}

/// The message of [`Error::NoGradient`].
pub(super) fn missing_gradients_text(missing: &[MissingGradient], trainable: usize) -> String {
    let mut text = format!("{} of {trainable} trainable tensors get no gradient", missing.len());
    for cause in [Cause::Cut, Cause::Unused, Cause::Unknown] {
        let members: Vec<MissingGradient> = missing.iter().filter(|m| m.cause == cause).cloned().collect();
        let kinds = kinds(&members);
        if kinds.is_empty() {
            continue;
        }
        text += &format!("\n{cause}:");
        for (kind, names) in kinds.iter().take(SHOWN) {
            match names[..] {
                [name] => text += &format!("\n  {name}"),
                _ => text += &format!("\n  {kind} ({} tensors)", names.len()),
            }
        }
        if kinds.len() > SHOWN {
            let more: usize = kinds.values().skip(SHOWN).map(Vec::len).sum();
            text += &format!("\n  and {more} more tensors");
        }
    }
    text
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CUT: &str = "candle's LayerNorm, RmsNorm, softmax_last_dim, rope and sdpa have no backward pass: use those \
                           of `tpgm_candle::nn`; `detach` cuts the graph too";
        const UNUSED: &str = "freeze them, or allow them by name";
        match self {
            Cause::Cut => write!(f, "the loss depends on these, but its graph is cut ({CUT})"),
            Cause::Unused => write!(f, "the loss does not depend on these ({UNUSED})"),
            Cause::Unknown => {
                write!(f, "either the graph is cut ({CUT}), or the loss does not use them ({UNUSED})")
            }
        }
    }
}
