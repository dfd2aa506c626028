//! Interleaved rounds of one method's contestants.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tpgm_benches::data::Data;
use tpgm_benches::floors::{Floor, Floors};
use tpgm_benches::{Method, Model, Ours, Peers, Samples};
use tpgm_core::ParamSet;

use crate::contention::Ticks;
use crate::progress;
use crate::report::Row;

/// Rounds before the measured ones: allocation, first steps, page faults.
const WARM_UP: usize = 3;
/// Before every contestant, for the threads of the one before to go to sleep.
const PAUSE: Duration = Duration::from_millis(20);
/// Floors need arrays far larger than any cache, and no larger: 256 MiB each.
const FLOOR_ELEMENTS: usize = 1 << 26;

/// What all methods of a run share.
pub(crate) struct Bench {
    set: ParamSet,
    data: Data,
    pool: rayon::ThreadPool,
    floors: Floors,
    floor_samples: [Samples; Floor::ALL.len()],
    peers: Option<Peers>,
    threads: usize,
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

impl Bench {
    /// Makes the data of `model`.
    ///
    /// # Errors
    ///
    /// If `threads` threads cannot be started.
    pub(crate) fn new(model: Model, threads: usize, rounds: usize, peers: Option<Peers>) -> Result<Self> {
        let set = model.param_set()?;
        Ok(Self {
            data: Data::new(set.tensors()),
            pool: rayon::ThreadPoolBuilder::new().num_threads(threads).build()?,
            floors: Floors::new(set.numel().min(FLOOR_ELEMENTS), threads),
            floor_samples: Default::default(),
            set,
            peers,
            threads,
            rounds,
        })
    }

    /// Runs all contestants of one method and returns a row for each but the floors.
    ///
    /// # Errors
    ///
    /// If our side fails. A peer that fails is reported and left out.
    pub(crate) fn compare(&mut self, method: &Method) -> Result<Vec<Row>> {
        self.data.restore_weights();
        let mut ours = Ours::new(method, &self.set, self.threads)?;
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
                    Who::Floor(floor) => self.floor(floor),
                    Who::Ours => ours.round(&mut self.data).with_context(|| method.name.to_owned())?,
                    Who::Peer(peer) => match self.peer(|peers| peers.run(peer)) {
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
        progress(&format!("  {:.0} s", start.elapsed().as_secs_f64()));
        for contestant in &contestants {
            if let Who::Peer(peer) = contestant.who
                && !contestant.failed
            {
                self.peer(|peers| peers.drop_peer(peer))?;
            }
        }
        let mut rows = self.rows(method, &contestants);
        rows.iter_mut().for_each(|row| row.others = others);
        Ok(rows)
    }

    fn contestants(&mut self, method: &Method) -> Vec<Contestant> {
        let floors = Floor::ALL.map(Who::Floor);
        let mut who: Vec<_> = floors.into_iter().chain([Who::Ours]).collect();
        if let Some(peers) = &mut self.peers {
            for &peer in method.peers {
                let ready = match peers.hello().peers.iter().any(|name| name == peer) {
                    true => peers.prepare(peer),
                    false => Err(anyhow!("give the checkout of its code (--ftp, --tpgm)")),
                };
                match ready {
                    Ok(()) => who.push(Who::Peer(peer)),
                    Err(error) => progress(&format!("  {peer} is left out: {error:#}")),
                }
            }
        }
        who.into_iter().map(|who| Contestant { who, samples: Samples::default(), failed: false }).collect()
    }

    fn floor(&mut self, floor: Floor) -> f64 {
        let floors = &mut self.floors;
        self.pool.install(|| {
            let start = Instant::now();
            floors.run(floor);
            start.elapsed().as_secs_f64()
        })
    }

    fn peer<T>(&mut self, call: impl FnOnce(&mut Peers) -> Result<T>) -> Result<T> {
        call(self.peers.as_mut().context("no peer process")?)
    }

    fn rows(&mut self, method: &Method, contestants: &[Contestant]) -> Vec<Row> {
        let samples = |who| {
            contestants.iter().find_map(|c| (c.who == who).then(|| c.samples.clone())).unwrap_or_default()
        };
        let ours = samples(Who::Ours);
        for (floor, all) in Floor::ALL.into_iter().zip(&mut self.floor_samples) {
            all.extend(&samples(Who::Floor(floor)));
        }
        contestants
            .iter()
            .filter(|contestant| !contestant.failed)
            .filter_map(|contestant| match contestant.who {
                Who::Floor(_) => None,
                Who::Ours => {
                    let bytes = method.traffic.memory();
                    // Both bandwidths are bytes over seconds; the share is paired round by round.
                    let share = |floor: Floor| {
                        let bytes = (bytes * self.set.numel()) as f64 / self.floors.bytes(floor) as f64;
                        bytes * samples(Who::Floor(floor)).ratio_to(&ours)
                    };
                    let mut row = Row::new(method.name, "ours", &ours).moving(bytes, self.set.numel());
                    row.of_copy = Some(share(Floor::Copy));
                    row.of_in_place = Some(share(Floor::InPlace));
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
        Floor::ALL
            .into_iter()
            .zip(&self.floor_samples)
            .map(|(floor, samples)| {
                Row::new("floor", floor.name(), samples).moving(floor.bytes_per_element(), self.floors.len())
            })
            .collect()
    }

    /// All tensors.
    pub(crate) fn set(&self) -> &ParamSet {
        &self.set
    }

    fn ticks(&self) -> Option<Ticks> {
        Ticks::now(self.peers.as_ref().map(Peers::process))
    }

    /// Share of the processors that others used since `start`.
    fn others_since(&self, start: Option<Ticks>) -> Option<f64> {
        Some(self.ticks()?.others_since(start?))
    }

    /// Version of PyTorch, if peers ran.
    pub(crate) fn torch(&self) -> Option<&str> {
        self.peers.as_ref().map(|peers| peers.hello().torch.as_str())
    }
}
