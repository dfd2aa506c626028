//! Ranks as threads of one process.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use candle_core::{Device, Tensor};

use super::call::{Described, Kind, check_owners, check_tensor, verdict};
use super::error::Result;
use super::mean::{copy_to, write_mean};
use super::problem::RankProblem;
use super::{Communicator, Named};
use crate::engine;
use crate::memory::{Apart, storage_key};

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
    timeout: Duration,
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
    /// Why there are no more calls: the first rank that is gone, or those that did not answer.
    ended: Option<RankProblem>,
}

#[derive(Debug)]
struct Part {
    call: Described,
    tensors: Vec<Tensor>,
}

impl InProcess {
    /// The ends of a group of `size` ranks, in order of rank. Give each to a thread; dropped, it ends the group. Of a group of
    /// none there are no ends.
    pub fn group(size: usize) -> Vec<Self> {
        let given = (0..size).map(|_| None).collect();
        let state = State { round: 0, given, outcome: Ok(()), ended: None };
        let group = Arc::new(Group { state: Mutex::new(state), changed: Condvar::new() });
        let timeout = Duration::from_secs(600);
        (0..size).map(|rank| Self { rank, group: group.clone(), timeout }).collect()
    }

    /// Sets how long a call of this rank waits for the others. After that it fails with [`RankProblem::Silent`], which names
    /// them, and so do all calls of all ranks: the group has ended. Default 10 minutes. What a rank does alone between two
    /// calls, an evaluation for example, must take less.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.group.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a part to a call, and waits until it is over.
    fn meet(&self, part: Part) -> Result<(), RankProblem> {
        let mut state = self.state();
        if let Some(problem) = &state.ended {
            return Err(problem.clone());
        }
        if state.given[self.rank].is_some() {
            let reason = "two of its threads made a call at the same time".to_owned();
            return Err(RankProblem::Refused { rank: self.rank, reason });
        }
        let round = state.round;
        state.given[self.rank] = Some(part);
        if state.given.iter().all(Option::is_some) {
            let parts: Vec<Part> = state.given.iter_mut().filter_map(Option::take).collect();
            // The lock is kept: nobody has anything else to do.
            state.outcome = carry_out(&parts);
            state.round += 1;
            self.group.changed.notify_all();
            return state.outcome.clone();
        }
        let under_way = |state: &mut State| state.round == round && state.ended.is_none();
        let waited = self.group.changed.wait_timeout_while(state, self.timeout, under_way);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.round != round {
            return state.outcome.clone();
        }
        let silent = (0..state.given.len()).filter(|&rank| state.given[rank].is_none()).collect();
        let problem = RankProblem::Silent { ranks: silent, waited: self.timeout };
        Err(self.end(&mut state, problem))
    }

    /// Ends the group, unless it has ended already. Returns why it has.
    fn end(&self, state: &mut State, problem: RankProblem) -> RankProblem {
        let problem = state.ended.get_or_insert(problem).clone();
        state.given.iter_mut().for_each(|part| *part = None);
        self.group.changed.notify_all();
        problem
    }

    fn meet_with(&self, kind: Kind, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        let fits = || {
            check_owners(kind.name(), self.rank, self.size(), tensors.len(), owners)?;
            tensors.iter().try_for_each(|(name, tensor)| check(name, tensor))
        };
        if let Err(error) = fits() {
            self.refuse(&error.to_string())?;
            return Err(error);
        }
        let call = Described::new(kind, tensors, owners);
        Ok(self.meet(Part { call, tensors: tensors.iter().map(|(_, tensor)| (*tensor).clone()).collect() })?)
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
        self.meet_with(Kind::Mean, tensors, &vec![0; tensors.len()])
    }

    fn reduce_mean(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.meet_with(Kind::MeanToOwner, tensors, owners)
    }

    fn share(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.meet_with(Kind::Share, tensors, owners)
    }

    fn barrier(&self) -> Result<()> {
        Ok(self.meet(Part::without_tensors(Described::new(Kind::Barrier, &[], &[])))?)
    }

    fn refuse(&self, reason: &str) -> Result<()> {
        match self.meet(Part::without_tensors(Described::refuse(reason))) {
            Err(problem @ (RankProblem::Left { .. } | RankProblem::Silent { .. })) => Err(problem.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.end(&mut self.state(), RankProblem::Left { rank: self.rank });
    }
}

impl Part {
    fn without_tensors(call: Described) -> Self {
        Self { call, tensors: Vec::new() }
    }
}

/// What this communicator can work on.
fn check(name: &str, tensor: &Tensor) -> Result<()> {
    check_tensor(name, tensor)?;
    match tensor.device() {
        Device::Cpu => Ok(()),
        device => Err(engine::Error::Device { tensor: name.to_owned(), device: device.location() }.into()),
    }
}

/// Does a call for all ranks, or for none.
fn carry_out(parts: &[Part]) -> Result<(), RankProblem> {
    verdict(&parts.iter().map(|part| &part.call).collect::<Vec<_>>())?;
    apart(parts)?;
    let call = &parts[0].call;
    for (i, (name, _)) in call.tensors.iter().enumerate() {
        let ranks: Vec<&Tensor> = parts.iter().map(|part| &part.tensors[i]).collect();
        let owner = call.owners[i];
        let done = match call.kind {
            Kind::Share => {
                let others: Vec<&Tensor> =
                    (0..ranks.len()).filter(|r| *r != owner).map(|r| ranks[r]).collect();
                copy_to(ranks[owner], &others)
            }
            Kind::MeanToOwner => write_mean(&ranks, &ranks[owner..=owner]),
            _ => write_mean(&ranks, &ranks),
        };
        done.map_err(|error| RankProblem::Failed {
            call: call.kind.name(),
            rank: 0,
            reason: format!("tensor `{name}`: {error}"),
        })?;
    }
    Ok(())
}

/// A tensor that shares memory with another would be changed twice. Of two ranks not even different rows may lie in one storage: it
/// cannot be read for one and written for the other at the same time.
fn apart(parts: &[Part]) -> Result<(), RankProblem> {
    let mut of_earlier_ranks = HashSet::new();
    for (rank, part) in parts.iter().enumerate() {
        let mut own = Apart::default();
        for ((tensor, _), memory) in part.call.tensors.iter().zip(&part.tensors) {
            if of_earlier_ranks.contains(&storage_key(memory)) || !own.insert(memory) {
                return Err(RankProblem::Shared { tensor: tensor.clone(), rank });
            }
        }
        of_earlier_ranks.extend(part.tensors.iter().map(storage_key));
    }
    Ok(())
}
