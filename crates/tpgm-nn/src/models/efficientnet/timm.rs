//! The `config.json` of timm's models, which names an architecture in place of sizes.

use serde_json::Value;

use super::EfficientNetConfig;
use crate::error::{Error, Result};
use crate::models::config::Entries;

/// Architectures that are supported, for messages.
pub(super) const SUPPORTED: [&str; 5] = [
    "[tf_]efficientnet_lite0 to 4",
    "[tf_]efficientnet_b0",
    "mobilenetv2_100",
    "[tf_]mobilenetv3_small_100",
    "[tf_]mobilenetv3_large_100",
];

/// The shape of an architecture; `None` for one that is not supported.
fn of_architecture(name: &str) -> Option<EfficientNetConfig> {
    let (name, tensorflow) = name.strip_prefix("tf_").map_or((name, false), |name| (name, true));
    let config = match name {
        "efficientnet_lite0" => EfficientNetConfig::lite0(),
        "efficientnet_lite1" => EfficientNetConfig::lite1(),
        "efficientnet_lite2" => EfficientNetConfig::lite2(),
        "efficientnet_lite3" => EfficientNetConfig::lite3(),
        "efficientnet_lite4" => EfficientNetConfig::lite4(),
        "efficientnet_b0" => EfficientNetConfig::b0(),
        "mobilenetv2_100" if !tensorflow => EfficientNetConfig::mobilenet_v2(),
        "mobilenetv3_small_100" => EfficientNetConfig::mobilenet_v3_small(),
        "mobilenetv3_large_100" => EfficientNetConfig::mobilenet_v3_large(),
        _ => return None,
    };
    Some(if tensorflow { config.tensorflow() } else { config.pytorch() })
}

/// The shape of timm's model, `None` for an architecture that is not supported.
///
/// # Errors
///
/// [`Error::ModelConfig`] for an option that changes what is computed.
pub(super) fn read(architecture: &str, entries: &Entries) -> Result<Option<EfficientNetConfig>> {
    let Some(config) = of_architecture(architecture) else { return Ok(None) };
    match entries.get("global_pool").and_then(Value::as_str).unwrap_or_default() {
        "" | "avg" => {}
        pool => {
            let problem = format!("`{pool}` is not supported, only `avg`");
            return Err(Error::ModelConfig { entry: "global_pool", problem });
        }
    }
    match entries.get("model_args").and_then(Value::as_object).and_then(|args| args.keys().next()) {
        Some(name) => {
            Err(Error::ModelConfig { entry: "model_args", problem: format!("`{name}` is not supported") })
        }
        None => Ok(Some(config)),
    }
}
