//! Interleaved rounds of one method's contestants.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tpgm_benches::contention::Ticks;
use tpgm_benches::data::{Data, Parts};
use tpgm_benches::floors::Floor;
use tpgm_benches::report::{FLOOR, OURS, Row};
use tpgm_benches::{Method, Ours, Peers, Samples, Target, Timing};
use tpgm_core::{DType, ParamSet};

use crate::memory::peak;
use crate::{gib, progress};

/// Rounds before the measured ones: allocation, first steps, page faults.
const WARM_UP: usize = 3;
/// Measured rounds that a method may take beyond its share of the time, so that it is not the last one's loss that the first one
/// is slow.
const LEAST: usize = 3;
/// The most parameters of a model whose state is counted.
const STATE_COUNTED: usize = 200_000_000;
/// Name of the device that works in the host's memory.
const CPU: &str = "cpu";
/// Memory that is left to everything else: scratch space, code, other programs.
const SPARE: u64 = 1 << 29;

/// What a process of peers takes besides: arrays that keep the device busy and scrub its cache, code, buffers of libraries.
const PEERS_OWN: u64 = 3 << 29;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Measured rounds of a method.
    pub(crate) rounds: usize,
    /// When no more rounds begin.
    pub(crate) until: Option<Instant>,
}

impl Limits {
    /// Whether the time is over.
    pub(crate) fn over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// When a method has had its share of the time that is left to it and to others behind it, `methods` in all.
    fn share(&self, methods: usize) -> Option<Instant> {
        let now = Instant::now();
        self.until.map(|until| now + until.saturating_duration_since(now) / methods.max(1) as u32)
    }
}

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
    limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Floor(Floor),
    Ours,
    Peer(&'static str),
}

