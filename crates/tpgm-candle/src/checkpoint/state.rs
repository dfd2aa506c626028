//! What is saved.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tpgm_core::{Buffer, StateDict};

use super::error::{Error, Result};
use super::manifest::{MANIFEST, Manifest, SUMS, Values, WEIGHTS, state_file, sums_to_text};
use super::write::{Source, Sum, sync_dir, write_file, write_tensors};
use crate::files::io;

/// Everything a training run needs to go on: weights, named sections of tensors, named values.
///
/// Only the step has a meaning to this crate; what else there is, and what it is called, is the run's business. Tensors
/// are held by reference count, not copied: save before the next step writes into them.
#[derive(Debug, Default)]
pub struct TrainState {
    step: u64,
    weights: BTreeMap<String, Tensor>,
    sections: BTreeMap<String, BTreeMap<String, Item>>,
    values: Map<String, Value>,
}

#[derive(Debug)]
enum Item {
    Tensor(Tensor),
    Buffer(Buffer),
}

impl TrainState {
    /// The state after `step` steps, empty so far.
    pub fn new(step: u64) -> Self {
        Self { step, ..Self::default() }
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Adds weights and buffers of the model under their names: [`Params::values`](crate::Params::values), and frozen
    /// tensors if the file should stand alone. May be called more than once.
    ///
    /// # Errors
    ///
    /// [`Error::Unsaveable`] if a name was given before.
    pub fn weights(mut self, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        for (name, tensor) in tensors {
            if self.weights.contains_key(&name) {
                return Err(unsaveable(&name, "there are two weights of this name"));
            }
            self.weights.insert(name, tensor);
        }
        Ok(self)
    }

    /// Adds the state of an optimizer, a projector, or whatever else has a [`StateDict`].
    ///
    /// # Errors
    ///
    /// [`Error::Unsaveable`] if the section was given before, or its name is empty or has a `/`.
    pub fn state(self, section: &str, state: StateDict) -> Result<Self> {
        let items = state.into_iter().map(|(key, buffer)| (key, Item::Buffer(buffer)));
        self.section(section, items.collect())
    }

    /// Adds tensors of any kind.
    ///
    /// # Errors
    ///
    /// As [`TrainState::state`].
    pub fn tensors(self, section: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        let items = tensors.into_iter().map(|(name, tensor)| (name, Item::Tensor(tensor)));
        self.section(section, items.collect())
    }

    /// Adds a value that serde can write and read: epoch, schedule, data order, random generators, configuration.
    ///
    /// # Errors
    ///
    /// [`Error::Unsaveable`] if the name was given before, or the value could not be read back. JSON has no infinity and
    /// no NaN: keep a number that may be one as an `Option`, where it becomes `None`.
    pub fn value<T: Serialize + DeserializeOwned>(mut self, name: &str, value: &T) -> Result<Self> {
        if self.values.contains_key(name) {
            return Err(unsaveable(name, "there are two values of this name"));
        }
        let json = serde_json::to_value(value).map_err(|error| unsaveable(name, &error.to_string()))?;
        // An infinite number becomes `null`, which would be noticed only when the run is resumed.
        serde_json::from_value::<T>(json.clone()).map_err(|error| {
            unsaveable(
                name,
                &format!("it could not be read back ({error}); is a number in it infinite or NaN?"),
            )
        })?;
        self.values.insert(name.to_owned(), json);
        Ok(self)
    }

    fn section(mut self, section: &str, items: BTreeMap<String, Item>) -> Result<Self> {
        if section.is_empty() || section.contains('/') {
            return Err(unsaveable(section, "the name of a section is not empty and has no `/`"));
        }
        if self.sections.insert(section.to_owned(), items).is_some() {
            return Err(unsaveable(section, "there are two sections of this name"));
        }
        Ok(self)
    }

    /// Writes all files into an empty folder and waits until they are on the disk.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let part = self.write_part(dir, 0, 1)?;
        self.write_manifest(dir, part, Vec::new())
    }

    /// Writes the sections of one of several ranks; rank 0, before them, the weights.
    pub(super) fn write_part(&self, dir: &Path, rank: usize, ranks: usize) -> Result<Part> {
        let weights = match rank {
            0 => Some(write_tensor_file(&dir.join(WEIGHTS), &self.weight_sources())?),
            _ => None,
        };
        let mut state = Vec::new();
        for (section, items) in &self.sections {
            for (key, item) in items {
                let source = match item {
                    Item::Tensor(tensor) => Source::Tensor(tensor),
                    Item::Buffer(buffer) => Source::Buffer(buffer),
                };
                state.push((format!("{section}/{key}"), source));
            }
        }
        let file = state_file(rank, ranks);
        let sum = write_tensor_file(&dir.join(&file), &state)?;
        let sections = self.sections.keys().cloned().collect();
        Ok(Part { weights, file, sum, sections, values: Values::new(self.values.clone()) })
    }

    fn weight_sources(&self) -> Vec<(String, Source<'_>)> {
        self.weights.iter().map(|(name, tensor)| (name.clone(), Source::Tensor(tensor))).collect()
    }

    /// Writes what makes one checkpoint of the parts of all ranks. `others` are those of the ranks from 1 on.
    pub(super) fn write_manifest(&self, dir: &Path, own: Part, others: Vec<Part>) -> Result<()> {
        let mut sums: Vec<_> = own.weights.map(|sum| (WEIGHTS.to_owned(), sum)).into_iter().collect();
        sums.push((own.file, own.sum));
        let mut ranks = Vec::with_capacity(others.len());
        for (rank, part) in (1..).zip(others) {
            if part.sections != own.sections {
                let problem = format!(
                    "rank 0 has sections {}, but rank {rank} has {}; give the same on all ranks",
                    own.sections.join(", "),
                    part.sections.join(", ")
                );
                return Err(Error::Unsaveable { name: part.file, problem });
            }
            sums.push((part.file, part.sum));
            ranks.push(part.values);
        }
        let manifest = Manifest::new(self.step, own.sections, own.values, ranks).to_json();
        sums.push((MANIFEST.to_owned(), write_bytes(&dir.join(MANIFEST), &manifest)?));
        write_bytes(&dir.join(SUMS), sums_to_text(&sums).as_bytes())?;
        sync_dir(dir)
    }
}

/// What one rank has written, for the manifest.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    /// Of the weights' file, on rank 0.
    weights: Option<Sum>,
    file: String,
    sum: Sum,
    sections: Vec<String>,
    values: Values,
}

fn write_tensor_file(path: &Path, tensors: &[(String, Source)]) -> Result<Sum> {
    write_file(path, |out| write_tensors(path, out, tensors))
}

/// Writes a new file and waits until it is on the disk.
pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<Sum> {
    write_file(path, |out| Ok(std::io::Write::write_all(out, bytes).map_err(io(path))?))
}

fn unsaveable(name: &str, problem: &str) -> Error {
    Error::Unsaveable { name: name.to_owned(), problem: problem.to_owned() }
}
