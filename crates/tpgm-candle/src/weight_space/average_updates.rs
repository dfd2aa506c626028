//! Steps along averaged updates, and ensembles of predictions.

use candle_core::{D, Tensor};
use tpgm_core::weight_space::UpdateEntry;

use super::MergeError;
use super::error::Result;
use super::tensors::{Tensors, check, each, finite, first, numbered, place};
use crate::memory::{self, Elements};

/// A step of length `rate` along the mean of several updates, `start + rate * mean(end - start)`: LOLSGD (arXiv 2311.01420), see
/// [`average_updates`](tpgm_core::weight_space::average_updates) of the core. Integer tensors are the first end's.
///
/// # Errors
///
/// [`MergeError::MergeInputs`] without ends, [`MergeError::MissingTensor`], [`MergeError::TensorMismatch`], [`MergeError::NotMergeable`],
/// [`MergeError::NonFinite`], [`MergeError::IntegerMatrix`], [`Error::Core`](super::Error::Core) for a rate outside its range, or the device fails.
pub fn average_updates(start: &Tensors, ends: &[&Tensors], rate: f64) -> Result<Tensors> {
    let one = first(ends, 1, "average_updates", "the start and one or more ends")?;
    check(one, "model 0", numbered(ends).chain([("the start".to_owned(), start)]))?;
    each(one, |name, _, out| {
        let start = finite(name, &start[name], "the start")?;
        let ends = ends
            .iter()
            .enumerate()
            .map(|(i, end)| finite(name, &end[name], &place(i)))
            .collect::<Result<Vec<_>>>()?;
        let slices = ends.iter().map(Elements::slice);
        let entry = UpdateEntry::new(name, start.slice(), slices, out.as_mut());
        Ok(tpgm_core::weight_space::average_updates(&mut [entry], rate)?)
    })
}

/// The weighted mean of probabilities `[.., classes]` that several predictors give, see
/// [`ensemble`](tpgm_core::weight_space::ensemble) of the core: DRM at inference, output ensembles. No gradient goes through it. The
/// result has the type and place of the first.
///
/// # Errors
///
/// [`MergeError::TensorMismatch`] for shapes that differ, [`Error::Core`](super::Error::Core) for what the core refuses (logits, for example), or the device
/// fails.
pub fn ensemble(probabilities: &[&Tensor], weights: &[f64]) -> Result<Tensor> {
    let Some(one) = probabilities.first() else {
        return Err(
            MergeError::MergeInputs { method: "an ensemble", takes: "one or more predictions" }.into()
        );
    };
    if let Some((i, other)) = probabilities.iter().enumerate().find(|(_, p)| p.dims() != one.dims()) {
        return Err(MergeError::TensorMismatch {
            tensor: "probabilities".to_owned(),
            model: place(i),
            got: format!("{:?}", other.dims()).into(),
            other: place(0),
            expected: format!("{:?}", one.dims()).into(),
        }
        .into());
    }
    let elements = probabilities
        .iter()
        .map(|p| Elements::new("probabilities", p))
        .collect::<memory::Result<Vec<_>>>()?;
    let slices: Vec<_> = elements.iter().map(Elements::slice).collect();
    let mixed = tpgm_core::weight_space::ensemble(&slices, one.dim(D::Minus1)?, weights)?;
    Ok(Tensor::from_vec(mixed, one.shape(), one.device())?.to_dtype(one.dtype())?)
}
