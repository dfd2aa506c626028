//! The options of an adapter as PEFT writes them: `adapter_config.json`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{LoraConfig, is_pattern};
use super::names::module_of;
use crate::error::{Error, Result};

/// What PEFT puts before the names of modules in the files of an adapter.
pub const FILE_PREFIX: &str = "base_model.model.";

/// The file with the factors of an adapter, in its folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The file with the options of an adapter, in its folder.
pub const CONFIG: &str = "adapter_config.json";

impl LoraConfig {
    /// The options of an adapter in the folder `dir`. Where modules were chosen by a regular expression, by exclusion or by
    /// the number of their layer, the targets are the names of the adapted modules in the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`], [`Error::AdapterOption`] for an option that changes what an adapter computes and
    /// is not supported, or an option outside its range.
    pub fn from_adapter(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(CONFIG);
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let bad = |problem: String| Error::BadFile { path: path.clone(), problem };
        let options: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| bad(format!("not the options of an adapter: {e}")))?;
        if let Some((option, value)) = options.iter().find(|(option, value)| !is_supported(option, value)) {
            let value = value.to_string();
            return Err(Error::AdapterOption { path: path.clone(), option: option.clone(), value });
        }
        let number = |option: &str, default: f64| match options.get(option) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| bad(format!("`{option}` is {value}, not a number"))),
        };
        let default = Self::default();
        // What else chooses modules has no counterpart here, but the file tells which modules were chosen.
        let by_name =
            ["exclude_modules", "layers_to_transform"].iter().all(|o| options.get(*o).is_none_or(is_off));
        let targets = match options.get("target_modules") {
            Some(Value::Array(targets)) if by_name => targets
                .iter()
                .map(|target| target.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| bad("`target_modules` holds something else than names".to_owned()))?,
            _ => adapted_modules(&dir.join(WEIGHTS))?,
        };
        let rank = options.get("r").map_or(Some(default.rank as u64), Value::as_u64);
        let rank = rank.and_then(|rank| usize::try_from(rank).ok());
        let config = Self {
            rank: rank.ok_or_else(|| bad("`r` is not a whole number".to_owned()))?,
            alpha: number("lora_alpha", default.alpha)?,
            dropout: number("lora_dropout", default.dropout)?,
            rslora: options.get("use_rslora").and_then(Value::as_bool).unwrap_or(default.rslora),
            targets,
            seed: default.seed,
        };
        config.validate()?;
        Ok(config)
    }

    /// The contents of `adapter_config.json` for these options and the parameters of a model, by name: where a target is a
    /// pattern, the modules that it chose.
    pub fn to_adapter<'a>(&self, params: impl IntoIterator<Item = &'a str>) -> Value {
        let modules: BTreeSet<&str> = params.into_iter().filter_map(module_of).collect();
        // PEFT takes names and their ends, but no patterns: write down what the patterns chose.
        let targets: Vec<&str> = match self.targets.iter().any(|target| is_pattern(target)) {
            true => modules.into_iter().collect(),
            false => self.targets.iter().map(String::as_str).collect(),
        };
        json!({
            "peft_type": "LORA",
            "task_type": null,
            "base_model_name_or_path": null,
            "inference_mode": true,
            "r": self.rank,
            // PEFT writes whole numbers without a fraction.
            "lora_alpha": if self.alpha.fract() == 0.0 { json!(self.alpha as i64) } else { json!(self.alpha) },
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "target_modules": targets,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
        })
    }
}

/// The modules that the factors of a file belong to. Reads its header only.
fn adapted_modules(path: &Path) -> Result<Vec<String>> {
    let bad = |problem: &dyn std::fmt::Display| Error::file(path, "a safetensors file", problem);
    let mut file = File::open(path).map_err(Error::io(path))?;
    let len = file.metadata().map_err(Error::io(path))?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(Error::io(path))?;
    let header = u64::from_le_bytes(size);
    if header > len - 8 {
        return Err(bad(&format!("its header says {header} bytes, the file has {len}")));
    }
    let mut bytes = Vec::new();
    file.take(header).read_to_end(&mut bytes).map_err(Error::io(path))?;
    let tensors: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|problem| bad(&problem))?;
    let modules: BTreeSet<&str> =
        tensors.keys().filter_map(|key| module_of(key.strip_prefix(FILE_PREFIX)?)).collect();
    Ok(modules.into_iter().map(str::to_owned).collect())
}

/// False for options of PEFT that make an adapter something else than this module computes.
fn is_supported(option: &str, value: &Value) -> bool {
    match option {
        "peft_type" => value == "LORA",
        "bias" => value.is_null() || value == "none",
        // These change the base weights as well.
        "init_lora_weights" => {
            let base_changing = ["pissa", "olora", "corda", "loftq", "lora_ga"];
            value.as_str().is_none_or(|init| !base_changing.iter().any(|prefix| init.starts_with(prefix)))
        }
        "use_dora"
        | "lora_bias"
        | "fan_in_fan_out"
        | "use_qalora"
        | "use_bdlora"
        | "rank_pattern"
        | "alpha_pattern"
        | "modules_to_save"
        | "layer_replication"
        | "target_parameters"
        | "trainable_token_indices"
        | "arrow_config"
        | "kasa_config"
        | "monteclora_config"
        | "alora_invocation_tokens" => is_off(value),
        _ => true,
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn modules_of_a_file_are_read_from_its_header_and_damaged_headers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG), r#"{"target_modules": ".*q"}"#).unwrap();
        let weights = folder.path().join(WEIGHTS);
        let factor = Tensor::zeros((2, 5), DType::F32, &Device::Cpu).unwrap();
        let names = ["b.q.lora_A.weight", "b.q.lora_B.weight", "a.q.lora_A.weight"];
        let tensors: HashMap<_, _> =
            names.iter().map(|name| (format!("{FILE_PREFIX}{name}"), factor.clone())).collect();
        candle_core::safetensors::save(&tensors, &weights).unwrap();
        assert_eq!(LoraConfig::from_adapter(folder.path()).unwrap().targets, ["a.q", "b.q"]);

        let whole = fs::read(&weights).unwrap();
        let too_long = [&u64::MAX.to_le_bytes(), &whole[8..]].concat();
        for (bytes, part) in [
            (&whole[..5], "failed to fill"),
            (&whole[..40], "its header says"),
            (&too_long, "its header says"),
            (&[&[2, 0, 0, 0, 0, 0, 0, 0], b"[]".as_slice()].concat(), "not a safetensors file"),
        ] {
            fs::write(&weights, bytes).unwrap();
            let error = LoraConfig::from_adapter(folder.path()).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(WEIGHTS), "{part}: {error}");
        }
    }
}
