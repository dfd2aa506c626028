//! Adapters as PEFT's files.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use tpgm_nn::lora::{CONFIG, FILE_PREFIX, LoraConfig, WEIGHTS, module_of};

use super::error::{Error, Result};
use crate::files::Weights;
use crate::files::io;
use crate::files::{Writer, safetensors_dtype, write_beside};
use crate::memory::Elements;
use crate::memory::{cast, to_tensor};
use crate::params::{Param, Params};
use crate::weight_space as models;

/// Saves the factors of all adapted layers, and nothing else, to the folder `dir` as PEFT does:
/// `adapter_model.safetensors` and `adapter_config.json`. Each file is written beside its place and moved there.
///
/// # Errors
///
/// [`tpgm_nn::Error::LoraTarget`] for a target that adapted nothing, [`Error::Io`](crate::files::Error::Io), or the device fails.
pub fn save_adapter(dir: impl AsRef<Path>, config: &LoraConfig, params: &Params) -> Result<()> {
    config.validate()?;
    config.check_targets(params)?;
    let dir = dir.as_ref();
    std::fs::create_dir_all(dir).map_err(io(dir))?;
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
    let text = serde_json::to_vec_pretty(&config.to_adapter(params.all().iter().map(Param::name)))
        .expect("plain values can be written as JSON");
    Ok(write_beside(&dir.join(CONFIG), &text)?)
}

/// Sets the factors of a model to those of an adapter in the folder `dir`, saved by [`save_adapter`] or by PEFT. Build the
/// model with the adapter's own options: [`LoraConfig::from_adapter`]. Element types are converted.
///
/// # Errors
///
/// [`Error::BadFile`](crate::files::Error::BadFile), [`Error::Io`](crate::files::Error::Io), [`Error::MissingTensor`](crate::weight_space::Error::MissingTensor) for a factor that only the file or only the model has,
/// [`Error::TensorMismatch`](crate::weight_space::Error::TensorMismatch) for another shape. No factor has changed then.
pub fn load_adapter(dir: impl AsRef<Path>, params: &Params) -> Result<()> {
    let file = Weights::open(&dir.as_ref().join(WEIGHTS))?;
    let factors = factors(params);
    let model = || "the model".to_owned();
    if let Some(key) = file.names().find(|key| !factors.contains_key(*key)) {
        return Err(models::Error::MissingTensor {
            tensor: key.to_owned(),
            model: model(),
            other: file.place(),
        }
        .into());
    }
    let mut values: Vec<(&Param, Tensor)> = Vec::new();
    for (key, param) in &factors {
        let var = param.var();
        let entry = file.get(key).ok_or_else(|| models::Error::MissingTensor {
            tensor: key.clone(),
            model: file.place(),
            other: model(),
        })?;
        let numbers = file.values(key)?.filter(|_| entry.shape == var.dims()).ok_or_else(|| {
            models::Error::TensorMismatch {
                tensor: key.clone(),
                model: file.place(),
                got: entry.describe().into(),
                other: model(),
                expected: format!("{:?} {:?}", var.dtype(), var.dims()).into(),
            }
        })?;
        let count = models::non_finite(numbers.slice());
        if count > 0 {
            return Err(Error::NonFinite { path: dir.as_ref().join(WEIGHTS), tensor: key.clone(), count });
        }
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
