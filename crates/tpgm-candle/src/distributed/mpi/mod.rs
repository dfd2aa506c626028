//! Ranks as processes that MPI starts.

mod ending;
mod exchange;
mod group;
mod library;
mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use self::exchange::exchange;
use self::group::Group;
use self::process::Process;
use super::call::{Described, Kind, check_owners, check_tensor};
use super::error::{Error, Result};
use super::problem::RankProblem;
use super::start::StartProblem;
use super::{Communicator, Named};
use crate::memory::Apart;

/// A [`Communicator`] between processes, on one machine or many: those that `mpirun` or `srun` started together.
///
/// ```no_run
/// use std::sync::Arc;
/// use tpgm_candle::distributed::{Communicator, Mpi};
/// let communicator = Arc::new(Mpi::world()?);
/// println!("rank {} of {}", communicator.rank(), communicator.size());
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
///
/// Tensors are on the CPU; those on a GPU are brought there and back, piece by piece. Each element of a mean is computed on one
/// rank, in order of rank, in f32 (f64 for f64 tensors), and sent to the others: the bits are those of
/// [`InProcess`](super::InProcess), for any element type. Of `n` ranks each sends `2 (n - 1) / n` times the size of the tensors for a
/// mean, and half of that to reduce or to share, and about 17 bytes to each other rank per call. It needs 32 MiB for what is
/// on its way.
///
/// No call waits for ever. A rank that does not come within the [`timeout`](Mpi::timeout) is named on all others, which get an
/// error. So is one whose process has ended, killed or not: where others run on its machine, under Linux, within a second. That is
/// if whoever started the ranks lets the others live: Open MPI's `mpirun` kills them at once unless it is told
/// `--enable-recovery`; `docs/ranks.md` has what happens then. After a rank was lost the program ends without `MPI_Finalize`,
/// which would wait for it.
pub struct Mpi {
    group: Mutex<Group>,
    rank: usize,
    size: usize,
    sent: Arc<AtomicU64>,
}

impl Mpi {
    /// Joins all processes of this start; they call this together, and wait for each other. Begins MPI if the program has not,
    /// and ends it when the process ends. May be called again for another group, whose calls are independent.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] if MPI cannot be used, or not all processes call this within 10 minutes: which ones is not known before there
    /// is a group; [`Error::Ranks`] on all ranks if one has another version of this crate than rank 0, or
    /// is lost meanwhile, which names it.
    pub fn world() -> Result<Self> {
        let problem = |reason| Error::from(StartProblem::Mpi { reason });
        let mut group = Group::new(Duration::from_secs(600)).map_err(problem)?;
        let (rank, size) = (group.channel.rank, group.channel.size);
        // The version stands first, whatever another version has behind it; and every version tells that it has heard all others,
        // so that all of them know.
        let (version, process) = (env!("CARGO_PKG_VERSION"), Process::own());
        let own =
            format!("{version}\n{}", serde_json::to_string(&process).expect("it holds strings and numbers"));
        group.processes.extend(process.map(|process| (rank, process)));
        let mut versions = BTreeMap::from([(rank, version.to_owned())]);
        group.join(&Arc::new(own.into_bytes()), |other, said| {
            let said = String::from_utf8_lossy(said);
            let (theirs, process) = said.split_once('\n').unwrap_or((&said, ""));
            versions.insert(other, theirs.to_owned());
            serde_json::from_str(process).ok().flatten()
        })?;
        if let Some(rank) = unlike_the_first(&versions) {
            let what = "version of tpgm-candle".to_owned();
            return Err(RankProblem::Unequal { what, rank }.into());
        }
        let sent = group.sent.clone();
        Ok(Self { group: Mutex::new(group), rank, size, sent })
    }

    /// Sets how long a call of this rank waits for the others, whenever it waits. After that it fails with
    /// [`RankProblem::Silent`], which names them, and so do all calls of all ranks: the group has ended. A quarter more, at most 5
    /// seconds, goes by until ranks know who is there, and up to as long again where a rank is lost in the middle of a call that
    /// others have come through: their next call says so. Default 10 minutes. What a rank does alone between two calls, an evaluation
    /// for example, must take less.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.group.lock().unwrap_or_else(std::sync::PoisonError::into_inner).timeout = timeout;
        self
    }

    /// Bytes that this rank has sent to others so far.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn meet(&self, call: &Described, tensors: &[Named<'_>]) -> Result<(), RankProblem> {
        let mut group = match self.group.try_lock() {
            Ok(group) => group,
            Err(TryLockError::Poisoned(group)) => group.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let reason = "two of its threads made a call at the same time".to_owned();
                return Err(RankProblem::Refused { rank: self.rank, reason });
            }
        };
        group.meet(call, |group| exchange(group, call.kind, tensors, &call.owners))
    }

    fn meet_with(&self, kind: Kind, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        let fits = || -> Result<()> {
            check_owners(kind.name(), self.rank, self.size, tensors.len(), owners)?;
            tensors.iter().try_for_each(|(name, tensor)| check_tensor(name, tensor))?;
            // One that shares memory with another would be changed twice.
            let mut seen = Apart::default();
            match tensors.iter().find(|(_, tensor)| !seen.insert(tensor)) {
                None => Ok(()),
                Some((name, _)) => {
                    Err(RankProblem::Shared { tensor: (*name).to_owned(), rank: self.rank }.into())
                }
            }
        };
        if let Err(error) = fits() {
            self.refuse(&error.to_string())?;
            return Err(error);
        }
        Ok(self.meet(&Described::new(kind, tensors, owners), tensors)?)
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
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
        Ok(self.meet(&Described::new(Kind::Barrier, &[], &[]), &[])?)
    }

    fn refuse(&self, reason: &str) -> Result<()> {
        match self.meet(&Described::refuse(reason), &[]) {
            Err(problem @ (RankProblem::Left { .. } | RankProblem::Silent { .. })) => Err(problem.into()),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

/// The first rank that has another version than rank 0.
fn unlike_the_first(versions: &BTreeMap<usize, String>) -> Option<usize> {
    let (_, first) = versions.first_key_value()?;
    versions.iter().find(|(_, version)| *version != first).map(|(rank, _)| *rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rank_with_another_version_than_rank_0_is_named() {
        let named = |versions: &[&str]| {
            unlike_the_first(&versions.iter().map(|version| (*version).to_owned()).enumerate().collect())
        };
        assert_eq!(named(&["1", "1", "1"]), None);
        assert_eq!(named(&["1", "2", "1"]), Some(1));
        assert_eq!(named(&["1", "1", "2"]), Some(2));
        assert_eq!(named(&["2", "1", "1"]), Some(1));
    }
}
