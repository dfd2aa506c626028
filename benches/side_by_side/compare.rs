//! Interleaved rounds of one method's contestants.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tpgm_benches::contention::Ticks;
use tpgm_benches::data::{Data, Parts};
use tpgm_benches::floors::Floor;
use tpgm_benches::report::{OURS, Row};
use tpgm_benches::{Method, Ours, Peers, Samples, Target};
use tpgm_core::{DType, ParamSet};

use crate::memory::peak;
use crate::progress;

/// Rounds before the measured ones: allocation, first steps, page faults.
const WARM_UP: usize = 3;
/// Before every contestant, for the threads of the one before to go to sleep.
const PAUSE: Duration = Duration::from_millis(20);
/// The most parameters of a model whose state is counted.
const STATE_COUNTED: usize = 200_000_000;
/// Name of the device that works in the host's memory.
const CPU: &str = "cpu";

/// What all methods of a run share.
pub(crate) struct Bench<'t, T: Target> {
    target: &'t mut T,
    set: ParamSet,
    dtype: DType,
    parts: Parts,
    data: Data<T::Backend>,
    /// Of every floor of the target, over all methods so far.
    floor_samples: Vec<Samples>,
    peers: Vec<Peers>,
    rounds: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Floor(Floor),
    Ours,
    Peer(&'static str),
}

struct Contestant {
    who: Who,
    samples: Samples,
    failed: bool,
}

impl Contestant {
    /// As in rows.
    fn name(&self) -> &str {
        match self.who {
            Who::Floor(floor) => floor.name(),
            Who::Ours => OURS,
            Who::Peer(peer) => peer,
        }
    }
}

impl<'t, T: Target> Bench<'t, T> {
    /// Makes those parts of the data of `set` that the methods need. All tensors are of type `dtype`.
    ///
    /// # Errors
    ///
    /// If the device has no memory for it.
    pub(crate) fn new(
        target: &'t mut T,
        set: ParamSet,
        dtype: DType,
        parts: Parts,
        rounds: usize,
        peers: Vec<Peers>,
    ) -> Result<Self> {
        Ok(Self {
            data: Data::with(target.backend(), &set, parts)?,
            floor_samples: vec![Samples::default(); target.floors().len()],
            target,
            set,
            dtype,
            parts,
            peers,
            rounds,
        })
    }

    /// Runs all contestants of one method and returns a row for each but the floors; with `parts`, also one for each part
    /// of ours.
    ///
    /// # Errors
    ///
    /// If our side fails. A peer that fails is reported and left out.
    pub(crate) fn compare(&mut self, method: &Method, parts: bool) -> Result<Vec<Row>> {
        if self.parts.start {
            self.data.restore_weights()?;
        }
        let mut ours = Ours::new(method, self.target.backend(), &self.set, &self.data)?;
        let mut launches = None;
        let mut contestants = self.contestants(method);
        let n = contestants.len();
        let (start, ticks) = (Instant::now(), self.ticks());
        for round in 0..WARM_UP + self.rounds {
            for i in 0..n {
                let contestant = &mut contestants[(i + round) % n];
                if contestant.failed {
                    continue;
                }
                sleep(PAUSE);
                let seconds = match contestant.who {
                    Who::Floor(floor) => self.target.floor(floor)?,
                    Who::Ours => {
                        let seconds;
                        (seconds, launches) =
                            self.ours(method, &mut ours).with_context(|| method.name.to_owned())?;
                        seconds
                    }
                    Who::Peer(peer) => match self.peer(peer).and_then(|peers| peers.run(peer)) {
                        Ok(seconds) => seconds,
                        Err(error) => {
                            progress(&format!("  {peer} is left out: {error:#}"));
                            contestant.failed = true;
                            continue;
                        }
                    },
                };
                if round >= WARM_UP {
                    contestant.samples.push(seconds);
                }
            }
        }
        let others = self.others_since(ticks);
        let extra =
            contestants.iter().map(|c| self.extra(method, &mut ours, c)).collect::<Result<Vec<_>>>()?;
        // Counting copies the state: a large model would have to fit twice.
        let state = (self.set.numel() <= STATE_COUNTED).then(|| ours.state_bytes()).transpose()?;
        progress(&format!("  {:.0} s", start.elapsed().as_secs_f64()));
        for contestant in &contestants {
            if let Who::Peer(peer) = contestant.who
                && !contestant.failed
            {
                self.peer(peer)?.drop_peer(peer)?;
            }
        }
        let mut rows = self.rows(method, &contestants);
        let params = self.set.numel() as f64;
        for row in &mut rows {
            row.others = others;
            row.launches = launches.filter(|_| row.contestant == OURS);
            row.state_per_param = state.filter(|_| row.contestant == OURS).map(|state| state as f64 / params);
            let extra =
                contestants.iter().zip(&extra).find(|(contestant, _)| contestant.name() == row.contestant);
            row.extra_per_param = extra.and_then(|(_, extra)| *extra).map(|bytes| bytes as f64 / params);
        }
        if parts {
            rows.append(&mut self.parts(method, &mut ours)?);
        }
        Ok(rows)
    }

    /// Seconds and launches of one round of ours.
    fn ours(&mut self, method: &Method, ours: &mut Ours<T::Backend>) -> Result<(f64, Option<usize>)> {
        let Self { target, data, .. } = self;
        ours.prepare(data)?;
        let before = target.launches();
        let seconds = target
            .time(&mut || method.operation.calls().iter().try_for_each(|&call| ours.call(call, data)))?;
        let launches = target.launches().zip(before).map(|(after, before)| after - before);
        Ok((seconds, launches))
    }

