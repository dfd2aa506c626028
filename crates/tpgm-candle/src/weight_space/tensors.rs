//! Merging models that are given as tensors by name.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use tpgm_core::weight_space::{Candidate, ModelStock, StockEntry, UniformSoup, WiseEntry, WiseFt};
use tpgm_core::{Buffer, TensorSpec};

use super::MergeError;
use super::error::{Error, Result};
use super::non_finite;
use crate::memory::{self, Elements, core_dtype, to_buffer, to_tensor};

/// The values of a model by name: parameters and buffers.
pub type Tensors = BTreeMap<String, Tensor>;

/// Interpolates between two models (WiSE-FT, arXiv 2109.01903), buffers included. Integer tensors are the fine-tuned
/// model's. With Fisher information (of the first and of the second model, under the names of the weights), a tensor
/// that neither has counts as all ones.
///
/// # Errors
///
/// [`MergeError::MissingTensor`], [`MergeError::TensorMismatch`], [`MergeError::NotMergeable`], [`MergeError::NonFinite`],
/// [`MergeError::IntegerMatrix`] for integers of two or more dimensions that differ, [`Error::Core`] for an option outside its
/// range or the Fisher information of one model only, or the device fails.
pub fn wise_tensors(
    wise: &WiseFt,
    zero_shot: &Tensors,
    fine_tuned: &Tensors,
    fisher: Option<(&Tensors, &Tensors)>,
) -> Result<Tensors> {
    wise.validate()?;
    check(fine_tuned, "the fine-tuned model", [("the zero-shot model", zero_shot)])?;
    each(fine_tuned, |name, value, out| {
        let theta0 = finite(name, &zero_shot[name], "the zero-shot model")?;
        let theta1 = finite(name, value, "the fine-tuned model")?;
        let find = |fisher: &'_ Tensors, place| -> Result<Option<Buffer>> {
            let Some(tensor) = fisher.get(name) else { return Ok(None) };
            finite(name, tensor, place)?;
            Ok(Some(to_buffer(name, tensor)?))
        };
        let fisher0 =
            fisher.map_or(Ok(None), |(fisher, _)| find(fisher, "the zero-shot model's information"))?;
        let fisher1 =
            fisher.map_or(Ok(None), |(_, fisher)| find(fisher, "the fine-tuned model's information"))?;
        let mut entry = WiseEntry::new(name, theta0.slice(), theta1.slice(), out.as_mut());
        entry.fisher0 = fisher0.as_ref().map(Buffer::as_slice);
        entry.fisher1 = fisher1.as_ref().map(Buffer::as_slice);
        Ok(wise.merge(&mut [entry])?)
    })
}

/// The mean of models (uniform soup, arXiv 2203.05482), buffers included. Integer tensors are the first model's.
///
/// # Errors
///
/// [`MergeError::MergeInputs`] without models, [`MergeError::MissingTensor`], [`MergeError::TensorMismatch`], [`MergeError::NotMergeable`],
/// [`MergeError::NonFinite`], [`MergeError::IntegerMatrix`], or the device fails.
pub fn uniform_soup(models: &[&Tensors]) -> Result<Tensors> {
    let first = first(models, 1, "a uniform soup", "one or more models")?;
    check(first, "model 0", numbered(models))?;
    each(first, |name, value, out| {
        let mut soup = UniformSoup::new(&[spec(name, value)?]);
        for (i, model) in models.iter().enumerate() {
            soup.add(&[finite(name, &model[name], &place(i))?.slice()])?;
        }
        Ok(soup.finish(&mut [out.as_mut()])?)
    })
}

