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

use serde::{Deserialize, Serialize};

use super::super::FNV_OFFSET;
use super::super::call::{Described, Kind, verdict};
use super::super::fnv;
use super::super::problem::RankProblem;
use super::library::{Channel, Tag, Transfer, lose};
use super::process::Process;

/// How long a rank that leaves tries to say so.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often a rank that waits looks whether the processes of others live.
const LOOK: Duration = Duration::from_millis(100);

/// The calls of a rank.
pub(super) struct Group {
    pub(super) channel: Channel,
    pub(super) timeout: Duration,
    pub(super) sent: Arc<AtomicU64>,
    /// By rank, where they can be known.
    pub(super) processes: BTreeMap<usize, Process>,
    /// Calls that are over.
    over: u64,
    /// Whether the last of them happened.
    happened: bool,
    /// Whether this rank has told the others of the call under way.
    came: bool,
    /// Why there are no more calls.
    ended: Option<RankProblem>,
    /// What ranks said that make no more calls.
    ends: BTreeMap<usize, End>,
    /// This rank has said so.
    told: bool,
}

/// The last message of a rank.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    over: u64,
    happened: bool,
    came: bool,
    /// The rank that left, if that is why.
    left: Option<usize>,
    /// Else those that it waited for in vain.
    waiting: Vec<usize>,
    /// Of these, the ones whose process is gone.
    gone: Vec<usize>,
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
    /// Begins messages between all processes. What they say first is up to the caller: see [`joined`](Self::joined).
    pub(super) fn join(timeout: Duration) -> Result<Self, String> {
        let channel = Channel::world()?;
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

    fn rank(&self) -> usize {
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

    /// The first call, in which ranks tell each other their versions, is over.
    pub(super) fn joined(&mut self) {
        self.over = 1;
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
    pub(super) fn described(&mut self, own: &Arc<Vec<u8>>) -> Result<Vec<(usize, Vec<u8>)>, Stop> {
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

    /// Those of some ranks whose processes have ended.
    fn gone(&self, ranks: &[usize]) -> Vec<usize> {
        let Some(here) = self.processes.get(&self.rank()) else { return Vec::new() };
        let gone = |rank: &usize| self.processes.get(rank).is_some_and(|process| process.is_gone(here));
        ranks.iter().copied().filter(gone).collect()
    }

    /// Takes in what ranks say that make no more calls. Those that came through the call under way do not end it.
    fn hear(&mut self) -> Result<(), Stop> {
        self.listen()?;
        let mut missing = self.ends.values().filter(|end| end.over <= self.over).peekable();
        if missing.peek().is_none() {
            return Ok(());
        }
        Err(missing.find_map(|end| end.left).map_or(Stop::Ended, Stop::Left))
    }

    fn listen(&mut self) -> Result<(), String> {
        while let Some((rank, len)) = self.channel.probe(None, Tag::End)? {
            let mut message = self.channel.receive(rank, Tag::End, len)?;
            // It is there.
            while !message.is_done()? {
                thread::yield_now();
            }
            let end = serde_json::from_slice(&message.take())
                .map_err(|error| format!("rank {rank} ended with what is no message: {error}"))?;
            self.ends.insert(rank, end);
        }
        Ok(())
    }

    /// Ends the group. The call under way is over nevertheless if some rank came through it.
    fn stop(&mut self, kind: Kind, stop: Stop) -> Result<(), RankProblem> {
        let problem = match stop {
            Stop::Failed(reason) => {
                let problem = RankProblem::Failed { call: kind.name(), rank: self.rank(), reason };
                self.tell(Some(self.rank()), Vec::new());
                problem
            }
            Stop::Left(rank) => {
                self.tell(Some(rank), Vec::new());
                RankProblem::Left { rank }
            }
            Stop::Ended => self.count(Vec::new()),
            Stop::Late(late) => self.count(late),
        };
        self.ended = Some(problem.clone());
        let through = self.ends.values().find(|end| end.over > self.over);
        match through {
            Some(end) if end.happened => Ok(()),
            _ => Err(problem),
        }
    }

    /// Finds out with those that are there who is not.
    fn count(&mut self, late: Vec<usize>) -> RankProblem {
        lose();
        self.tell(None, late.clone());
        let begun = Instant::now();
        // Whoever waits in a call hears of it at once. A rank that comes too late has nobody to ask.
        let while_there = if self.came { grace(self.timeout) } else { Duration::ZERO };
        let others: Vec<usize> = self.others().collect();
        let gone = self.gone(&others);
        // What was sent before is taken in once at least.
        let mut heard = self.listen().is_ok();
        while heard && begun.elapsed() < while_there {
            let silent = |rank: &&usize| !self.ends.contains_key(rank) && !gone.contains(rank);
            if !others.iter().any(|rank| silent(&rank)) {
                break;
            }
            pause(begun);
            heard = self.listen().is_ok();
        }
        // Who has said something and ended then is not why.
        let without_a_word = gone.into_iter().filter(|rank| !self.ends.contains_key(rank));
        let told = self.ends.values().flat_map(|end| end.gone.iter().copied());
        let gone = without_a_word.chain(told).min();
        if let Some(rank) = self.ends.values().find_map(|end| end.left) {
            return RankProblem::Left { rank };
        }
        if let Some(rank) = gone {
            return RankProblem::Left { rank };
        }
        let awaited: BTreeSet<usize> =
            self.ends.values().flat_map(|end| end.waiting.iter().copied()).chain(late).collect();
        let there = |rank: &usize| match *rank == self.rank() {
            true => self.came,
            false => self.ends.get(rank).is_some_and(|end| end.came),
        };
        let absent: Vec<usize> = awaited.iter().copied().filter(|rank| !there(rank)).collect();
        let ranks = if absent.is_empty() { awaited.into_iter().collect() } else { absent };
        RankProblem::Silent { ranks, waited: self.timeout }
    }

    /// Tells all others that this rank makes no more calls, once.
    fn tell(&mut self, left: Option<usize>, waiting: Vec<usize>) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let gone = self.gone(&waiting);
        let (over, happened, came) = (self.over, self.happened, self.came);
        let end = End { over, happened, came, left, waiting, gone };
        let bytes = Arc::new(serde_json::to_vec(&end).expect("it holds numbers"));
        let sent = self.others().map(|other| self.send(other, Tag::End, &bytes));
        let mut sent: Vec<Transfer> = sent.filter_map(Result::ok).collect();
        let begun = Instant::now();
        // Whom it does not reach by then is gone.
        while !sent.iter_mut().all(|transfer| transfer.is_done().unwrap_or(true))
            && begun.elapsed() < FAREWELL
        {
            pause(begun);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let left = match &self.ended {
            Some(RankProblem::Left { rank }) => *rank,
            _ => self.rank(),
        };
        self.came = false;
        self.tell(Some(left), Vec::new());
    }
}

/// How long after a timeout ranks that are there have time to say so.
fn grace(timeout: Duration) -> Duration {
    (timeout / 4).clamp(Duration::from_millis(200), Duration::from_secs(5))
}

/// Between two looks: the processor is somebody else's where ranks share it.
fn pause(begun: Instant) {
    match begun.elapsed() > Duration::from_millis(1) {
        true => thread::sleep(Duration::from_micros(50)),
        false => thread::yield_now(),
    }
}
