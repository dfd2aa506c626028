//! Checkpoints whose weights are quantized, told by names and element types.

use std::collections::HashSet;

use crate::Weights;

use super::error::{Error, Result};

/// Parts of names, between dots, that only quantized checkpoints have: bitsandbytes, GPTQ, AWQ, compressed-tensors, HQQ,
/// quanto, PyTorch.
const MARKS: [&str; 17] = [
    "SCB",
    "absmax",
    "nested_absmax",
    "quant_map",
    "nested_quant_map",
    "quant_state",
    "weight_format",
    "qweight",
    "qzeros",
    "weight_packed",
    "weight_zero_point",
    "weight_scale_inv",
    "weight_quantized",
    "W_q",
    "_packed_params",
    "_data",
    "_scale",
];

/// Makes sure that a checkpoint is not quantized. Tensors of which `asked` is true are not looked at.
///
/// # Errors
///
/// [`Error::Quantized`].
pub fn refuse_quantized(weights: &Weights, asked: impl Fn(&str) -> bool) -> Result<()> {
    // Modules with a matrix of few bits.
    let narrow =
        |name: &&str| weights.get(name).is_some_and(|entry| entry.is_narrow() && entry.shape.len() > 1);
    let squeezed: HashSet<&str> = weights.names().filter(narrow).map(module).collect();
    for name in weights.names().filter(|name| !asked(name)) {
        let Some(entry) = weights.get(name) else { continue };
        let last = name.rsplit('.').next().unwrap_or(name);
        let is_scale = ["scale", "zero_point", "codebook"].iter().any(|word| last.contains(word));
        let sign = if name.split('.').any(|part| MARKS.contains(&part) || part.starts_with("bitsandbytes__"))
        {
            "is what quantization adds"
        } else if entry.float().is_none() && entry.shape.len() > 1 && last.ends_with("weight") {
            "is a weight of integers or of 8 bits"
        } else if is_scale && squeezed.contains(module(name)) {
            "is the scale of numbers of 8 bits beside it"
        } else {
            continue;
        };
        return Err(Error::Quantized { tensor: name.to_owned(), model: weights.place(), sign });
    }
    Ok(())
}

/// What a name says before its last dot.
fn module(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}