/// Model Stock (arXiv 2403.19522): an average of at least two models that is pulled towards the anchor. Integer tensors
/// are the first model's. Also returns the coefficients of the mean by name, one or one per row.
///
/// # Errors
///
/// [`MergeError::MergeInputs`] with fewer than two models, [`MergeError::MissingTensor`], [`MergeError::TensorMismatch`],
/// [`MergeError::NotMergeable`], [`MergeError::NonFinite`], [`MergeError::IntegerMatrix`], or the device fails.
pub fn model_stock(
    stock: &ModelStock,
    anchor: &Tensors,
    models: &[&Tensors],
) -> Result<(Tensors, BTreeMap<String, Vec<f64>>)> {
    let first = first(models, 2, "Model Stock", "the anchor and two or more models")?;
    check(first, "model 0", numbered(models).chain([("the anchor".to_owned(), anchor)]))?;
    let mut coefficients = BTreeMap::new();
    let merged = each(first, |name, value, out| {
        let anchor = finite(name, &anchor[name], "the anchor")?;
        let models = models
            .iter()
            .enumerate()
            .map(|(i, model)| finite(name, &model[name], &place(i)))
            .collect::<Result<Vec<_>>>()?;
        let slices = models.iter().map(Elements::slice);
        let mut entries = [StockEntry::new(name, value.dims(), anchor.slice(), slices, out.as_mut())];
        coefficients.insert(name.to_owned(), stock.merge(&mut entries)?.swap_remove(0));
        Ok(())
    })?;
    Ok((merged, coefficients))
}

/// What [`greedy_soup`] cooked.
#[derive(Debug, Clone)]
pub struct TensorSoup {
    /// The mean of the kept models.
    pub tensors: Tensors,
    /// Positions of the kept models among the candidates, best first.
    pub members: Vec<usize>,
    /// Held-out score of the soup.
    pub score: f64,
    /// Held-out scores of the candidates on their own, in the order given.
    pub candidate_scores: Vec<f64>,
}

/// Averages the models that help (greedy soup, arXiv 2203.05482): from the best to the worst, a model is kept if the mean
/// with it scores no worse on held-out data.
///
/// `evaluate` gets the tensors of a trial, sets its model to them, and returns a score of which higher is better (negate a
/// loss). It runs once for every candidate and once more for every one but the best. The held-out data must be neither
/// training nor test data. Integer tensors are the first candidate's. The candidates are copied to the host first, so
/// they may share storage with the variables that `evaluate` sets.
///
/// # Errors
///
/// [`MergeError::MergeInputs`] without candidates, [`MergeError::MissingTensor`], [`MergeError::TensorMismatch`],
/// [`MergeError::NotMergeable`], [`MergeError::NonFinite`], [`MergeError::IntegerMatrix`], [`Error::Core`] for a score that is NaN, or
/// what `evaluate` returns.
pub fn greedy_soup(
    candidates: &[&Tensors],
    mut evaluate: impl FnMut(&Tensors) -> candle_core::Result<f64>,
) -> Result<TensorSoup> {
    let first = first(candidates, 1, "a greedy soup", "one or more models")?;
    check(first, "model 0", numbered(candidates))?;
    let merged: Vec<(&String, &Tensor)> = first.iter().filter(|(_, value)| !is_discrete(value)).collect();
    let specs = merged.iter().map(|(name, value)| spec(name, value)).collect::<Result<Vec<_>>>()?;
    for (i, model) in candidates.iter().enumerate() {
        merged.iter().try_for_each(|(name, _)| finite(name, &model[*name], &place(i)).map(drop))?;
    }
    let copies = candidates
        .iter()
        .map(|model| {
            merged.iter().map(|(name, _)| to_buffer(name, &model[*name])).collect::<memory::Result<Vec<_>>>()
        })
        .collect::<memory::Result<Vec<_>>>()?;
    let slices = copies.iter().map(|model| Candidate::new(model.iter().map(Buffer::as_slice).collect()));
    let slices: Vec<_> = slices.collect();
    let mut kept = Tensors::new();
    for (name, value) in first.iter().filter(|(_, value)| is_discrete(value)) {
        kept.insert(name.clone(), value.copy()?);
    }
    let shapes: Vec<_> =
        merged.iter().map(|(_, value)| (value.shape().clone(), value.device().clone())).collect();
    let tensors = |weights: &[Buffer]| -> Result<Tensors> {
        let mut tensors = kept.clone();
        for ((spec, weights), (shape, device)) in specs.iter().zip(weights).zip(&shapes) {
            tensors.insert(spec.name.clone(), to_tensor(weights.as_slice(), shape, device)?);
        }
        Ok(tensors)
    };
    let soup = tpgm_core::weight_space::greedy_soup(&specs, &slices, |weights: &[Buffer]| {
        Ok::<f64, Error>(evaluate(&tensors(weights)?)?)
    })?;
    let (members, score, candidate_scores) = (soup.members, soup.score, soup.candidate_scores);
    Ok(TensorSoup { tensors: tensors(&soup.weights)?, members, score, candidate_scores })
}

