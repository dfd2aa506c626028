//! Adapters as PEFT's files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use super::config::{LoraConfig, is_pattern};
use super::names::{FILE_PREFIX, module_of};
use crate::dtype::{cast, to_tensor};
use crate::error::{Error, Result};
use crate::params::{Param, Params};
use crate::weight_space::file::Weights;
use crate::weight_space::host::Elements;
use crate::weight_space::writer::{Writer, safetensors_dtype, write_beside};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// Saves the factors of all adapted layers, and nothing else, to the folder `dir` as PEFT does:
/// `adapter_model.safetensors` and `adapter_config.json`. Each file is written beside its place and moved there.
///
/// # Errors
///
/// [`Error::LoraTarget`] for a target that adapted nothing, [`Error::Io`], or the device fails.
pub fn save_adapter(dir: impl AsRef<Path>, config: &LoraConfig, params: &Params) -> Result<()> {
    config.validate()?;
    config.check_targets(params)?;
    let dir = dir.as_ref();
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let factors = factors(params);
    let layout: Vec<_> = factors
        .iter()
        .map(|(key, param)| {
            let var = param.var();
            Ok((key.as_str(), safetensors_dtype(param.name(), var.dtype())?, var.dims()))
        })
        .collect::<Result<_>>()?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = Writer::create(&dir.join(WEIGHTS), &metadata, &layout)?;
    for param in factors.values() {
        writer.values(Elements::new(param.name(), param.var())?.slice())?;
    }
    writer.finish()?;
    let text =
        serde_json::to_vec_pretty(&peft_config(config, params)).expect("plain values can be written as JSON");
    write_beside(&dir.join(CONFIG), &text)
}

/// Sets the factors of a model to those of an adapter in the folder `dir`, saved by [`save_adapter`] or by PEFT. Build the
/// model with the adapter's own options: [`LoraConfig::from_adapter`]. Element types are converted.
///
/// # Errors
///
/// [`Error::BadFile`], [`Error::Io`], [`Error::MissingTensor`] for a factor that only the file or only the model has,
/// [`Error::TensorMismatch`] for another shape. No factor has changed then.
pub fn load_adapter(dir: impl AsRef<Path>, params: &Params) -> Result<()> {
    let file = Weights::open(&dir.as_ref().join(WEIGHTS))?;
    let factors = factors(params);
    let model = || "the model".to_owned();
    if let Some(key) = file.names().find(|key| !factors.contains_key(*key)) {
        return Err(Error::MissingTensor { tensor: key.to_owned(), model: model(), other: file.place() });
    }
    let mut values: Vec<(&Param, Tensor)> = Vec::new();
    for (key, param) in &factors {
        let var = param.var();
        let entry = file.get(key).ok_or_else(|| Error::MissingTensor {
            tensor: key.clone(),
            model: file.place(),
            other: model(),
        })?;
        let numbers =
            entry.values().filter(|_| entry.shape == var.dims()).ok_or_else(|| Error::TensorMismatch {
                tensor: key.clone(),
                model: file.place(),
                got: entry.describe().into(),
                other: model(),
                expected: format!("{:?} {:?}", var.dtype(), var.dims()).into(),
            })?;
        let tensor = cast(&to_tensor(numbers.slice(), entry.shape, var.device())?, var.dtype())?;
        values.push((param, tensor));
    }
    values.into_iter().try_for_each(|(param, value)| Ok(param.var().set(&value)?))
}

/// All factors by their names in the file.
fn factors(params: &Params) -> BTreeMap<String, Param> {
    let factors = params.all().into_iter().filter(|param| module_of(param.name()).is_some());
    factors.map(|param| (format!("{FILE_PREFIX}{}", param.name()), param)).collect()
}

fn peft_config(config: &LoraConfig, params: &Params) -> Value {
    let params = params.all();
    let modules: BTreeSet<&str> = params.iter().filter_map(|param| module_of(param.name())).collect();
    // PEFT takes names and their ends, but no patterns: write down what the patterns chose.
    let targets: Vec<&str> = match config.targets.iter().any(|target| is_pattern(target)) {
        true => modules.into_iter().collect(),
        false => config.targets.iter().map(String::as_str).collect(),
    };
    json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": null,
        "inference_mode": true,
        "r": config.rank,
        // PEFT writes whole numbers without a fraction.
        "lora_alpha": if config.alpha.fract() == 0.0 { json!(config.alpha as i64) } else { json!(config.alpha) },
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
    })
}

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
            _ => adapted_modules(&Weights::open(&dir.join(WEIGHTS))?),
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
}

fn adapted_modules(file: &Weights) -> Vec<String> {
    let modules: BTreeSet<&str> =
        file.names().filter_map(|key| module_of(key.strip_prefix(FILE_PREFIX)?)).collect();
    modules.into_iter().map(str::to_owned).collect()
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
