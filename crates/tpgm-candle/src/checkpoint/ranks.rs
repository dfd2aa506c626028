//! Checkpoints that several ranks write at once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::error::Result;
use super::name::{Name, TEMPORARY};
use super::problem::CheckpointProblem;
use super::state::{Part, write_bytes};
use super::{Checkpointer, Error, TrainState};
use crate::distributed::{Communicator, or_refuse};
use crate::files::io;

impl Checkpointer {
    /// Saves a checkpoint of which every rank writes a part at the same time, and returns its folder, on rank 0. All ranks call
    /// this, with the same folder, step and names of sections, and see the same file system.
    ///
    /// A rank writes the sections that it has been given: with [`divide_state`](crate::OptimizerBuilder::divide_state), the state
    /// of its own tensors. Weights are those that rank 0 gives; the others need give none. Values are kept for each rank:
    /// [`Checkpoint::value`](super::Checkpoint::value) is that of rank 0.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::thread;
    ///
    /// use candle_core::{Device, Var};
    /// use tpgm_candle::distributed::{Communicator, InProcess};
    /// use tpgm_candle::{Checkpointer, Ftp, Param, Params, RobustOptimizer, AdamW, TrainState};
    ///
    /// # let folder = tempfile::tempdir()?;
    /// let checkpoints = Checkpointer::new(folder.path());
    /// let rank = |communicator: InProcess, checkpoints: Checkpointer| -> tpgm_candle::Result<()> {
    ///     let communicator = Arc::new(communicator);
    ///     let (a, b) = (Var::new(&[0.5f32, 0.25], &Device::Cpu)?, Var::new(&[1.0f32, -1.0], &Device::Cpu)?);
    ///     let params = [Param::anchored_here("a", a.clone())?, Param::anchored_here("b", b.clone())?];
    ///     let params = Params::from_params(params)?;
    ///     let builder = RobustOptimizer::builder(&params).constraint(Ftp::default());
    ///     let mut optimizer = builder.communicator(communicator.clone()).divide_state().build()?;
    ///     optimizer.backward_step(&(a.as_tensor() * b.as_tensor())?.sum_all()?)?;
    ///
    ///     let state = TrainState::new(1).weights(params.values())?.state("optimizer", optimizer.state()?)?;
    ///     checkpoints.save_on_ranks(&state.value("config", optimizer.config())?, &*communicator)?;
    ///
    ///     // On any number of ranks, each reads what it keeps.
    ///     let saved = checkpoints.latest_valid()?.expect("one was saved").checkpoint;
    ///     saved.restore(&params)?;
    ///     let state = saved.state_where("optimizer", |key| optimizer.takes(key))?;
    ///     optimizer.resume(&saved.value("config")?, &state)?;
    ///     Ok(())
    /// };
    /// let ranks = InProcess::group(2).into_iter().map(|communicator| {
    ///     let checkpoints = checkpoints.clone();
    ///     thread::spawn(move || rank(communicator, checkpoints))
    /// });
    /// for rank in ranks.collect::<Vec<_>>() {
    ///     rank.join().unwrap()?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// As with [`save`](Checkpointer::save), there is the whole checkpoint or none: it gets its name when every rank has said
    /// that its part is on the disk. A rank that dies while it writes destroys nothing; the others return an error that names
    /// it, within the communicator's timeout. That must be longer than a rank takes to write its part.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::files::Error::Io) with the file, on the rank that has it; [`Error::Unsaveable`] if ranks have other
    /// sections; [`Error::Ranks`](crate::distributed::Error::Ranks) on the other ranks, or if one is gone. The checkpoints there
    /// were are intact then. Only if a rank is lost in the last moment of all may the new one be saved nevertheless.
    pub fn save_on_ranks(
        &self,
        state: &TrainState,
        communicator: &dyn Communicator,
    ) -> Result<Option<PathBuf>> {
        let rank = communicator.rank();
        // The same on all ranks; none of an earlier save has the name, for it would be cleared away.
        let temporary = self.dir().join(format!("{TEMPORARY}ranks-step-{:08}", state.step()));
        let begin = || -> Result<_> {
            let lock = self.prepare()?;
            let newest = self.latest()?;
            fs::create_dir(&temporary).map_err(io(&temporary))?;
            let name = Name::after(newest.map(|entry| entry.name()), state.step());
            Ok(Begun { _lock: lock, path: self.dir().join(name.to_string()) })
        };
        let begun = if rank == 0 { begin().map(Some) } else { Ok(None) };
        // Rank 0 keeps the lock to the end.
        let begun = or_refuse(Some(communicator), begun)?;
        if let Err(error) = self.save_parts(state, communicator, &temporary, begun.as_ref()) {
            if rank == 0 {
                // Only tidies up: the next save would do it too.
                fs::remove_dir_all(&temporary).ok();
            }
            return Err(error);
        }
        let removed = if rank == 0 { self.remove_old() } else { Ok(()) };
        agreed(communicator, removed)?;
        Ok(begun.map(|begun| begun.path))
    }

    /// Writes all files into `temporary`, and makes a checkpoint of it. Rank 0 has begun.
    fn save_parts(
        &self,
        state: &TrainState,
        communicator: &dyn Communicator,
        temporary: &Path,
        begun: Option<&Begun>,
    ) -> Result<()> {
        let (rank, ranks) = (communicator.rank(), communicator.size());
        communicator.barrier()?;
        let part = agreed(communicator, write_part(state, temporary, rank, ranks))?;
        let publish = |begun: &Begun| {
            let others = (1..ranks).map(|rank| read_part(temporary, rank)).collect::<Result<_>>()?;
            state.write_manifest(temporary, part, others)?;
            self.publish(temporary, &begun.path)
        };
        agreed(communicator, begun.map_or(Ok(()), publish))
    }
}

/// What rank 0 has when a save begins.
struct Begun {
    _lock: File,
    path: PathBuf,
}

/// Writes the part of a rank, and what rank 0 must know of it.
fn write_part(state: &TrainState, dir: &Path, rank: usize, ranks: usize) -> Result<Part> {
    let part = state.write_part(dir, rank, ranks)?;
    if rank > 0 {
        let json = serde_json::to_vec(&part).expect("it holds numbers, strings and JSON values");
        write_bytes(&note(dir, rank), &json)?;
    }
    Ok(part)
}

/// Reads, and removes, what a rank wrote for rank 0.
fn read_part(dir: &Path, rank: usize) -> Result<Part> {
    let path = note(dir, rank);
    let json = fs::read(&path).map_err(io(&path))?;
    let part = serde_json::from_slice(&json).map_err(|error| Error::Checkpoint {
        path: path.clone(),
        problem: CheckpointProblem::Malformed { reason: error.to_string() },
    })?;
    fs::remove_file(&path).map_err(io(&path))?;
    Ok(part)
}

fn note(dir: &Path, rank: usize) -> PathBuf {
    dir.join(format!("rank-{rank:05}.json"))
}

/// Tells the other ranks of an error, or waits until all of them say that they have none.
fn agreed<T>(communicator: &dyn Communicator, result: Result<T>) -> Result<T> {
    match result {
        Ok(value) => {
            communicator.barrier()?;
            Ok(value)
        }
        Err(error) => {
            // If the group has ended, that is why: rank 0 has cleared away what this rank was writing.
            communicator.refuse(&error.to_string())?;
            Err(error)
        }
    }
}
