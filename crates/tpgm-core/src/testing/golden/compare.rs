//! Comparing numbers, and remembering the worst.

use std::collections::BTreeMap;

use super::error::GoldenError;
use super::file::TensorFile;
use super::subject::Observed;
use crate::element::DType;

/// A difference between a subject and a golden number.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// `|got - expected| / max(1e-3, |expected|)`; infinite if one of them is not a number.
    pub value: f64,
    /// Name of the tensor in the file.
    pub tensor: String,
    /// Element of the tensor.
    pub element: usize,
    /// What the subject computed.
    pub got: f64,
    /// What the file says.
    pub expected: f64,
}

/// The largest deviation allowed: 1e-10 in f64, 1e-3 in f32.
pub(super) fn limit(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-10,
        _ => 1e-3,
    }
}

pub(super) fn deviation(got: f64, expected: f64) -> f64 {
    let deviation = (got - expected).abs() / expected.abs().max(1e-3);
    if deviation.is_nan() { f64::INFINITY } else { deviation }
}

/// Whether the file must have a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// The file has it.
    Required,
    /// The file has it exactly where the subject has it.
    AsComputed,
    /// The file may lack it.
    Optional,
}

/// Compares what a subject computed with the file.
#[derive(Debug)]
pub(super) struct Comparer<'a> {
    pub(super) file: &'a TensorFile,
    pub(super) worst: Option<Deviation>,
    pub(super) compared: usize,
    /// Quantities in the file that the subject does not expose, with how many tensors of each.
    pub(super) hidden: BTreeMap<&'static str, usize>,
}

impl<'a> Comparer<'a> {
    pub(super) fn new(file: &'a TensorFile) -> Self {
        Self { file, worst: None, compared: 0, hidden: BTreeMap::new() }
    }

    /// Compares tensor `name`, a `quantity`, with what was observed.
    pub(super) fn check(
        &mut self,
        quantity: &'static str,
        name: &str,
        observed: Observed,
        presence: Presence,
    ) -> Result<(), GoldenError> {
        let disagree = |problem| {
            Err(GoldenError::Presence { path: self.file.path.clone(), tensor: name.to_owned(), problem })
        };
        match (self.file.find(name)?, observed) {
            (None, _) if presence == Presence::Required => Err(self.file.missing(name)),
            (None, Observed::Value(_)) if presence == Presence::AsComputed => {
                disagree("was computed, but is not in the file")
            }
            (None, _) => Ok(()),
            (Some(_), Observed::Absent) => disagree("is in the file, but was not computed"),
            (Some(_), Observed::Hidden) => {
                *self.hidden.entry(quantity).or_default() += 1;
                Ok(())
            }
            (Some(tensor), Observed::Value(got)) => {
                if got.len() != tensor.values.len() {
                    return Err(self.file.wrong_shape(name, tensor, format!("{} elements", got.len())));
                }
                self.values(name, &got, &tensor.values);
                Ok(())
            }
        }
    }

    /// Compares one number with a reduction of tensor `name`, which the file must have.
    pub(super) fn check_reduced(
        &mut self,
        quantity: &'static str,
        name: &str,
        observed: Observed,
        reduce: impl Fn(&[f64]) -> f64,
    ) -> Result<(), GoldenError> {
        let expected = reduce(&self.file.get(name)?.values);
        match observed {
            Observed::Value(got) => self.values(name, &got, &[expected]),
            Observed::Absent | Observed::Hidden => *self.hidden.entry(quantity).or_default() += 1,
        }
        Ok(())
    }

    fn values(&mut self, name: &str, got: &[f64], expected: &[f64]) {
        for (element, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let value = deviation(got, expected);
            self.compared += 1;
            if self.worst.as_ref().is_none_or(|worst| value > worst.value) {
                self.worst = Some(Deviation { value, tensor: name.to_owned(), element, got, expected });
            }
        }
    }
}
