//! Whole training steps, of this project, candle's optimizer and PyTorch, in turns: forward, backward, optimizer, projection update.
//!
//! Weights and batches are random, which changes no time. Every round every contestant takes one step, in an order that
//! rotates from round to round.
#![allow(clippy::print_stderr, reason = "a command line tool shows progress")]

mod network;
mod options;
mod server;
mod training;

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use tpgm_benches::contention::Ticks;
use tpgm_benches::machine::Machine;
use tpgm_benches::report::{self, OURS, Row, Run, TRAIN};
use tpgm_benches::{Memory, Peers, Samples};
use tpgm_candle::core::{Constraint, DType, Ftp, Spd, Tpgm};
use tpgm_examples::environment;

use crate::network::Network;
use crate::options::{Args, Peer};
use crate::training::{PARTS, Recipe, Training};

/// Where everything runs.
const DEVICE: &str = "cpu";
/// Steps before the measured ones.
const WARM_UP: usize = 2;
/// Before every contestant, for the threads of the one before to go to sleep.
const PAUSE: Duration = Duration::from_millis(20);

/// Methods, with the peers that do the same.
fn methods() -> [(&'static str, Constraint, &'static [&'static str]); 4] {
    [
        ("adamw", Constraint::None, &["torch", "candle_adamw_as_is", "candle_adamw_kept", "ours_as_is"]),
        ("adamw+ftp", Ftp::default().into(), &["published_ftp"]),
        ("adamw+spd", Spd::default().into(), &[]),
        ("adamw+tpgm", Tpgm::default().into(), &["published_tpgm"]),
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
}

fn main() -> Result<()> {
    let args = Args::parse();
    args.check()?;
    let threads = args.threads()?;
    if let Some(suffix) = &args.serve {
        return server::serve(suffix, threads);
    }
    environment::for_threads(threads);
    let out = args.rows.file(DEVICE)?;
    for network in args.networks() {
        progress(&format!("{network}: making models"));
        let mut peers = start_peers(&args, network, threads)?;
        let mut contestants = contestants(network, threads, &mut peers)?;
        let ticks = Ticks::now(peers.iter().map(Peers::process));
        rounds(&mut contestants, &mut peers, args.rounds)?;
        let others = ticks
            .zip(Ticks::now(peers.iter().map(Peers::process)))
            .map(|(before, after)| after.others_since(before));
        let rows = rows(&contestants, others);
        let (params, tensors) = size(&contestants);
        let torch = peers.iter().find(|peers| peers.hello().program == "torch");
        let run = Run {
            machine: Machine::here(),
            device: DEVICE.to_owned(),
            driver: None,
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

fn start_peers(args: &Args, network: Network, threads: usize) -> Result<Vec<Peers>> {
    let mut peers = Vec::new();
    if args.vs.is_some_and(Peer::torch) {
        progress("starting PyTorch");
        peers.push(Peers::training(&args.torch.options(threads, DEVICE, DType::F32), network.name())?);
    }
    if args.vs.is_some_and(Peer::candle) {
        progress("starting copies of this program");
        for memory in [Memory::AsIs, Memory::Kept] {
            peers.push(Peers::copy(memory, threads, network.name())?);
        }
    }
    Ok(peers)
}

fn contestants(network: Network, threads: usize, processes: &mut [Peers]) -> Result<Vec<Contestant>> {
    let checkpoint = network.checkpoint()?;
    let mut all = Vec::new();
    let contestant =
        |method, who| Contestant { method, who, total: Samples::default(), parts: Default::default() };
    for (method, constraint, peers) in methods() {
        let ours = Training::new(network, &checkpoint, Recipe::Ours(constraint), threads)?;
        all.push(contestant(method, Who::Ours(Box::new(ours))));
        for peer in peers {
            let offers = |process: &Peers| process.hello().peers.iter().any(|name| name == peer);
            let Some(process) = processes.iter().position(offers) else { continue };
            match processes[process].prepare(peer) {
                Ok(()) => all.push(contestant(method, Who::Peer(peer, process))),
                Err(error) => progress(&format!("  {peer} is left out: {error:#}")),
            }
        }
    }
    Ok(all)
}

fn rounds(contestants: &mut [Contestant], processes: &mut [Peers], rounds: usize) -> Result<()> {
    let n = contestants.len();
    for round in 0..WARM_UP + rounds {
        progress(&format!("round {} of {}", round + 1, WARM_UP + rounds));
        for i in 0..n {
            sleep(PAUSE);
            let Contestant { who, total, parts, .. } = &mut contestants[(i + round) % n];
            let seconds = match who {
                Who::Ours(training) => training.step()?,
                Who::Peer(peer, process) => processes[*process].run_parts(peer)?,
            };
            if round >= WARM_UP {
                total.push(seconds.iter().sum());
                parts.iter_mut().zip(seconds).for_each(|(samples, seconds)| samples.push(seconds));
            }
        }
    }
    Ok(())
}

/// A row for the whole step of each contestant, and one for each part that takes time.
fn rows(contestants: &[Contestant], others: Option<f64>) -> Vec<Row> {
    let mut rows = Vec::new();
    for contestant in contestants {
        let Contestant { method, who, total, parts } = contestant;
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
        let mut contestants = contestants(Network::Mini, 1, &mut []).unwrap();
        rounds(&mut contestants, &mut [], 1).unwrap();
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
}
