//! How a group ends: a rank leaves, or is lost, and those that are left find out who.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::call::Kind;
use super::super::problem::RankProblem;
use super::group::{Group, LOOK, Stop, pause};
use super::library::{Tag, Transfer, lose};

/// How long a rank that leaves tries to say so.
const FAREWELL: Duration = Duration::from_secs(1);

/// The last message of a rank.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) over: u64,
    happened: bool,
    came: bool,
    /// The rank that left, if that is why.
    left: Option<usize>,
    /// Else those that it waited for in vain.
    waiting: Vec<usize>,
    /// Of these, the ones whose process is gone.
    gone: Vec<usize>,
}

impl Group {
    /// Those of some ranks whose processes have ended.
    pub(super) fn gone(&self, ranks: &[usize]) -> Vec<usize> {
        let Some(here) = self.processes.get(&self.rank()) else { return Vec::new() };
        let gone = |rank: &usize| self.processes.get(rank).is_some_and(|process| process.is_gone(here));
        ranks.iter().copied().filter(gone).collect()
    }

    /// Takes in what ranks say that make no more calls. Those that came through the call under way do not end it.
    pub(super) fn hear(&mut self) -> Result<(), Stop> {
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
            // It is there, or all but.
            let begun = Instant::now();
            while !message.is_done()? {
                if begun.elapsed() > FAREWELL {
                    return Err(format!("the last message of rank {rank} began and did not end"));
                }
                thread::yield_now();
            }
            let end = serde_json::from_slice(&message.take())
                .map_err(|error| format!("rank {rank} ended with what is no message: {error}"))?;
            self.ends.insert(rank, end);
        }
        Ok(())
    }

    /// Ends the group. The call under way is over nevertheless if some rank came through it.
    pub(super) fn stop(&mut self, kind: Kind, stop: Stop) -> Result<(), RankProblem> {
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
        let others: Vec<usize> = self.others().collect();
        let (begun, mut next, mut gone) = (Instant::now(), Duration::ZERO, Vec::new());
        loop {
            let waited = begun.elapsed();
            if waited >= next {
                gone = self.gone(&others);
                next = waited + LOOK;
            }
            // Behind that look, for what those that are gone had sent before.
            let heard = self.listen().is_ok();
            // Whoever waits in a call hears of it at once. One that nobody misses may be through the call, and works; it knows
            // whether the call happened, and says so when it makes its next one.
            let missed = |rank: &usize| {
                late.contains(rank) || self.ends.values().any(|end| end.waiting.contains(rank))
            };
            let time = |rank: &usize| if missed(rank) { grace(self.timeout) } else { self.timeout };
            let silent = |rank: &usize| !self.ends.contains_key(rank) && !gone.contains(rank);
            // A rank that comes too late has nobody to ask.
            if !heard || !self.came || !others.iter().any(|rank| silent(rank) && waited < time(rank)) {
                break;
            }
            pause(begun);
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
        self.came = false;
        self.tell(Some(self.rank()), Vec::new());
        // One that was killed after the last call is missed by nobody but `MPI_Finalize`.
        let others: Vec<usize> = self.others().collect();
        if !self.gone(&others).is_empty() {
            lose();
        }
    }
}

/// How long after a timeout ranks that were awaited have time to say that they are there.
fn grace(timeout: Duration) -> Duration {
    (timeout / 4).clamp(Duration::from_millis(200), Duration::from_secs(5))
}
