//! Whole training steps, of this project, candle's optimizer and PyTorch, in turns: forward, backward, optimizer, projection update.
//!
//! Weights and batches are random, which changes no time, and the same for all: before anything is measured, PyTorch's losses
//! must be ours. Every round every contestant takes one step, in an order that rotates from round to round.
//!
//! On a GPU it takes two: one that waits for the GPU as a real loop does, which is the time of the step, and one that waits for it
//! after each part, which is where the times of the parts come from.
#![allow(clippy::print_stderr, reason = "a command line tool shows progress")]

mod network;
mod options;
mod server;
mod training;

use std::io::Write;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use candle_core::Device;
use clap::Parser;
use tpgm_benches::contention::Ticks;
use tpgm_benches::machine::Machine;
use tpgm_benches::report::{self, OURS, Row, Run, TRAIN};
use tpgm_benches::{Memory, Peers, Samples, gpu};
use tpgm_candle::core::{Constraint, DType, Ftp, Spd, Tpgm};
use tpgm_examples::device::Place;
use tpgm_examples::environment;
use tpgm_examples::failure;

use crate::network::{Checkpoint, Network};
use crate::options::{Args, Peer};
use crate::training::{PARTS, Recipe, Training};

/// Steps before the measured ones.
const WARM_UP: usize = 2;
/// Before every contestant, for the threads of the one before to go to sleep.
const PAUSE: Duration = Duration::from_millis(20);

/// How much of a loss PyTorch's may differ from ours by: at first, and after a step, in which small differences grow.
const AGREEMENT: [f64; 2] = [1e-4, 1e-2];

/// The methods.
const METHODS: [&str; 4] = ["adamw", "adamw+ftp", "adamw+spd", "adamw+tpgm"];

