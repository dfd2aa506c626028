//! A call as ranks describe it to each other, and whether it is the same on all of them.

use std::collections::HashMap;

use candle_core::Tensor;
#[cfg(feature = "mpi")]
use serde::{Deserialize, Serialize};

use super::Named;
use super::error::Result;
use super::problem::RankProblem;
use crate::memory::core_dtype;

/// What ranks can be called to do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "mpi", derive(Serialize, Deserialize))]
pub(super) enum Kind {
    Mean = 1,
    MeanToOwner,
    Share,
    Barrier,
    Refuse,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Mean => "all_reduce_mean",
            Kind::MeanToOwner => "reduce_mean",
            Kind::Share => "share",
            Kind::Barrier => "barrier",
            Kind::Refuse => "refuse",
        }
    }
}

/// The call of a rank, in words that every rank understands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "mpi", derive(Serialize, Deserialize))]
pub(super) struct Described {
    pub(super) kind: Kind,
    /// Why the call of all is refused.
    pub(super) reason: String,
    /// Names, and types and shapes.
    pub(super) tensors: Vec<(String, String)>,
    /// Of each tensor, in calls that ask for one.
    pub(super) owners: Vec<usize>,
}

impl Described {
    pub(super) fn new(kind: Kind, tensors: &[Named<'_>], owners: &[usize]) -> Self {
        let words = |tensor: &Tensor| format!("{} {:?}", tensor.dtype().as_str(), tensor.dims());
        let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), words(tensor))).collect();
        Self { kind, reason: String::new(), tensors, owners: owners.to_vec() }
    }

    pub(super) fn refuse(reason: &str) -> Self {
        Self { reason: reason.to_owned(), ..Self::new(Kind::Refuse, &[], &[]) }
    }
}

/// Whether ranks, in order, make one call: what they do then, they do together.
pub(super) fn verdict(calls: &[&Described]) -> Result<(), RankProblem> {
    if let Some(rank) = calls.iter().position(|call| call.kind == Kind::Refuse) {
        return Err(RankProblem::Refused { rank, reason: calls[rank].reason.clone() });
    }
    let (first, others) = calls.split_first().expect("a group has a rank that called");
    for (rank, call) in (1..).zip(others) {
        if call.kind != first.kind {
            let (call, expected) = (call.kind.name(), first.kind.name());
            return Err(RankProblem::Calls { rank, call, expected });
        }
        compare(&first.tensors, rank, &call.tensors)?;
        compare_owners(first, rank, call)?;
    }
    Ok(())
}

/// Makes sure that a tensor is one that ranks can exchange.
pub(super) fn check_tensor(name: &str, tensor: &Tensor) -> Result<()> {
    core_dtype(name, tensor.dtype())?;
    match tensor.is_contiguous() {
        true => Ok(()),
        false => Err(candle_core::Error::RequiresContiguous { op: "a call of several ranks" }.bt().into()),
    }
}

/// Makes sure that `rank`, with the same tensors, names the same owners as rank 0.
fn compare_owners(expected: &Described, rank: usize, got: &Described) -> Result<(), RankProblem> {
    let mut owners = expected.owners.iter().zip(&got.owners).enumerate();
    match owners.find(|(_, (expected, got))| expected != got) {
        None => Ok(()),
        Some((i, (theirs, ours))) => {
            let tensor = expected.tensors[i].0.clone();
            let (got, expected) = (format!("owned by rank {ours}"), format!("by rank {theirs}"));
            Err(RankProblem::Differs { tensor, rank, got, expected })
        }
    }
}

/// Makes sure that a call names an owner for each tensor, and that they are ranks.
pub(super) fn check_owners(
    call: &'static str,
    rank: usize,
    size: usize,
    tensors: usize,
    owners: &[usize],
) -> Result<(), RankProblem> {
    let fail = |reason: String| Err(RankProblem::Failed { call, rank, reason });
    if owners.len() != tensors {
        return fail(format!("{} owners for {tensors} tensors; name one for each", owners.len()));
    }
    match owners.iter().find(|owner| **owner >= size) {
        Some(owner) => fail(format!("there is no rank {owner} among {size}")),
        None => Ok(()),
    }
}

/// Makes sure that `rank` gives the same tensors in the same order as rank 0.
fn compare(expected: &[(String, String)], rank: usize, got: &[(String, String)]) -> Result<(), RankProblem> {
    let differs = |tensor: &str, got: &str, expected: &str| {
        let (tensor, got, expected) = (tensor.to_owned(), got.to_owned(), expected.to_owned());
        Err(RankProblem::Differs { tensor, rank, got, expected })
    };
    if expected == got {
        return Ok(());
    }
    let by_name =
        |list: &'_ [(String, String)]| -> HashMap<String, String> { list.iter().cloned().collect() };
    let theirs = by_name(got);
    for (name, kind) in expected {
        match theirs.get(name) {
            None => return differs(name, "missing", kind),
            Some(theirs) if theirs != kind => return differs(name, theirs, kind),
            Some(_) => {}
        }
    }
    let ours = by_name(expected);
    if let Some((name, kind)) = got.iter().find(|(name, _)| !ours.contains_key(name)) {
        return differs(name, kind, "missing");
    }
    let same = expected.iter().zip(got).take_while(|(ours, theirs)| ours == theirs).count();
    let (name, _) = expected.get(same).or(got.get(same)).expect("the lists differ somewhere");
    differs(name, "at another position of the list", &format!("at position {same}"))
}
