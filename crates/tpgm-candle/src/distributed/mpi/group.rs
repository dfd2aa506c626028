//! How processes make a call together, and what becomes of the group when one of them does not.
//!
//! In a call every rank tells every other what it calls (16 bytes). If all call the same, they exchange tensors and tell each
//! other when they have everything; so a call is over for one rank only if all ranks have come through it. A rank that waits
//! too long, or leaves, or sees that another one's process is gone, says so to all (an [`End`]), with the number of its last call:
//! whoever hears of a rank that came through the call under way knows that it has come through itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::FNV_OFFSET;
use super::super::call::{Described, Kind, verdict};
use super::super::fnv;
use super::super::problem::RankProblem;
use super::ending::End;
use super::library::{Channel, Tag, Transfer};
use super::process::Process;

/// How often a rank that waits looks whether the processes of others live.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// The calls of a rank.
pub(super) struct Group {
    pub(super) channel: Channel,
    pub(super) timeout: Duration,
    pub(super) sent: Arc<AtomicU64>,
    /// By rank, where they can be known.
    pub(super) processes: BTreeMap<usize, Process>,
    /// Calls that are over.
    pub(super) over: u64,
    /// Whether the last of them happened.
    pub(super) happened: bool,
    /// Whether this rank has told the others of the call under way.
    pub(super) came: bool,
    /// Why there are no more calls.
    pub(super) ended: Option<RankProblem>,
    /// What ranks said that make no more calls.
    pub(super) ends: BTreeMap<usize, End>,
    /// This rank has said so.
    pub(super) told: bool,
}

/// Why a rank waits no longer.
pub(super) enum Stop {
    /// Something failed on this rank.
    Failed(String),
    /// A rank left.
    Left(usize),
    /// Another rank gave up.
    Ended,
    /// These did not come in time.
    Late(Vec<usize>),
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

impl Group {
    /// Begins messages between all processes, which [`join`](Self::join) then.
    pub(super) fn new(timeout: Duration) -> Result<Self, String> {
        let channel = Channel::world(timeout)?;
        let sent = Arc::new(AtomicU64::new(0));
        Ok(Self {
            channel,
            timeout,
            sent,
            processes: BTreeMap::new(),
            over: 0,
            happened: true,
            came: false,
            ended: None,
            ends: BTreeMap::new(),
            told: false,
        })
    }

    pub(super) fn rank(&self) -> usize {
        self.channel.rank
    }

    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank();
        (0..self.channel.size).filter(move |other| *other != rank)
    }

    pub(super) fn send(&self, to: usize, tag: Tag, bytes: &Arc<Vec<u8>>) -> Result<Transfer, String> {
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.channel.send(to, tag, bytes.clone())
    }

    /// The first call, in which ranks tell each other who they are. `hear` gets what each other one said, and finds its process
    /// there. It is over for all ranks or for none, as any other call.
    pub(super) fn join(
        &mut self,
        own: &Arc<Vec<u8>>,
        mut hear: impl FnMut(usize, &[u8]) -> Option<Process>,
    ) -> Result<(), RankProblem> {
        self.came = true;
        let met = self.described(own).and_then(|others| {
            for (rank, said) in others {
                self.processes.extend(hear(rank, &said).map(|process| (rank, process)));
            }
            self.tell_done()
        });
        if let Err(stop) = met {
            self.stop(Kind::Barrier, stop)?;
        }
        self.over = 1;
        Ok(())
    }

    /// Makes a call. `exchange` is what happens to tensors when all make the same one.
    pub(super) fn meet(
        &mut self,
        call: &Described,
        exchange: impl FnOnce(&mut Self) -> Result<(), Stop>,
    ) -> Result<(), RankProblem> {
        if let Some(problem) = &self.ended {
            return Err(problem.clone());
        }
        self.came = false;
        let outcome = self.agree(call).and_then(|same| match same {
            Ok(()) if call.kind == Kind::Barrier => Ok(Ok(())),
            Ok(()) => exchange(self).and_then(|()| self.tell_done()).map(Ok),
            problem => Ok(problem),
        });
        match outcome {
            Ok(outcome) => {
                (self.over, self.happened) = (self.over + 1, outcome.is_ok());
                outcome
            }
            Err(stop) => self.stop(call.kind, stop),
        }
    }

