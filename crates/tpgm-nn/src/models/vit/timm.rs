//! The `config.json` of timm's models, which names an architecture in place of sizes.

use serde_json::Value;

use super::VitConfig;
use crate::error::{Error, Result};
use crate::models::config::Entries;

/// Architectures that are supported, for messages.
pub(super) const SUPPORTED: [&str; 3] = ["vit_*_patch*", "deit_*_patch*", "deit3_*_patch*"];

/// The shape of an architecture such as `vit_base_patch16_224` or `vit_small_patch14_reg4_dinov2`; `None` for one that is not
/// supported.
fn of_architecture(name: &str) -> Option<VitConfig> {
    let mut parts = name.split('_');
    let family = parts.next().filter(|family| ["vit", "deit", "deit3"].contains(family))?;
    let size = parts.next()?;
    let patch_size = parts.next()?.strip_prefix("patch")?.parse().ok()?;
    let rest: Vec<&str> = parts.collect();
    let dinov2 = family == "vit" && rest.contains(&"dinov2");
    let mut config = match size {
        "tiny" => VitConfig::tiny_patch16_224(),
        "small" => VitConfig::small_patch16_224(),
        "base" => VitConfig::base_patch16_224(),
        "large" => VitConfig::large_patch16_224(),
        "giant" if dinov2 => VitConfig {
            hidden_size: 1536,
            num_hidden_layers: 40,
            num_attention_heads: 24,
            intermediate_size: 4096,
            use_swiglu_ffn: true,
            ..VitConfig::base_patch16_224()
        },
        _ => return None,
    };
    config.patch_size = patch_size;
    for part in rest {
        match (part, part.strip_prefix("reg").map(str::parse)) {
            ("dinov2", _) if dinov2 => config.image_size = 518,
            (_, Some(Ok(registers))) => config.num_register_tokens = registers,
            // Any other part is another model: `gap`, `clip`, `miil`, `18x2`, `rpn`.
            _ => config.image_size = part.parse().ok()?,
        }
    }
    Some(config)
}

/// The shape of timm's model.
///
/// # Errors
///
/// [`Error::ModelConfig`] for an option that changes what is computed, `None` for an architecture that is not supported.
pub(super) fn read(architecture: &str, entries: &Entries) -> Result<Option<VitConfig>> {
    let bad = |entry, problem: String| Err(Error::ModelConfig { entry, problem });
    let Some(mut config) = of_architecture(architecture) else { return Ok(None) };
    let weights = entries.get("pretrained_cfg");
    match entries.get("global_pool").and_then(Value::as_str).unwrap_or_default() {
        "" | "token" => {}
        pool => return bad("global_pool", format!("`{pool}` is not supported, only `token`")),
    }
    let mut side = weights.and_then(|weights| weights.get("input_size")?.get(2));
    for (name, value) in entries.get("model_args").and_then(Value::as_object).into_iter().flatten() {
        match name.as_str() {
            "img_size" => side = Some(value),
            // What a model made anew starts with, and what it does with images of other sizes.
            "init_values" | "dynamic_img_size" | "dynamic_img_pad" => {}
            _ => return bad("model_args", format!("`{name}` is not supported")),
        }
    }
    if let Some(side) = side {
        match side.as_u64().and_then(|side| usize::try_from(side).ok()) {
            Some(side) => config.image_size = side,
            None => return bad("input_size", format!("{side} is no number of pixels")),
        }
    }
    Ok(Some(config))
}