/// Methods, with the peers that do the same.
fn methods() -> [(&'static str, Constraint, &'static [&'static str]); METHODS.len()] {
    let peers: [&[_]; _] = [
        &["torch", "candle_adamw_as_is", "candle_adamw_kept", "ours_as_is"],
        &["published_ftp"],
        &[],
        &["published_tpgm"],
    ];
    let [adamw, ftp, spd, tpgm] = METHODS;
    [
        (adamw, Constraint::None, peers[0]),
        (ftp, Ftp::default().into(), peers[1]),
        (spd, Spd::default().into(), peers[2]),
        (tpgm, Tpgm::default().into(), peers[3]),
    ]
}

/// Who takes a step.
enum Who {
    Ours(Box<Training>),
    /// A peer, of the process with this number.
    Peer(&'static str, usize),
}

struct Contestant {
    method: &'static str,
    who: Who,
    total: Samples,
    parts: [Samples; PARTS.len()],
    failed: bool,
}

fn main() -> ExitCode {
    failure::exit_code(start())
}

fn start() -> Result<()> {
    let args = Args::parse();
    args.check()?;
    let threads = args.threads()?;
    // First, also with one thread, for which `for_threads` would make a pool of all processors; and for copies as for us.
    environment::join_pool(threads);
    if let Some(suffix) = &args.serve {
        return server::serve(suffix, threads, &args.place().open()?);
    }
    environment::for_threads(threads);
    let device = args.place().open()?;
    let (name, driver) = match args.place() {
        Place::Cpu => ("cpu".to_owned(), None),
        Place::Cuda(number) => gpu(number)?,
    };
    let out = args.rows.file(&name)?;
    for network in args.networks() {
        progress(&format!("{network}: making models"));
        let checkpoint = network.checkpoint()?;
        let mut peers = start_peers(&args, network, &checkpoint, threads);
        let mut contestants =
            contestants(network, &checkpoint, &device, &mut peers, |method| args.trains_by(method))?;
        let ticks = Ticks::now(peers.iter().map(Peers::process));
        rounds(&mut contestants, &mut peers, args.rounds, &device)?;
        let others = ticks
            .zip(Ticks::now(peers.iter().map(Peers::process)))
            .map(|(before, after)| after.others_since(before));
        let rows = rows(&contestants, others);
        let (params, tensors) = size(&contestants);
        let torch = peers.iter().find(|peers| peers.hello().program == "torch");
        let run = Run {
            machine: Machine::here(),
            device: name.clone(),
            driver: driver.clone(),
            torch: torch.map(|peers| peers.hello().version.clone()),
            model: network.to_string(),
            dtype: DType::F32,
            params,
            tensors: Some(tensors),
            threads,
        };
        writeln!(std::io::stdout().lock(), "{}\n{}", run.heading(), report::table(&rows))?;
        if let Some(path) = &out {
            report::append(path, &run, &rows)?;
        }
    }
    Ok(())
}

/// Starts those that were asked for. One that does not start is said so and left out.
fn start_peers(args: &Args, network: Network, checkpoint: &Checkpoint, threads: usize) -> Vec<Peers> {
    let mut peers = Vec::new();
    let mut start = |name: &str, started: Result<Peers>| match started {
        Ok(started) => peers.push(started),
        Err(error) => progress(&format!("{name} is left out: {error:#}")),
    };
    let device = args.place().to_string();
    if args.vs.is_some_and(Peer::torch) {
        progress("starting PyTorch");
        let options = args.torch.options(threads, &device, DType::F32);
        start("PyTorch", Peers::training(&options, network.name(), &checkpoint.with_head()));
    }
    if args.vs.is_some_and(Peer::candle) {
        progress("starting copies of this program");
        // What becomes of the host's memory makes no difference on a GPU.
        let memories: &[_] = match args.place() {
            Place::Cpu => &[Memory::AsIs, Memory::Kept],
            Place::Cuda(_) => &[Memory::Kept],
        };
        for memory in memories {
            start("a copy of this program", Peers::copy(*memory, threads, &device, network.name()));
        }
    }
    peers
}

fn contestants(
    network: Network,
    checkpoint: &Checkpoint,
    device: &Device,
    processes: &mut [Peers],
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Contestant>> {
    let mut all = Vec::new();
    let contestant = |method, who| Contestant {
        method,
        who,
        total: Samples::default(),
        parts: Default::default(),
        failed: false,
    };
    for (method, constraint, peers) in methods().into_iter().filter(|(method, ..)| wanted(method)) {
        let mut ours = Training::new(network, checkpoint, Recipe::Ours(constraint), device)?;
        let losses = ours.losses()?;
        all.push(contestant(method, Who::Ours(Box::new(ours))));
        for peer in peers {
            let offers = |process: &Peers| process.hello().peers.iter().any(|name| name == peer);
            let Some(process) = processes.iter().position(offers) else { continue };
            match processes[process].prepare(peer) {
                Ok(()) => {
                    if processes[process].hello().program == "torch" {
                        agree(network, method, peer, losses, processes[process].losses(peer)?)?;
                    }
                    all.push(contestant(method, Who::Peer(peer, process)));
                }
                Err(error) => progress(&format!("  {peer} is left out: {error:#}")),
            }
        }
    }
    Ok(all)
}

/// Those who do the same have the same loss at first, and without dropout and by the same method after a step.
fn agree(network: Network, method: &str, peer: &str, ours: [f64; 2], theirs: [f64; 2]) -> Result<()> {
    progress(&format!("  {method}: losses {ours:?} before and after a step; {peer} {theirs:?}"));
    let steps = if network.drops() || peer != "torch" { 1 } else { 2 };
    for (i, allowed) in AGREEMENT.into_iter().enumerate().take(steps) {
        let (ours, theirs) = (ours[i], theirs[i]);
        // Not the other way round: NaN agrees with nothing.
        let agrees = (ours - theirs).abs() <= allowed * ours.abs();
        ensure!(
            agrees,
            "{network}, {method}: {peer} has a loss of {theirs} after {i} steps, and we have {ours}"
        );
    }
    Ok(())
}

fn rounds(
    contestants: &mut [Contestant],
    processes: &mut [Peers],
    rounds: usize,
    device: &Device,
) -> Result<()> {
    let n = contestants.len();
    for round in 0..WARM_UP + rounds {
        progress(&format!("round {} of {}", round + 1, WARM_UP + rounds));
        for i in 0..n {
            let Contestant { who, total, parts, failed, .. } = &mut contestants[(i + round) % n];
            if *failed {
                continue;
            }
            if device.is_cpu() {
                sleep(PAUSE);
            }
            let (whole, seconds) = match who {
                Who::Ours(training) => step(training, device)?,
                Who::Peer(peer, process) => match peer_step(peer, &mut processes[*process], device) {
                    Ok(taken) => taken,
                    Err(error) => {
                        progress(&format!("  {peer} is left out: {error:#}"));
                        *failed = true;
                        continue;
                    }
                },
            };
            if round >= WARM_UP {
                total.push(whole);
                parts.iter_mut().zip(seconds).for_each(|(samples, seconds)| samples.push(seconds));
            }
        }
    }
    Ok(())
}

/// Seconds of a step, and of its parts.
type Taken = (f64, [f64; PARTS.len()]);

fn step(training: &mut Training, device: &Device) -> Result<Taken> {
    let whole = if device.is_cpu() { None } else { Some(training.whole_step()?) };
    let parts = training.step()?;
    Ok((whole.unwrap_or(parts.iter().sum()), parts))
}

fn peer_step(peer: &str, process: &mut Peers, device: &Device) -> Result<Taken> {
    let whole = if device.is_cpu() { None } else { Some(process.run_whole(peer)?) };
    let parts: [f64; PARTS.len()] = process.run_parts(peer)?;
    Ok((whole.unwrap_or(parts.iter().sum()), parts))
}

/// A row for the whole step of each contestant, and one for each part that takes time.
fn rows(contestants: &[Contestant], others: Option<f64>) -> Vec<Row> {
    let mut rows = Vec::new();
    for contestant in contestants.iter().filter(|contestant| !contestant.failed) {
        let Contestant { method, who, total, parts, .. } = contestant;
        let ours =
            contestants.iter().find(|other| other.method == *method && matches!(other.who, Who::Ours(_)));
        let name = match who {
            Who::Ours(_) => OURS,
            Who::Peer(peer, _) => peer,
        };
        let method = format!("{TRAIN}{method}");
        let mut whole = Row::new(&method, name, total);
        whole.others = others;
        if let (Who::Peer(..), Some(ours)) = (who, ours) {
            whole.times_ours = Some(total.ratio_to(&ours.total));
        }
        rows.push(whole);
        for (part, samples) in PARTS.iter().zip(parts).filter(|(_, samples)| samples.median() > 1e-5) {
            rows.push(Row::new(&method, &format!("{name}: {part}"), samples));
        }
    }
    rows
}

/// Parameters and tensors of what is trained.
fn size(contestants: &[Contestant]) -> (usize, usize) {
    let ours = contestants.iter().find_map(|contestant| match &contestant.who {
        Who::Ours(training) => Some(training.size()),
        Who::Peer(..) => None,
    });
    ours.unwrap_or_default()
}

fn progress(message: &str) {
    eprintln!("{message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_takes_its_steps_and_every_row_is_there() {
        let cpu = Device::Cpu;
        let checkpoint = Network::Mini.checkpoint().unwrap();
        let mut contestants = contestants(Network::Mini, &checkpoint, &cpu, &mut [], |_| true).unwrap();
        rounds(&mut contestants, &mut [], 1, &cpu).unwrap();
        let rows = rows(&contestants, Some(0.0));
        for (method, ..) in methods() {
            let of = |name: &str| {
                rows.iter().find(|r| r.method == format!("train {method}") && r.contestant == name)
            };
            let whole = of("ours").unwrap().median_s;
            let parts: f64 =
                PARTS.iter().filter_map(|part| of(&format!("ours: {part}"))).map(|row| row.median_s).sum();
            assert!(parts > 0.9 * whole && parts <= 1.001 * whole, "{method}: {parts} of {whole}");
            assert_eq!(of("ours: projection").is_some(), method == "adamw+tpgm", "{method}");
        }
        assert!(size(&contestants).0 > 200_000);
    }
    #[test]
    fn one_method_is_trained_if_it_is_asked_for() {
        let checkpoint = Network::Mini.checkpoint().unwrap();
        let some = |method: &str| method == "adamw+spd";
        let contestants = contestants(Network::Mini, &checkpoint, &Device::Cpu, &mut [], some).unwrap();
        assert_eq!(contestants.iter().map(|one| one.method).collect::<Vec<_>>(), ["adamw+spd"]);
    }

    #[test]
    fn losses_that_differ_are_refused() {
        let check = |network, peer, theirs| agree(network, "adamw", peer, [2.0, 1.5], theirs);
        check(Network::Mini, "torch", [2.0001, 1.51]).unwrap();
        let error = check(Network::Mini, "torch", [2.001, 1.5]).unwrap_err().to_string();
        assert!(error.contains("2.001 after 0 steps") && error.contains("we have 2"), "{error}");
        assert!(check(Network::Mini, "torch", [2.0, 1.6]).is_err());
        assert!(check(Network::Mini, "torch", [f64::NAN, 1.5]).is_err());
        // Other steps, or a step that drops out.
        check(Network::Mini, "published_ftp", [2.0, 1.6]).unwrap();
        check(Network::MiniLm, "torch", [2.0, 1.6]).unwrap();
        assert!(check(Network::MiniLm, "torch", [2.1, 1.5]).is_err());
    }
}
