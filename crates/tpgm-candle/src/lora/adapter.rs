//! Adapters as PEFT's files.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use tpgm_nn::lora::{Adapter, CONFIG, FILE_PREFIX, LoraConfig, WEIGHTS, adapter_weights, module_of};

use super::error::{Error, Result};
use crate::files::{Weights, Writer, io, safetensors_dtype, write_beside};
use crate::memory::{Elements, cast, to_tensor};
use crate::params::{Param, Params};
use crate::weight_space::{MergeError, non_finite};

/// Saves the factors of all adapted layers and the modules that belong to them
/// ([`LoraConfig::modules_to_save`]), and nothing else, to the folder `dir` as PEFT does: `adapter_model.safetensors` and
/// `adapter_config.json`. Each file is written beside its place and moved there.
///
/// # Errors
///
/// [`tpgm_nn::Error::LoraTarget`] for a target that adapted nothing, [`Error::NoSavedModule`],
/// [`Error::Io`](crate::files::Error::Io), or the device fails.
pub fn save_adapter(dir: impl AsRef<Path>, config: &LoraConfig, params: &Params) -> Result<()> {
    config.validate()?;
    config.check_targets(params)?;
    let dir = dir.as_ref();
    let tensors = tensors(params, config);
    check_modules(config, "the model", tensors.keys().map(String::as_str))?;
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let keys: Vec<String> = tensors.keys().map(|name| format!("{FILE_PREFIX}{name}")).collect();
    let layout: Vec<_> = keys
        .iter()
        .zip(tensors.values())
        .map(|(key, param)| {
            let var = param.var();
            Ok((key.as_str(), safetensors_dtype(param.name(), var.dtype())?, var.dims()))
        })
        .collect::<Result<_>>()?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = Writer::create(&dir.join(WEIGHTS), &metadata, &layout)?;
    for param in tensors.values() {
        writer.values(Elements::new(param.name(), param.var())?.slice())?;
    }
    writer.finish()?;
    let text = serde_json::to_vec_pretty(&config.to_adapter(params.all().iter().map(Param::name)))
        .expect("plain values can be written as JSON");
    Ok(write_beside(&dir.join(CONFIG), &text)?)
}

/// Sets the factors of a model, and the modules that belong to its adapter ([`LoraConfig::modules_to_save`]), to those of an
/// adapter in the folder `dir`, saved by [`save_adapter`] or by PEFT, as safetensors or as a PyTorch file. Build the model
/// with the adapter's own options: [`LoraConfig::from_adapter`]. Element types are converted.
///
/// Returns the adapter's options. Show its [`Adapter::unknown`]: options of a newer PEFT, which had no effect here.
///
/// # Errors
///
/// As [`LoraConfig::read_adapter`], [`files::Error`](crate::files::Error) for a file that cannot be read,
/// [`MergeError::MissingTensor`](crate::weight_space::MergeError::MissingTensor) for a factor that only the file or only the model
/// has, [`MergeError::TensorMismatch`](crate::weight_space::MergeError::TensorMismatch) for another shape,
/// [`Error::NotTrainable`] and [`Error::NoSavedModule`] for modules of the adapter, or [`Error::NonFinite`]. Nothing has
/// changed then.
pub fn load_adapter(dir: impl AsRef<Path>, params: &Params) -> Result<Adapter> {
    let dir = dir.as_ref();
    let path = adapter_weights(dir);
    let file = Weights::renamed(&path, model_name)?;
    let adapter = LoraConfig::read_adapter(dir)?;
    let config = &adapter.config;
    check_modules(config, file.place(), file.names())?;
    let tensors = tensors(params, config);
    let model = || "the model".to_owned();
    if let Some(name) = file.names().find(|name| !tensors.contains_key(*name)) {
        if config.is_saved(name) {
            return Err(Error::NotTrainable { path, tensor: name.to_owned() });
        }
        return Err(MergeError::MissingTensor {
            tensor: name.to_owned(),
            model: model(),
            other: file.place(),
        }
        .into());
    }
    let mut values: Vec<(&Param, Tensor)> = Vec::new();
    for (key, param) in &tensors {
        let var = param.var();
        let entry = file.get(key).ok_or_else(|| MergeError::MissingTensor {
            tensor: key.clone(),
            model: file.place(),
            other: model(),
        })?;
        let numbers = file.values(key)?.filter(|_| entry.shape == var.dims()).ok_or_else(|| {
            MergeError::TensorMismatch {
                tensor: key.clone(),
                model: file.place(),
                got: entry.describe().into(),
                other: model(),
                expected: format!("{:?} {:?}", var.dtype(), var.dims()).into(),
            }
        })?;
        let count = non_finite(numbers.slice());
        if count > 0 {
            return Err(Error::NonFinite { path, tensor: key.clone(), count });
        }
        let tensor = cast(&to_tensor(numbers.slice(), entry.shape, var.device())?, var.dtype())?;
        values.push((param, tensor));
    }
    values.into_iter().try_for_each(|(param, value)| param.var().set(&value))?;
    Ok(adapter)
}

/// The name in the model of a tensor in the file.
fn model_name(key: &str) -> String {
    // Some versions of PEFT leave the wrapper of a module in its name.
    key.strip_prefix(FILE_PREFIX).unwrap_or(key).replace("modules_to_save.", "")
}

/// All factors, and the tensors of modules that are saved with them.
fn tensors(params: &Params, config: &LoraConfig) -> BTreeMap<String, Param> {
    let belongs = |name: &str| module_of(name).is_some() || config.is_saved(name);
    let tensors = params.all().into_iter().filter(|param| belongs(param.name()));
    tensors.map(|param| (param.name().to_owned(), param)).collect()
}

/// PEFT names every module that a classifier may be called (`classifier`, `score`): one of them has to be there.
fn check_modules<'a>(
    config: &LoraConfig,
    place: impl Into<String>,
    mut names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    if config.modules_to_save.is_empty() || names.any(|name| config.is_saved(name)) {
        return Ok(());
    }
    Err(Error::NoSavedModule { modules: config.modules_to_save.clone(), place: place.into() })
}
