//! The options of an adapter as PEFT writes them: `adapter_config.json`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::config::{LoraConfig, is_pattern};
use super::names::module_of;
use super::peft_names::tensor_names;
use super::peft_options::{Verdict, is_off, judge};
use crate::error::{Error, Result};

/// What PEFT puts before the names of modules in the files of an adapter.
pub const FILE_PREFIX: &str = "base_model.model.";

/// The file with the factors of an adapter, in its folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The same as PEFT wrote it before version 0.6, and still does where it is told to: a PyTorch file.
pub const PICKLED_WEIGHTS: &str = "adapter_model.bin";

/// The file with the options of an adapter, in its folder.
pub const CONFIG: &str = "adapter_config.json";

/// The file with the factors of the adapter in `dir`: [`WEIGHTS`], or [`PICKLED_WEIGHTS`] if only that is there.
pub fn adapter_weights(dir: &Path) -> PathBuf {
    let (weights, pickled) = (dir.join(WEIGHTS), dir.join(PICKLED_WEIGHTS));
    if !weights.exists() && pickled.exists() { pickled } else { weights }
}

/// What [`LoraConfig::read_adapter`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The options.
    pub config: LoraConfig,
    /// What the file says beyond them and nobody here knows: options of a newer PEFT, which had no effect. If one of them
    /// changes what an adapter computes, the outputs are not PEFT's.
    pub unknown: Vec<UnknownOption>,
}

/// An option of an adapter that is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownOption {
    /// The file with the options.
    pub path: PathBuf,
    /// Its name.
    pub option: String,
    /// Its value, as JSON.
    pub value: String,
}

/// A warning.
impl fmt::Display for UnknownOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, option, value } = self;
        write!(
            f,
            "{}: option `{option}` ({value}) is not known and had no effect; if it changes what the adapter computes, \
             its outputs are not PEFT's",
            path.display()
        )
    }
}

impl LoraConfig {
    /// The options of an adapter in the folder `dir`, without a word about options that are not known:
    /// [`LoraConfig::read_adapter`] has them.
    ///
    /// # Errors
    ///
    /// As [`LoraConfig::read_adapter`].
    pub fn from_adapter(dir: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::read_adapter(dir)?.config)
    }

    /// The options of an adapter in the folder `dir`. Where modules were chosen by a regular expression, by exclusion or by
    /// the number of their layer, the targets are the names of the adapted modules in the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`], [`Error::AdapterOption`] for an option that changes what an adapter computes and
    /// is not supported, or an option outside its range.
    pub fn read_adapter(dir: impl AsRef<Path>) -> Result<Adapter> {
        let dir = dir.as_ref();
        let path = dir.join(CONFIG);
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let bad = |problem: String| Error::BadFile { path: path.clone(), problem };
        let options: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| bad(format!("not the options of an adapter: {e}")))?;
        let mut unknown = Vec::new();
        for (option, value) in &options {
            let (option, text) = (option.clone(), value.to_string());
            match judge(&option, value) {
                Verdict::Known => {}
                Verdict::Unsupported => {
                    return Err(Error::AdapterOption { path, option, value: text });
                }
                Verdict::Unknown => unknown.push(UnknownOption { path: path.clone(), option, value: text }),
            }
        }
        let number = |option: &str, default: f64| match options.get(option) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| bad(format!("`{option}` is {value}, not a number"))),
        };
        let default = Self::default();
        // What else chooses modules has no counterpart here, but the file tells which modules were chosen.
        let by_name =
            ["exclude_modules", "layers_to_transform"].iter().all(|o| options.get(*o).is_none_or(is_off));
        let names = |option: &str, values: &[Value]| {
            let names = values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<_>>();
            names.ok_or_else(|| bad(format!("`{option}` holds something else than names")))
        };
        let targets = match options.get("target_modules") {
            Some(Value::Array(targets)) if by_name => names("target_modules", targets)?,
            _ => adapted_modules(&adapter_weights(dir))?,
        };
        let modules_to_save = match options.get("modules_to_save") {
            Some(Value::Array(modules)) => names("modules_to_save", modules)?,
            None | Some(Value::Null) => Vec::new(),
            Some(value) => return Err(bad(format!("`modules_to_save` is {value}, not a list of names"))),
        };
        let rank = options.get("r").map_or(Some(default.rank as u64), Value::as_u64);
        let rank = rank.and_then(|rank| usize::try_from(rank).ok());
        let config = Self {
            rank: rank.ok_or_else(|| bad("`r` is not a whole number".to_owned()))?,
            alpha: number("lora_alpha", default.alpha)?,
            dropout: number("lora_dropout", default.dropout)?,
            rslora: options.get("use_rslora").and_then(Value::as_bool).unwrap_or(default.rslora),
            targets,
            modules_to_save,
            seed: default.seed,
        };
        config.validate()?;
        Ok(Adapter { config, unknown })
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
            "modules_to_save": (!self.modules_to_save.is_empty()).then_some(&self.modules_to_save),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
        })
    }
}

/// The modules that the factors of a file belong to. Reads its header only.
fn adapted_modules(path: &Path) -> Result<Vec<String>> {
    let names = tensor_names(path)?;
    let modules: BTreeSet<&str> =
        names.iter().filter_map(|key| module_of(key.strip_prefix(FILE_PREFIX)?)).collect();
    Ok(modules.into_iter().map(str::to_owned).collect())
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
