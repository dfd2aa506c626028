//! What can go wrong before the ranks of several processes are a group.

use std::time::Duration;

use super::problem::some;

/// Why the processes of a group did not find each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartProblem {
    /// An environment variable that says where a process stands does not make sense.
    #[error("environment variable `{name}` is `{value}`: {expected}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// An environment variable is needed beside others that are there.
    #[error("environment variable `{given}` is set, but {missing} not; set {missing_names} on every rank, as torchrun does",
        missing = if missing.len() == 1 { format!("`{}` is", missing[0]) } else { "others are".to_owned() },
        missing_names = names(missing))]
    Unset {
        /// One that is set.
        given: &'static str,
        /// Those that are not.
        missing: Vec<&'static str>,
    },
    /// Rank 0 cannot listen.
    #[error(
        "rank 0 cannot listen on port {port}: {reason}; choose another port, with `{variable}` on every rank"
    )]
    Port {
        /// The port.
        port: u16,
        /// What the system said.
        reason: String,
        /// The variable that sets it.
        variable: &'static str,
    },
    /// Rank 0 does not answer.
    #[error(
        "rank 0 did not answer at {address} within {waited:?}: {reason}; is it started, and is the address right?"
    )]
    Unreachable {
        /// Where it should be.
        address: String,
        /// How long this rank tried.
        waited: Duration,
        /// What happened last.
        reason: String,
    },
    /// Something else answers in place of rank 0.
    #[error("what answers at {address} is not rank 0 of this program: {got}")]
    Stranger {
        /// Where rank 0 should be.
        address: String,
        /// What came.
        got: String,
    },
    /// Ranks did not come.
    #[error("{} did not come to {address} within {waited:?}", some(ranks))]
    Absent {
        /// The ranks.
        ranks: Vec<usize>,
        /// Where they were awaited.
        address: String,
        /// How long.
        waited: Duration,
    },
    /// Two processes have one number.
    #[error("two processes say that they are rank {rank}: one from {first} and one from {second}")]
    Taken {
        /// The number.
        rank: usize,
        /// Address of the one that came first.
        first: String,
        /// Address of the other.
        second: String,
    },
    /// A rank knows of another number of ranks.
    #[error("rank {rank} says that there are {size} ranks, but rank 0 says {expected}")]
    Size {
        /// The rank.
        rank: usize,
        /// How many it says there are.
        size: usize,
        /// How many rank 0 says there are.
        expected: usize,
    },
    /// A rank runs another version.
    #[error("rank {rank} runs version {version} of tpgm-candle, but rank 0 runs {expected}")]
    Version {
        /// The rank.
        rank: usize,
        /// Its version.
        version: String,
        /// That of rank 0.
        expected: String,
    },
    /// What rank 0 says has gone wrong.
    #[error("rank 0 says: {reason}")]
    Told {
        /// Its error.
        reason: String,
    },
    /// MPI cannot be used.
    #[error("MPI cannot be used: {reason}")]
    Mpi {
        /// Why.
        reason: String,
    },
}

fn names(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ")
}
