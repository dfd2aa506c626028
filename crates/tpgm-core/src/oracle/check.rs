//! Checks of what the drivers are given.

use crate::error::{Error, Result};
use crate::params::TensorSpec;

pub(super) fn check_len(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(Error::CountMismatch { what, expected, got }) }
}

pub(super) fn check_operand(spec: &TensorSpec, values: &[f64], what: &'static str) -> Result<()> {
    let (expected, got) = (spec.numel(), values.len());
    if expected == got {
        Ok(())
    } else {
        Err(Error::LengthMismatch { tensor: spec.name.clone(), what, expected, got })
    }
}

/// One operand for each tensor, each absent or of the tensor's length.
pub(super) fn check_operands<'a>(
    specs: impl Iterator<Item = &'a TensorSpec>,
    operands: &[Option<Vec<f64>>],
    plural: &'static str,
    singular: &'static str,
) -> Result<()> {
    let specs: Vec<&TensorSpec> = specs.collect();
    check_len(plural, specs.len(), operands.len())?;
    specs
        .iter()
        .zip(operands)
        .filter_map(|(spec, operand)| operand.as_ref().map(|o| (spec, o)))
        .try_for_each(|(spec, operand)| check_operand(spec, operand, singular))
}

/// Refuses gradients with an infinite or NaN element.
pub(super) fn check_finite<'a>(
    specs: impl Iterator<Item = &'a TensorSpec>,
    grads: &[Option<Vec<f64>>],
) -> Result<()> {
    let bad: Vec<&TensorSpec> = specs
        .zip(grads)
        .filter(|(_, grad)| grad.iter().flatten().any(|g| !g.is_finite()))
        .map(|(spec, _)| spec)
        .collect();
    match bad.first() {
        None => Ok(()),
        Some(first) => Err(Error::NonFiniteGradient { tensor: first.name.clone(), count: bad.len() }),
    }
}