    /// Bytes of memory that one more round of a contestant needs at its peak, where that can be said: on the host.
    fn extra(
        &mut self,
        method: &Method,
        ours: &mut Ours<T::Backend>,
        contestant: &Contestant,
    ) -> Result<Option<u64>> {
        if self.target.device() != CPU || contestant.failed {
            return Ok(None);
        }
        match contestant.who {
            Who::Floor(_) => Ok(None),
            Who::Ours => {
                let (round, extra) = peak(std::process::id(), || self.ours(method, ours));
                round.map(|_| extra)
            }
            Who::Peer(peer) => {
                let peers = self.peer(peer)?;
                let (round, extra) = peak(peers.process(), || peers.run(peer));
                round.map(|_| extra)
            }
        }
    }

    /// A row for each part of a round of ours: the kernels of a device, the calls elsewhere.
    fn parts(&mut self, method: &Method, ours: &mut Ours<T::Backend>) -> Result<Vec<Row>> {
        let mut parts: Vec<(&str, Samples)> = Vec::new();
        for _ in 0..self.rounds {
            let Self { target, data, .. } = &mut *self;
            ours.prepare(data)?;
            let mut i = 0;
            for &call in method.operation.calls() {
                for (name, seconds) in target.parts(call.name(), &mut || ours.call(call, data))? {
                    // Every round has the same parts in the same order.
                    if i == parts.len() {
                        parts.push((name, Samples::default()));
                    }
                    parts[i].1.push(seconds);
                    i += 1;
                }
            }
        }
        let row =
            |(name, samples): &(&str, Samples)| Row::new(method.name, &format!("{OURS}: {name}"), samples);
        Ok(parts.iter().map(row).collect())
    }

    fn contestants(&mut self, method: &Method) -> Vec<Contestant> {
        let floors = self.target.floors().iter().copied().map(Who::Floor);
        let mut who: Vec<_> = floors.chain([Who::Ours]).collect();
        for &peer in method.peers {
            match self.peer(peer).and_then(|peers| peers.prepare(peer)) {
                Ok(()) => who.push(Who::Peer(peer)),
                Err(error) if !self.peers.is_empty() => progress(&format!("  {peer} is left out: {error:#}")),
                Err(_) => {}
            }
        }
        who.into_iter().map(|who| Contestant { who, samples: Samples::default(), failed: false }).collect()
    }

    /// The process that has a peer.
    fn peer(&mut self, name: &str) -> Result<&mut Peers> {
        let has = |peers: &&mut Peers| peers.hello().peers.iter().any(|peer| peer == name);
        self.peers
            .iter_mut()
            .find(has)
            .context("not asked for, or without the checkout of its code (--vs, --ftp, --tpgm)")
    }

    fn rows(&mut self, method: &Method, contestants: &[Contestant]) -> Vec<Row> {
        let samples = |who| {
            contestants.iter().find_map(|c| (c.who == who).then(|| c.samples.clone())).unwrap_or_default()
        };
        let ours = samples(Who::Ours);
        for (floor, all) in self.target.floors().iter().zip(&mut self.floor_samples) {
            all.extend(&samples(Who::Floor(*floor)));
        }
        let params = self.set.numel();
        contestants
            .iter()
            .filter(|contestant| !contestant.failed)
            .filter_map(|contestant| match contestant.who {
                Who::Floor(_) => None,
                Who::Ours => {
                    let bytes = method.bytes(self.dtype);
                    // Both bandwidths are bytes over seconds; the share is paired round by round.
                    let share = |floor: Floor| {
                        let floor_bytes = floor.bytes_per_element() * self.target.floor_elements();
                        let seconds = samples(Who::Floor(floor));
                        (!seconds.is_empty())
                            .then(|| (bytes * params) as f64 / floor_bytes as f64 * seconds.ratio_to(&ours))
                    };
                    let mut row = Row::new(method.name, OURS, &ours).moving(bytes, params);
                    row.of_copy = share(Floor::Copy);
                    row.of_triad = share(Floor::Triad);
                    row.of_in_place = share(Floor::InPlace);
                    Some(row)
                }
                Who::Peer(peer) => {
                    let mut row = Row::new(method.name, peer, &contestant.samples);
                    row.times_ours = Some(contestant.samples.ratio_to(&ours));
                    Some(row)
                }
            })
            .collect()
    }

    /// A row for each floor, over the rounds of all methods so far.
    pub(crate) fn floor_rows(&self) -> Vec<Row> {
        let elements = self.target.floor_elements();
        self.target
            .floors()
            .iter()
            .zip(&self.floor_samples)
            .map(|(floor, samples)| {
                Row::new("floor", floor.name(), samples).moving(floor.bytes_per_element(), elements)
            })
            .collect()
    }

    fn ticks(&self) -> Option<Ticks> {
        Ticks::now(self.peers.iter().map(Peers::process))
    }

    /// Share of the processors that others used since `start`.
    fn others_since(&self, start: Option<Ticks>) -> Option<f64> {
        Some(self.ticks()?.others_since(start?))
    }

    /// Version of PyTorch, if peers ran.
    pub(crate) fn torch(&self) -> Option<&str> {
        let torch = self.peers.iter().map(Peers::hello).find(|hello| hello.program == "torch");
        torch.map(|hello| hello.version.as_str())
    }
}
