//! Ranks as threads of one process.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use candle_core::{Device, Tensor};

use super::error::Result;
use super::mean::{copy_to, write_mean};
use super::problem::{Described, RankProblem, check_owners, compare};
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
    call: Call,
    tensors: Vec<(String, Tensor)>,
    /// Of each tensor, in calls that ask for one.
    owners: Vec<usize>,
}

#[derive(Debug, PartialEq)]
enum Call {
    Mean,
    MeanToOwner,
    Share,
    Barrier,
    Refuse(String),
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

    fn meet_with(&self, call: Call, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        let fits = || {
            check_owners(call.name(), self.rank, self.size(), tensors.len(), owners)?;
            tensors.iter().try_for_each(|(name, tensor)| check(name, tensor))
        };
        let owners = if call == Call::Mean { Vec::new() } else { owners.to_vec() };
        if let Err(error) = fits() {
            self.refuse(&error.to_string())?;
            return Err(error);
        }
        let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone()));
        Ok(self.meet(Part { call, tensors: tensors.collect(), owners })?)
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
        self.meet_with(Call::Mean, tensors, &vec![0; tensors.len()])
    }

    fn reduce_mean(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.meet_with(Call::MeanToOwner, tensors, owners)
    }

    fn share(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.meet_with(Call::Share, tensors, owners)
    }

    fn barrier(&self) -> Result<()> {
        Ok(self.meet(Part::without_tensors(Call::Barrier))?)
    }

    fn refuse(&self, reason: &str) -> Result<()> {
        match self.meet(Part::without_tensors(Call::Refuse(reason.to_owned()))) {
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
    fn without_tensors(call: Call) -> Self {
        Self { call, tensors: Vec::new(), owners: Vec::new() }
    }
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Call::Mean => "all_reduce_mean",
            Call::MeanToOwner => "reduce_mean",
            Call::Share => "share",
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
        compare_owners(first, rank, part)?;
    }
    apart(parts)?;
    for i in 0..first.tensors.len() {
        let ranks: Vec<&Tensor> = parts.iter().map(|part| &part.tensors[i].1).collect();
        let done = match (&first.call, first.owners.get(i)) {
            (Call::Share, Some(&owner)) => {
                let others: Vec<&Tensor> =
                    (0..ranks.len()).filter(|r| *r != owner).map(|r| ranks[r]).collect();
                copy_to(ranks[owner], &others)
            }
            (Call::MeanToOwner, Some(&owner)) => write_mean(&ranks, &ranks[owner..=owner]),
            _ => write_mean(&ranks, &ranks),
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

/// Makes sure that `rank`, with the same tensors, names the same owners as rank 0.
fn compare_owners(expected: &Part, rank: usize, got: &Part) -> Result<(), RankProblem> {
    let mut owners = expected.owners.iter().zip(&got.owners).enumerate();
    match owners.find(|(_, (expected, got))| expected != got) {
        None => Ok(()),
        Some((i, (expected_owner, owner))) => {
            let (got, expected_owner) =
                (format!("owned by rank {owner}"), format!("by rank {expected_owner}"));
            Err(RankProblem::Differs {
                tensor: expected.tensors[i].0.clone(),
                rank,
                got,
                expected: expected_owner,
            })
        }
    }
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
