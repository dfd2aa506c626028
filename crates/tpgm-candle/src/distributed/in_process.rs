//! Ranks as threads of one process.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};

use super::error::Result;
use super::mean::{copy_to, write_mean};
use super::problem::{Described, RankProblem, compare};
use super::{Communicator, Named};
use crate::engine;
use crate::memory::{core_dtype, storage_key};

/// A [`Communicator`] between threads of one process, over tensors on the CPU.
///
/// Whichever rank comes last does the work for all: it sums in order of rank, in f32 (f64 for f64 tensors), so that the
/// order of arrival changes no bit. For a mean over `n` ranks it reads `4 n` and writes `4 n` bytes per f32 parameter, and
/// needs memory for the mean of one tensor.
///
/// Ranks wait for each other, so each needs a thread of its own: tasks of one thread pool may wait forever.
#[derive(Debug)]
pub struct InProcess {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Calls that are over.
    round: u64,
    /// What each rank gives to the call under way.
    given: Vec<Option<Part>>,
    /// How the last call ended. No rank can begin another before all have read it.
    outcome: Result<(), RankProblem>,
    /// The first rank that is gone.
    left: Option<usize>,
}

#[derive(Debug)]
struct Part {
    call: Call,
    tensors: Vec<(String, Tensor)>,
}

#[derive(Debug, PartialEq)]
enum Call {
    Mean,
    Broadcast,
    Barrier,
    Refuse(String),
}

impl InProcess {
    /// The ends of a group of `size` ranks, in order of rank. Give each to a thread; dropped, it ends the group.
    pub fn group(size: usize) -> Vec<Self> {
        let given = (0..size).map(|_| None).collect();
        let state = State { round: 0, given, outcome: Ok(()), left: None };
        let group = Arc::new(Group { state: Mutex::new(state), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, group: group.clone() }).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.group.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a part to a call, and waits until it is over.
    fn meet(&self, call: Call, tensors: Vec<(String, Tensor)>) -> Result<(), RankProblem> {
        let mut state = self.state();
        if let Some(rank) = state.left {
            return Err(RankProblem::Left { rank });
        }
        if state.given[self.rank].is_some() {
            let reason = "two of its threads made a call at the same time".to_owned();
            return Err(RankProblem::Refused { rank: self.rank, reason });
        }
        let round = state.round;
        state.given[self.rank] = Some(Part { call, tensors });
        if state.given.iter().all(Option::is_some) {
            let parts: Vec<Part> = state.given.iter_mut().filter_map(Option::take).collect();
            // The lock is kept: nobody has anything else to do.
            state.outcome = carry_out(&parts);
            state.round += 1;
            self.group.changed.notify_all();
            return state.outcome.clone();
        }
        let under_way = |state: &mut State| state.round == round && state.left.is_none();
        let state = self.group.changed.wait_while(state, under_way).unwrap_or_else(PoisonError::into_inner);
        match state.left {
            Some(rank) if state.round == round => Err(RankProblem::Left { rank }),
            _ => state.outcome.clone(),
        }
    }

    fn meet_with(&self, call: Call, tensors: &[Named<'_>]) -> Result<()> {
        if let Err(error) = tensors.iter().try_for_each(|(name, tensor)| check(name, tensor)) {
            self.refuse(&error.to_string())?;
            return Err(error);
        }
        let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone()));
        Ok(self.meet(call, tensors.collect())?)
    }
}

impl Communicator for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.state().given.len()
    }

    fn all_reduce_mean(&self, tensors: &[Named<'_>]) -> Result<()> {
        self.meet_with(Call::Mean, tensors)
    }

    fn broadcast(&self, tensors: &[Named<'_>]) -> Result<()> {
        self.meet_with(Call::Broadcast, tensors)
    }

    fn barrier(&self) -> Result<()> {
        Ok(self.meet(Call::Barrier, Vec::new())?)
    }

    fn refuse(&self, reason: &str) -> Result<()> {
        match self.meet(Call::Refuse(reason.to_owned()), Vec::new()) {
            Err(problem @ RankProblem::Left { .. }) => Err(problem.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let mut state = self.state();
        state.left.get_or_insert(self.rank);
        state.given.iter_mut().for_each(|part| *part = None);
        self.group.changed.notify_all();
    }
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Call::Mean => "all_reduce_mean",
            Call::Broadcast => "broadcast",
            Call::Barrier => "barrier",
            Call::Refuse(_) => "refuse",
        }
    }
}

/// What this communicator can work on.
fn check(name: &str, tensor: &Tensor) -> Result<()> {
    core_dtype(name, tensor.dtype())?;
    if !matches!(tensor.device(), Device::Cpu) {
        let (tensor, device) = (name.to_owned(), tensor.device().location());
        return Err(engine::Error::Device { tensor, device }.into());
    }
    match tensor.is_contiguous() {
        true => Ok(()),
        false => Err(candle_core::Error::RequiresContiguous { op: "a call of several ranks" }.bt().into()),
    }
}

/// Does a call for all ranks, or for none.
fn carry_out(parts: &[Part]) -> Result<(), RankProblem> {
    for (rank, part) in parts.iter().enumerate() {
        if let Call::Refuse(reason) = &part.call {
            return Err(RankProblem::Refused { rank, reason: reason.clone() });
        }
    }
    let (first, others) = parts.split_first().expect("a group has a rank that called");
    let expected = described(first);
    for (rank, part) in (1..).zip(others) {
        if part.call != first.call {
            let (call, expected) = (part.call.name(), first.call.name());
            return Err(RankProblem::Calls { rank, call, expected });
        }
        compare(&expected, rank, &described(part))?;
    }
    apart(parts)?;
    for i in 0..first.tensors.len() {
        let ranks: Vec<&Tensor> = parts.iter().map(|part| &part.tensors[i].1).collect();
        let done = match first.call {
            Call::Broadcast => copy_to(ranks[0], &ranks[1..]),
            _ => write_mean(&ranks),
        };
        done.map_err(|error| RankProblem::Failed {
            call: first.call.name(),
            rank: 0,
            reason: format!("tensor `{}`: {error}", first.tensors[i].0),
        })?;
    }
    Ok(())
}

fn described(part: &Part) -> Vec<Described> {
    let kind = |tensor: &Tensor| format!("{} {:?}", tensor.dtype().as_str(), tensor.dims());
    part.tensors.iter().map(|(name, tensor)| (name.clone(), kind(tensor))).collect()
}

/// A tensor that shares memory with another would be changed twice.
fn apart(parts: &[Part]) -> Result<(), RankProblem> {
    let mut seen = HashSet::new();
    for (rank, part) in parts.iter().enumerate() {
        for (name, tensor) in &part.tensors {
            if !seen.insert(storage_key(tensor)) {
                return Err(RankProblem::Shared { tensor: name.clone(), rank });
            }
        }
    }
    Ok(())
}