    /// Whether all ranks make one call.
    fn agree(&mut self, call: &Described) -> Result<Result<(), RankProblem>, Stop> {
        self.hear()?;
        let json = Arc::new(serde_json::to_vec(call).expect("it holds strings and numbers"));
        let digest = fnv(FNV_OFFSET, &json);
        let refuses = u64::from(call.kind == Kind::Refuse);
        let own = Arc::new([digest.to_le_bytes(), refuses.to_le_bytes()].concat());
        self.came = true;
        let theirs = self.all_to_all(Tag::Call, &own)?;
        if refuses == 0 && theirs.iter().all(|(_, other)| *other == *own) {
            return Ok(Ok(()));
        }
        // Something differs, or is refused: now what was called is told in full.
        let words = self.described(&json)?;
        let mut calls = BTreeMap::from([(self.rank(), call.clone())]);
        for (rank, json) in words {
            let theirs = serde_json::from_slice(&json)
                .map_err(|error| Stop::Failed(format!("rank {rank} said what is no call: {error}")))?;
            calls.insert(rank, theirs);
        }
        Ok(verdict(&calls.values().collect::<Vec<_>>()))
    }

    fn tell_done(&mut self) -> Result<(), Stop> {
        self.all_to_all(Tag::Done, &Arc::new(vec![1])).map(drop)
    }

    /// Gives bytes to all other ranks and receives as many from each.
    fn all_to_all(&mut self, tag: Tag, own: &Arc<Vec<u8>>) -> Result<Vec<(usize, Vec<u8>)>, Stop> {
        let mut transfers = Vec::new();
        for other in self.others() {
            transfers.push(self.channel.receive(other, tag, own.len())?);
        }
        for other in self.others() {
            transfers.push(self.send(other, tag, own)?);
        }
        self.finish(&mut transfers)?;
        let received = transfers.iter_mut().take(self.channel.size - 1);
        Ok(received.map(|transfer| (transfer.peer, transfer.take())).collect())
    }

    /// Gives bytes to all other ranks and receives any number from each.
    fn described(&mut self, own: &Arc<Vec<u8>>) -> Result<Vec<(usize, Vec<u8>)>, Stop> {
        let mut transfers = Vec::new();
        for other in self.others() {
            transfers.push(self.send(other, Tag::Description, own)?);
        }
        let mut unknown: BTreeSet<usize> = self.others().collect();
        let mut received = Vec::new();
        self.until(|channel| {
            for rank in unknown.clone() {
                if let Some((_, len)) = channel.probe(Some(rank), Tag::Description)? {
                    received.push(channel.receive(rank, Tag::Description, len)?);
                    unknown.remove(&rank);
                }
            }
            Ok(unknown.iter().copied().collect())
        })?;
        self.finish(&mut received)?;
        self.finish(&mut transfers)?;
        Ok(received.iter_mut().map(|transfer| (transfer.peer, transfer.take())).collect())
    }

    /// Waits until messages have arrived.
    pub(super) fn finish(&mut self, transfers: &mut [Transfer]) -> Result<(), Stop> {
        self.until(|_| {
            let mut awaited = Vec::new();
            for transfer in transfers.iter_mut() {
                if !transfer.is_done()? {
                    awaited.push(transfer.peer);
                }
            }
            Ok(awaited)
        })
    }

    /// Waits until nobody is awaited any more.
    fn until(&mut self, mut awaited: impl FnMut(&Channel) -> Result<Vec<usize>, String>) -> Result<(), Stop> {
        let (begun, mut next) = (Instant::now(), LOOK);
        loop {
            let mut late = awaited(&self.channel)?;
            if late.is_empty() {
                return Ok(());
            }
            self.hear()?;
            let mut missing = false;
            if begun.elapsed() >= next {
                // What a process sent before it ended may still arrive, and is taken in first.
                missing = !self.gone(&late).is_empty() && awaited(&self.channel)? == late;
                next = begun.elapsed() + LOOK;
            }
            if missing || begun.elapsed() >= self.timeout {
                late.sort_unstable();
                late.dedup();
                return Err(Stop::Late(late));
            }
            pause(begun);
        }
    }
}

/// Between two looks: the processor is somebody else's where ranks share it.
pub(super) fn pause(begun: Instant) {
    match begun.elapsed() > Duration::from_millis(1) {
        true => thread::sleep(Duration::from_micros(50)),
        false => thread::yield_now(),
    }
}
