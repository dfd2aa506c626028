//! Integers beside weights: counters and positions are harmless, matrices may be packed weights.

use super::error::{Error, Result};
use crate::{Entry, Weights};

/// True for integers that say nothing of weights: counters, and positions, also as a row `[1, 512]`.
pub(super) fn is_vector(entry: &Entry<'_>) -> bool {
    let long = entry.shape.iter().filter(|dim| **dim != 1).count();
    // Quantized weights are flat or columns, too.
    entry.is_discrete() && if entry.is_narrow() { entry.shape.len() <= 1 } else { long <= 1 }
}

/// Makes sure that an integer tensor of `first` may be copied without being asked for: it is a vector, or the same bits in
/// all models.
pub(super) fn check_integers<'a>(
    name: &str,
    first: &Weights,
    others: impl Iterator<Item = &'a Weights>,
) -> Result<()> {
    let entry = first.get(name).expect("a listed tensor");
    if is_vector(&entry) {
        return Ok(());
    }
    let bytes = first.bytes(name)?;
    for other in others {
        let problem = match other.get(name) {
            None => format!("{} has none", other.place()),
            Some(there) if there != entry => format!("{} in {}", there.describe(), other.place()),
            Some(_) if other.bytes(name)? != bytes => format!("has other values in {}", other.place()),
            Some(_) => continue,
        };
        let (tensor, model, got) = (name.to_owned(), first.place(), entry.describe().into());
        return Err(Error::IntegerMatrix { tensor, model, got, problem });
    }
    Ok(())
}
