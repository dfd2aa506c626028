//! What is loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use tpgm_core::StateDict;

use super::CheckpointProblem;
use super::error::{Error, Result};
use super::manifest::{MANIFEST, Manifest, SUMS, WEIGHTS, read_sums, state_file};
use super::read::{TensorFile, check_sum};
use crate::params::Params;

/// An intact checkpoint, open for reading. Tensors are read from the disk when they are asked for, one at a time.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
    weights: TensorFile,
    /// One per rank that saved.
    state: Vec<TensorFile>,
}

impl Checkpoint {
    /// Opens the checkpoint in a folder and checks every byte of it against the checksums. Reads all files once.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] or [`Error::Io`](crate::files::Error::Io), both with the file: damaged, cut short, missing, from another program, or
    /// from a newer version of this one.
    pub fn load(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let manifest = Manifest::read(&path.join(MANIFEST))?;
        let sums_path = path.join(SUMS);
        let sums = read_sums(&sums_path)?;
        let ranks = manifest.ranks();
        let states: Vec<String> = (0..ranks).map(|rank| state_file(rank, ranks)).collect();
        for file in [MANIFEST, WEIGHTS].into_iter().chain(states.iter().map(String::as_str)) {
            let sum = sums.get(file).ok_or_else(|| Error::Checkpoint {
                path: sums_path.clone(),
                problem: CheckpointProblem::Malformed { reason: format!("it has no line for {file}") },
            })?;
            check_sum(&path.join(file), *sum)?;
        }
        let weights = TensorFile::open(&path.join(WEIGHTS))?;
        let state = states.iter().map(|file| TensorFile::open(&path.join(file))).collect::<Result<_>>()?;
        Ok(Self { path, manifest, weights, state })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Steps taken when it was saved.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// How many ranks saved it: see [`Checkpointer::save_on_ranks`](super::Checkpointer::save_on_ranks).
    pub fn ranks(&self) -> usize {
        self.manifest.ranks()
    }

    /// Names of the sections of state.
    pub fn sections(&self) -> impl Iterator<Item = &str> {
        self.manifest.sections.iter().map(String::as_str)
    }

    /// Names of the values, those of rank 0.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.manifest.value_names()
    }

    /// Reads all weights and buffers.
    ///
    /// # Errors
    ///
    /// The file cannot be read any more, or the device fails.
    pub fn weights(&self, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        self.weights
            .names()
            .into_iter()
            .map(|name| Ok((name.clone(), self.weights.tensor(&name, device)?)))
            .collect()
    }

    /// Writes the saved values into the trainable parameters and buffers of `params`, one after the other: no second copy
    /// of the model. What was saved beside them (frozen tensors) is left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if a parameter or buffer was not saved or has another shape or element type now; nothing has
    /// changed then. If the disk or device fails half-way, some have.
    pub fn restore(&self, params: &Params) -> Result<()> {
        let variables = params.variables()?;
        for (name, var) in &variables {
            self.weights.expect(name, var.dims(), var.dtype())?;
        }
        for (name, var) in &variables {
            var.set(&self.weights.tensor(name, var.device())?)?;
        }
        Ok(())
    }

    /// Reads a section that [`TrainState::state`](super::TrainState::state) saved: of several ranks, the parts of all of them
    /// as one. What several gave under one name is that of the lowest rank.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there is no such section or it holds other than floating-point tensors.
    pub fn state(&self, section: &str) -> Result<StateDict> {
        self.state_where(section, |_| true)
    }

    /// As [`Checkpoint::state`], of the slots that `wanted` says of their keys alone. The others are not read: a rank whose state
    /// is divided takes its own, as [`RobustOptimizer::takes`](crate::RobustOptimizer::takes) says.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::state`].
    pub fn state_where(&self, section: &str, wanted: impl Fn(&str) -> bool) -> Result<StateDict> {
        let slots = self.keys(section)?.into_iter().filter(|(key, _)| wanted(key));
        slots.map(|(key, (file, name))| Ok((key, file.buffer(&name)?))).collect()
    }

    /// Reads a section that [`TrainState::tensors`](super::TrainState::tensors) saved.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there is no such section, or the device fails.
    pub fn tensors(&self, section: &str, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        self.keys(section)?
            .into_iter()
            .map(|(key, (file, name))| Ok((key, file.tensor(&name, device)?)))
            .collect()
    }

    /// A value that [`TrainState::value`](super::TrainState::value) saved, on rank 0 if there were several.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there is none of this name, or it is of another type.
    pub fn value<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.value_of_rank(0, name)
    }

    /// A value that a rank saved: its random generator, for example.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::value`], or there was no such rank.
    pub fn value_of_rank<T: DeserializeOwned>(&self, rank: usize, name: &str) -> Result<T> {
        let value = self.manifest.value(rank, name).ok_or_else(|| self.missing(name, self.values()))?;
        serde_json::from_value(value.clone()).map_err(|error| {
            let (name, reason) = (name.to_owned(), error.to_string());
            self.problem(CheckpointProblem::Value { name, reason })
        })
    }

    /// Keys of a section, and where their tensors are.
    fn keys(&self, section: &str) -> Result<BTreeMap<String, (&TensorFile, String)>> {
        if !self.sections().any(|name| name == section) {
            return Err(self.missing(section, self.sections()));
        }
        let mut keys = BTreeMap::new();
        for file in &self.state {
            for name in file.names() {
                if let Some((head, key)) = name.split_once('/')
                    && head == section
                {
                    keys.entry(key.to_owned()).or_insert((file, name));
                }
            }
        }
        Ok(keys)
    }

    fn missing<'a>(&self, name: &str, present: impl Iterator<Item = &'a str>) -> Error {
        let present = match present.collect::<Vec<_>>().join(", ") {
            names if names.is_empty() => "nothing".to_owned(),
            names => names,
        };
        self.problem(CheckpointProblem::Missing { name: name.to_owned(), present })
    }

    fn problem(&self, problem: CheckpointProblem) -> Error {
        Error::Checkpoint { path: self.path.join(MANIFEST), problem }
    }
}