/// Builds a model like `first`: what `merge` writes for floating-point tensors, a copy of the others.
pub(super) fn each(
    first: &Tensors,
    mut merge: impl FnMut(&str, &Tensor, &mut Buffer) -> Result<()>,
) -> Result<Tensors> {
    let mut merged = Tensors::new();
    for (name, value) in first {
        let tensor = if is_discrete(value) {
            value.copy()?
        } else {
            let mut out = Buffer::zeros(core_dtype(name, value.dtype())?, value.elem_count());
            merge(name, value, &mut out)?;
            to_tensor(out.as_slice(), value.shape(), value.device())?
        };
        merged.insert(name.clone(), tensor);
    }
    Ok(merged)
}

pub(super) fn first<'a>(
    models: &[&'a Tensors],
    least: usize,
    method: &'static str,
    takes: &'static str,
) -> Result<&'a Tensors> {
    if models.len() < least {
        return Err(MergeError::MergeInputs { method, takes }.into());
    }
    Ok(models[0])
}

pub(super) fn numbered<'a>(models: &[&'a Tensors]) -> impl Iterator<Item = (String, &'a Tensors)> {
    models.iter().enumerate().skip(1).map(|(i, model)| (place(i), *model))
}

/// What a model is called in messages.
pub(super) fn place(model: usize) -> String {
    format!("model {model}")
}

/// The elements of a tensor, all of which are finite.
pub(super) fn finite<'a>(name: &str, tensor: &'a Tensor, model: &str) -> Result<Elements<'a>> {
    let elements = Elements::new(name, tensor)?;
    match non_finite(elements.slice()) {
        0 => Ok(elements),
        count => {
            Err(MergeError::NonFinite { tensor: name.to_owned(), model: model.to_owned(), count }.into())
        }
    }
}

/// Makes sure that every model has the tensors of the first, with the same shapes and types.
pub(super) fn check<'a, S: Into<String>>(
    first: &Tensors,
    place: &str,
    models: impl IntoIterator<Item = (S, &'a Tensors)>,
) -> Result<()> {
    for (name, value) in first.iter().filter(|(_, value)| !is_discrete(value)) {
        core_dtype(name, value.dtype()).map_err(|_| MergeError::NotMergeable {
            tensor: name.clone(),
            dtype: format!("{:?}", value.dtype()),
            model: place.to_owned(),
        })?;
    }
    for (model, tensors) in models {
        let model = model.into();
        if let Some(name) = tensors.keys().find(|name| !first.contains_key(*name)) {
            return Err(MergeError::MissingTensor {
                tensor: name.clone(),
                model: place.to_owned(),
                other: model,
            }
            .into());
        }
        for (name, value) in first {
            let Some(other) = tensors.get(name) else {
                return Err(MergeError::MissingTensor {
                    tensor: name.clone(),
                    model,
                    other: place.to_owned(),
                }
                .into());
            };
            if other.dims() != value.dims() || other.dtype() != value.dtype() {
                return Err(MergeError::TensorMismatch {
                    tensor: name.clone(),
                    model,
                    got: describe(other).into(),
                    other: place.to_owned(),
                    expected: describe(value).into(),
                }
                .into());
            }
            // Counters and positions may differ; integers of more dimensions may be packed weights.
            let long = value.dims().iter().filter(|dim| **dim != 1).count();
            let few = if value.dtype() == DType::U8 { value.rank() } else { long };
            if is_discrete(value) && few > 1 && bits(value) != bits(other) {
                return Err(MergeError::IntegerMatrix {
                    tensor: name.clone(),
                    model: place.to_owned(),
                    got: describe(value).into(),
                    problem: format!("has other values in {model}"),
                }
                .into());
            }
        }
    }
    Ok(())
}

fn bits(tensor: &Tensor) -> Cow<'_, [u8]> {
    safetensors::View::data(tensor)
}

fn describe(tensor: &Tensor) -> String {
    format!("{:?} {:?}", tensor.dtype(), tensor.dims())
}

fn is_discrete(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::U8 | DType::U32 | DType::I16 | DType::I32 | DType::I64)
}

fn spec(name: &str, tensor: &Tensor) -> Result<TensorSpec> {
    Ok(TensorSpec {
        name: name.to_owned(),
        shape: tensor.dims().to_vec(),
        dtype: core_dtype(name, tensor.dtype())?,
    })
}
