//! What can go wrong between ranks.

use std::time::Duration;

/// Why a call that ranks make together did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RankProblem {
    /// A rank had an error of its own.
    #[error("rank {rank} could not take part: {reason}")]
    Refused {
        /// The rank.
        rank: usize,
        /// Its error.
        reason: String,
    },
    /// A rank is gone: its thread or process ended, by an error or a panic or because it was done.
    #[error("rank {rank} has left the group")]
    Left {
        /// The rank.
        rank: usize,
    },
    /// Ranks did not come to a call in time; the group has ended.
    #[error("{} did not answer within {waited:?}", some(ranks))]
    Silent {
        /// The ranks.
        ranks: Vec<usize>,
        /// How long the others waited.
        waited: Duration,
    },
    /// A rank trains something else, or otherwise.
    #[error("the {what} of rank {rank} and that of rank 0 are not the same")]
    Unequal {
        /// What differs, for example "configuration of the optimizer".
        what: String,
        /// The rank.
        rank: usize,
    },
    /// Ranks made different calls.
    #[error("rank {rank} called `{call}` where rank 0 called `{expected}`")]
    Calls {
        /// The rank.
        rank: usize,
        /// Its call.
        call: &'static str,
        /// That of rank 0.
        expected: &'static str,
    },
    /// Ranks gave different tensors.
    #[error("tensor `{tensor}` is {got} on rank {rank}, but {expected} on rank 0")]
    Differs {
        /// Name of the first tensor that differs.
        tensor: String,
        /// The rank.
        rank: usize,
        /// What it has: type and shape, or "missing".
        got: String,
        /// What rank 0 has.
        expected: String,
    },
    /// Ranks gave different tensors, and only their own are known to each.
    #[error("the tensors at position {position} differ between ranks; on rank {rank} {here}")]
    Unlike {
        /// Where they differ first, from 0.
        position: usize,
        /// The rank that says so.
        rank: usize,
        /// What it has there.
        here: String,
    },
    /// Two ranks, or two tensors of one, use the same memory.
    #[error(
        "tensor `{tensor}` of rank {rank} shares its memory with another tensor of the call; \
         every rank needs a model of its own"
    )]
    Shared {
        /// Name of the tensor.
        tensor: String,
        /// The rank.
        rank: usize,
    },
    /// The library or the device that connects ranks failed.
    #[error("{call} failed on rank {rank}: {reason}")]
    Failed {
        /// What was asked of it.
        call: &'static str,
        /// The rank that noticed.
        rank: usize,
        /// What it said.
        reason: String,
    },
}

/// Ranks, for a sentence.
pub(super) fn some(ranks: &[usize]) -> String {
    match ranks {
        [rank] => format!("rank {rank}"),
        ranks => format!("ranks {}", ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}