struct Contestant {
    who: Who,
    /// As in rows.
    name: String,
    samples: Samples,
    /// The host's part, where a device works by itself.
    host: Samples,
    failed: bool,
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
        limits: Limits,
    ) -> Result<Self> {
        let needed = (parts.buffers() * dtype.size() * set.numel()) as u64;
        if let Some(lack) = lack(target, needed) {
            bail!("the data of these tensors needs {lack}");
        }
        Ok(Self {
            data: Data::with(target.backend(), &set, parts)?,
            floor_samples: vec![Samples::default(); target.floors().len()],
            target,
            set,
            dtype,
            parts,
            peers: Vec::new(),
            limits,
        })
    }

    /// Others take part, too.
    pub(crate) fn add(&mut self, peers: Peers) {
        self.peers.push(peers);
    }

    /// What is missing for a peer that holds `buffers` buffers like ours beside the state of the hungriest of `methods`, if it is.
    pub(crate) fn no_room(&self, buffers: usize, methods: &[Method]) -> Option<String> {
        let state = methods.iter().map(|method| method.state(self.dtype)).max().unwrap_or_default();
        lack(self.target, ((buffers * self.dtype.size() + state) * self.set.numel()) as u64 + PEERS_OWN)
    }

    /// Runs all contestants of one method and returns a row for each but the floors; with `parts`, also one for each part
    /// of ours. There is none if there is no memory for the method, or no time. `methods` are to share the time that is left,
    /// this one among them.
    ///
    /// # Errors
    ///
    /// If our side fails. A peer that fails is reported and left out.
    pub(crate) fn compare(&mut self, method: &Method, parts: bool, methods: usize) -> Result<Vec<Row>> {
        if self.limits.over() {
            progress("  left out: --time-limit is over");
            return Ok(Vec::new());
        }
        if let Some(lack) = lack(self.target, (method.state(self.dtype) * self.set.numel()) as u64) {
            progress(&format!("  left out: its state needs {lack}"));
            return Ok(Vec::new());
        }
        let share = self.limits.share(methods);
        if self.parts.start {
            self.data.restore_weights()?;
        }
        let mut ours = Ours::new(method, self.target.backend(), &self.set, &self.data)?;
        // Ours first: its state is there before others take what memory is left.
        self.ours(method, &mut ours)?;
        let mut contestants = self.contestants(method);
        let rows = self.measure(method, &mut ours, &mut contestants, share, parts);
        for contestant in contestants.iter().filter(|contestant| !contestant.failed) {
            if let Who::Peer(peer) = contestant.who {
                self.drop_peer(peer);
            }
        }
        rows
    }

    fn measure(
        &mut self,
        method: &Method,
        ours: &mut Ours<T::Backend>,
        contestants: &mut [Contestant],
        share: Option<Instant>,
        parts: bool,
    ) -> Result<Vec<Row>> {
        let (start, ticks) = (Instant::now(), self.ticks());
        let launches = self.rounds(method, ours, contestants, share)?;
        let others = self.others_since(ticks);
        if contestants.iter().all(|contestant| contestant.samples.is_empty()) {
            progress("  left out: --time-limit came before its first measured round");
            return Ok(Vec::new());
        }
        let extra = contestants.iter().map(|c| self.extra(method, ours, c)).collect::<Result<Vec<_>>>()?;
        // Counting copies the state: a large model would have to fit twice.
        let state = (self.set.numel() <= STATE_COUNTED).then(|| ours.state_bytes()).transpose()?;
        progress(&format!("  {:.0} s", start.elapsed().as_secs_f64()));
        let mut rows = self.rows(method, contestants);
        let params = self.set.numel() as f64;
        for row in &mut rows {
            row.others = others;
            row.launches = launches.filter(|_| row.contestant == OURS);
            row.state_per_param = state.filter(|_| row.contestant == OURS).map(|state| state as f64 / params);
            let extra =
                contestants.iter().zip(&extra).find(|(contestant, _)| contestant.name == row.contestant);
            row.extra_per_param = extra.and_then(|(_, extra)| *extra).map(|bytes| bytes as f64 / params);
        }
        if parts {
            let rounds = contestants.iter().find(|contestant| contestant.who == Who::Ours);
            let rounds = rounds.map_or(0, |ours| ours.samples.len());
            rows.append(&mut self.parts(method, ours, rounds)?);
        }
        Ok(rows)
    }

    /// Fills the samples. Returns the launches of a round of ours.
    fn rounds(
        &mut self,
        method: &Method,
        ours: &mut Ours<T::Backend>,
        contestants: &mut [Contestant],
        share: Option<Instant>,
    ) -> Result<Option<usize>> {
        let mut launches = None;
        let n = contestants.len();
        for round in 0..WARM_UP + self.limits.rounds {
            let measured = round.saturating_sub(WARM_UP);
            let had_its_share = measured >= LEAST && share.is_some_and(|end| Instant::now() >= end);
            if self.limits.over() || had_its_share {
                progress(&format!("  {measured} of {} rounds: --time-limit", self.limits.rounds));
                break;
            }
            for i in 0..n {
                let contestant = &mut contestants[(i + round) % n];
                if contestant.failed {
                    continue;
                }
                self.pause();
                let time = match contestant.who {
                    Who::Floor(floor) => Timing { seconds: self.target.floor(floor)?, host: None },
                    Who::Ours => {
                        let time;
                        (time, launches) = self.ours(method, ours).with_context(|| method.name.to_owned())?;
                        time
                    }
                    Who::Peer(peer) => match self.peer(peer).and_then(|peers| peers.run(peer)) {
                        Ok(time) => time,
                        Err(error) => {
                            progress(&format!("  {peer} is left out: {error:#}"));
                            contestant.failed = true;
                            // It may hold memory that others need.
                            self.drop_peer(peer);
                            continue;
                        }
                    },
                };
                if round >= WARM_UP {
                    contestant.samples.push(time.seconds);
                    if let Some(host) = time.host {
                        contestant.host.push(host);
                    }
                }
            }
        }
        Ok(launches)
    }

    fn pause(&self) {
        let pause = self.target.pause();
        if pause > Duration::ZERO {
            sleep(pause);
        }
    }

    /// Time and launches of one round of ours.
    fn ours(&mut self, method: &Method, ours: &mut Ours<T::Backend>) -> Result<(Timing, Option<usize>)> {
        let Self { target, data, .. } = self;
        ours.prepare(data)?;
        let before = target.launches();
        let time = target
            .time(&mut || method.operation.calls().iter().try_for_each(|&call| ours.call(call, data)))?;
        let launches = target.launches().zip(before).map(|(after, before)| after - before);
        Ok((time, launches))
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
                Ok(extra.filter(|_| round.is_ok()))
            }
        }
    }

    /// A row for each part of `rounds` rounds of ours: the kernels of a device, the calls elsewhere.
    fn parts(&mut self, method: &Method, ours: &mut Ours<T::Backend>, rounds: usize) -> Result<Vec<Row>> {
        let mut parts: Vec<(&str, Samples)> = Vec::new();
        for _ in 0..rounds {
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
        let contestant = |who, name: String| Contestant {
            who,
            name,
            samples: Samples::default(),
            host: Samples::default(),
            failed: false,
        };
        let floors = self.target.floors().iter();
        let mut all: Vec<_> =
            floors.map(|floor| contestant(Who::Floor(*floor), floor.name().to_owned())).collect();
        all.push(contestant(Who::Ours, OURS.to_owned()));
        let mut not_offered = Vec::new();
        for &peer in method.peers {
            match self.peer(peer).map(|peers| peers.prepare(peer)) {
                Ok(Ok(())) => all.push(contestant(Who::Peer(peer), Peers::label(peer, self.dtype))),
                Ok(Err(error)) => progress(&format!("  {peer} is left out: {error:#}")),
                Err(_) => not_offered.push(peer),
            }
        }
        if !self.peers.is_empty() && !not_offered.is_empty() {
            progress(&format!(
                "  not asked for, without the checkout of its code, or not there for this device and type: {}",
                not_offered.join(", ")
            ));
        }
        all
    }

    /// The process that has a peer.
    fn peer(&mut self, name: &str) -> Result<&mut Peers> {
        let has = |peers: &&mut Peers| peers.hello().peers.iter().any(|peer| peer == name);
        self.peers.iter_mut().find(has).with_context(|| format!("no process offers {name}"))
    }

    /// Frees the state of a peer.
    fn drop_peer(&mut self, peer: &str) {
        if let Err(error) = self.peer(peer).and_then(|peers| peers.drop_peer(peer)) {
            progress(&format!("  {peer} cannot be dropped: {error:#}"));
        }
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
            .filter_map(|contestant| {
                let row = match contestant.who {
                    Who::Floor(_) => return None,
                    Who::Ours => {
                        let bytes = method.bytes(self.dtype);
                        // Both bandwidths are bytes over seconds; the share is paired round by round.
                        let share = |floor: Floor| {
                            let floor_bytes = floor.bytes_per_element() * self.target.floor_elements();
                            let seconds = samples(Who::Floor(floor));
                            (!seconds.is_empty()).then(|| {
                                (bytes * params) as f64 / floor_bytes as f64 * seconds.ratio_to(&ours)
                            })
                        };
                        let mut row = Row::new(method.name, OURS, &ours).moving(bytes, params);
                        row.of_copy = share(Floor::Copy);
                        row.of_triad = share(Floor::Triad);
                        row.of_in_place = share(Floor::InPlace);
                        row
                    }
                    Who::Peer(_) => {
                        let mut row = Row::new(method.name, &contestant.name, &contestant.samples);
                        row.times_ours = Some(contestant.samples.ratio_to(&ours));
                        row
                    }
                };
                let host = (!contestant.host.is_empty()).then(|| contestant.host.median());
                Some(Row { host_s: host, ..row })
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
            .filter(|(_, samples)| !samples.is_empty())
            .map(|(floor, samples)| {
                Row::new(FLOOR, floor.name(), samples).moving(floor.bytes_per_element(), elements)
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

/// `X of Y GiB` if a target says that it has less memory than is needed.
fn lack<T: Target>(target: &T, needed: u64) -> Option<String> {
    let available = target.available().filter(|available| *available < needed + SPARE)?;
    Some(format!(
        "{} GiB of memory and {} GiB to spare, but {} GiB are free",
        gib(needed),
        gib(SPARE),
        gib(available)
    ))
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)] // helpers of tests

    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use tpgm_benches::{CpuTarget, Memory, Model};

    use super::*;

    /// A peer that takes half a second for each of so many rounds, and fails then.
    fn peer(folder: &tempfile::TempDir, rounds: usize) -> PathBuf {
        let script = format!(
            r#"#!/bin/sh
            hello='{{"program": "candle", "version": "1", "threads": 1, "device": "cpu", "peers": ["candle_adamw"]}}'
            runs=0
            while read command name rest; do
                case $command in
                hello) echo "ok $hello" ;;
                run) runs=$((runs + 1)); [ $runs -le {rounds} ] && echo ok 0.5 0.25 || echo error no memory ;;
                *) echo ok ;;
                esac
            done
            "#
        );
        let path = folder.path().join("peer");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    fn bench(target: &mut CpuTarget, limits: Limits) -> Bench<'_, CpuTarget> {
        let set = Model::Tiny.param_set(DType::F32).unwrap();
        Bench::new(target, set, DType::F32, Parts::ALL, limits).unwrap()
    }

    #[test]
    fn a_peer_that_fails_is_left_out_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let method = Method::by_name("adamw").unwrap();
        // One round is measured before it fails, or both are.
        for (rounds, names) in [(WARM_UP + 1, &["ours"][..]), (100, &["ours", "candle_adamw"])] {
            let mut target = CpuTarget::new(1, 4096).unwrap();
            let mut bench = bench(&mut target, Limits { rounds: 2, until: None });
            let program = peer(&folder, rounds);
            bench.add(Peers::candle(&program, Memory::AsIs, 1, &Model::Tiny.tensors(DType::F32)).unwrap());
            let rows = bench.compare(&method, false, 1).unwrap();
            assert_eq!(rows.iter().map(|row| row.contestant.as_str()).collect::<Vec<_>>(), names);
            assert!(rows.iter().all(|row| row.rounds == 2) && rows[0].host_s.is_none());
            if let Some(peer) = rows.get(1) {
                assert_eq!((peer.median_s, peer.host_s), (0.5, Some(0.25)));
                assert_eq!(peer.times_ours.map(|times| times > 0.0), Some(true));
            }
            assert_eq!(bench.floor_rows().len(), 3);
        }
    }

    #[test]
    fn what_was_measured_before_the_time_was_over_is_kept() {
        let method = Method::by_name("project-mars").unwrap();
        let mut target = CpuTarget::new(1, 4096).unwrap();
        let rounds = 1_000_000;
        let mut bench =
            bench(&mut target, Limits { rounds, until: Some(Instant::now() + Duration::from_secs(20)) });
        // A hundredth of the time: a fraction of a second.
        let rows = bench.compare(&method, true, 100).unwrap();
        assert!((LEAST..rounds).contains(&rows[0].rounds), "{}", rows[0].rounds);
        let part = &rows[1];
        assert_eq!((part.contestant.as_str(), part.rounds), ("ours: project", rows[0].rounds));
        bench.limits.until = Some(Instant::now());
        assert_eq!(bench.compare(&method, false, 1).unwrap(), []);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_does_not_fit_says_what_it_needs() {
        let mut target = CpuTarget::new(1, 4096).unwrap();
        let bench = bench(&mut target, Limits { rounds: 1, until: None });
        let message = lack(bench.target, 1 << 60).unwrap();
        assert!(message.starts_with("1073741824.0 GiB of memory and 0.5 GiB to spare, but "), "{message}");
    }
}
