//! What merges and measurements did not take.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::distance::Distances;
use super::plan::MergedTensor;

/// Why a tensor was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Only this model has it.
    Alone,
    /// It holds integers, of which there is neither a mean nor a distance.
    Integer,
    /// A pattern said so.
    Asked,
    /// It is a second name of a tensor that is there, as PyTorch's files have for tied weights.
    Tied,
}

/// A tensor that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// A model that has it.
    pub model: String,
    /// Why it was left out.
    pub why: Why,
}

/// What [`merge_files`](super::merge_files) did. Its text counts and names what was not merged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MergeReport {
    /// Tensors that were merged, in the order of the file.
    pub merged: Vec<MergedTensor>,
    /// Tensors that were copied from the first model: integers, and what the plan said.
    pub copied: Vec<String>,
    /// Tensors of any input that are not in the output.
    pub left_out: Vec<LeftOut>,
}

impl fmt::Display for MergeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "merged: {}", count(self.merged.len()))?;
        if !self.copied.is_empty() {
            let (number, names) = (count(self.copied.len()), self.copied.join(", "));
            write!(f, "\ncopied from the first model, not merged: {number}: {names}")?;
        }
        left_out(f, "left out", &self.left_out)
    }
}

/// Counts and names what was not measured.
impl fmt::Display for Distances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "measured: {}", count(self.tensors.len()))?;
        left_out(f, "not measured", &self.left_out)
    }
}

/// A line for each reason and model.
fn left_out(f: &mut fmt::Formatter<'_>, what: &str, tensors: &[LeftOut]) -> fmt::Result {
    let mut groups: Vec<(Why, &str, Vec<&str>)> = Vec::new();
    for LeftOut { name, model, why } in tensors {
        match groups.iter_mut().find(|(other, place, _)| other == why && place == model) {
            Some((.., names)) => names.push(name),
            None => groups.push((*why, model, vec![name])),
        }
    }
    for (why, model, names) in groups {
        let (number, names) = (count(names.len()), names.join(", "));
        match why {
            Why::Alone => write!(f, "\n{what}: {number} that only {model} has: {names}")?,
            Why::Integer => write!(f, "\n{what}: {number} of integers in {model}: {names}")?,
            Why::Asked => write!(f, "\n{what}: {number} of {model}, by pattern: {names}")?,
            Why::Tied => write!(f, "\n{what}: {number} of {model} that it has by another name too: {names}")?,
        }
    }
    Ok(())
}

fn count(tensors: usize) -> String {
    if tensors == 1 { "1 tensor".to_owned() } else { format!("{tensors} tensors") }
}
