//! Floors, our code and its peers, interleaved round by round in one run, as one table and as rows of a data file.
//!
//! Numbers of different runs of a noisy machine cannot be compared; the rounds of one run can. Every round runs every
//! contestant once, in an order that rotates from round to round.
#![allow(clippy::print_stderr, reason = "a command line tool shows progress")]

mod compare;
mod memory;
mod options;
mod page;
mod quick;
mod scaling;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tpgm_benches::data::Parts;
use tpgm_benches::machine::Machine;
use tpgm_benches::options::RESULTS;
use tpgm_benches::report::{Row, Run};
use tpgm_benches::{CpuTarget, GpuTarget, Memory, Method, Model, Peers, Target, report};
use tpgm_core::ParamSet;
use tpgm_cuda::{CudaDevice, Emulator};

use crate::compare::Bench;
use crate::options::{Args, Peer, Place};

fn main() -> ExitCode {
    // Never with a stack of frames, which `RUST_BACKTRACE=1` would ask of a returned error.
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let args = Args::parse();
    args.check()?;
    if args.page {
        return page::write(Path::new(RESULTS));
    }
    match args.backend {
        Place::Cpu => run(&args, CpuTarget::new(args.threads()?, CpuTarget::FLOOR_ELEMENTS)?),
        Place::Cuda => {
            let device = CudaDevice::new(args.device).context("--backend cuda needs an NVIDIA GPU")?;
            // Where times mean nothing, nothing is waited for.
            let elements = match args.model() {
                Model::Tiny => 1 << 20,
                _ => GpuTarget::<CudaDevice>::FLOOR_ELEMENTS,
            };
            run(&args, GpuTarget::new(device, elements)?)
        }
        Place::Emulated => run(&args, GpuTarget::new(Emulator::from_env()?, 0)?),
    }
}

fn run<T: Target>(args: &Args, mut target: T) -> Result<()> {
    let limits = args.limits();
    // Before anything is measured: a file that cannot be written is noticed now.
    let out = args.results_file(target.device())?;
    if args.scaling {
        return scaling::run(args, &mut target, limits, out.as_deref());
    }
    let model = args.model();
    progress(&format!("making the data of {model}"));
    let set = model.param_set(args.dtype)?;
    let mut run = provenance(args, &target, model.name(), &set)?;
    let methods = match args.methods.is_empty() {
        true if args.quick => quick::methods(),
        true => Method::all(),
        false => args.methods.clone(),
    };
    let mut bench = Bench::new(&mut target, set, args.dtype, Parts::ALL, limits)?;
    start_peers(args, &mut bench, &methods)?;
    run.torch = bench.torch().map(str::to_owned);

    let append = |rows: &[Row]| match &out {
        // Method by method: an interrupted run keeps what it has.
        Some(path) => report::append(path, &run, rows),
        None => Ok(()),
    };
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (i, method) in methods.iter().enumerate() {
        progress(&format!("{} ({} of {})", method.name, i + 1, methods.len()));
        match bench.compare(method, args.parts, methods.len() - i) {
            Ok(mut of_method) => {
                append(&of_method)?;
                rows.append(&mut of_method);
            }
            Err(error) => {
                progress(&format!("  failed: {error:#}"));
                failed.push(method.name);
            }
        }
    }
    let mut all = bench.floor_rows();
    append(&all)?;
    all.append(&mut rows);

    let mut text = run.heading();
    if let Some(warning) = args.warning() {
        text += &format!("{warning}\n");
    }
    write!(std::io::stdout().lock(), "{text}\n{}", report::table(&all))?;
    if let Some(path) = &out {
        progress(&format!("{} rows appended to `{}`", all.len(), path.display()));
    }
    ensure!(failed.is_empty(), "failed, see above: {}", failed.join(", "));
    if args.quick {
        quick::check(&all, quick::plain_loop(run.params))?;
    }
    Ok(())
}

/// What all rows share that measure `set` on `target`, without peers.
fn provenance<T: Target>(args: &Args, target: &T, model: &str, set: &ParamSet) -> Result<Run> {
    Ok(Run {
        machine: Machine::here(),
        device: target.device().to_owned(),
        driver: target.driver().map(str::to_owned),
        torch: None,
        model: model.to_owned(),
        dtype: args.dtype,
        params: set.numel(),
        tensors: Some(set.len()),
        threads: args.threads()?,
    })
}

/// Buffers of the data of `torch_peer.py`: weights, gradients, anchors, first weights.
const TORCH_BUFFERS: usize = 4;
/// Buffers of the data of `peers/candle`: weights and gradients.
const CANDLE_BUFFERS: usize = 2;

/// Starts those that were asked for. One that cannot take part is said so and left out.
fn start_peers<T: Target>(args: &Args, bench: &mut Bench<'_, T>, methods: &[Method]) -> Result<()> {
    let tensors = args.model().tensors(args.dtype);
    let threads = args.threads()?;
    let mut start = |name: &str, buffers, start: &dyn Fn() -> Result<Peers>| {
        progress(&format!("starting {name}"));
        match bench.no_room(buffers, methods) {
            Some(lack) => progress(&format!("{name} is left out: its data beside our state needs {lack}")),
            None => match start() {
                Ok(peers) => bench.add(peers),
                Err(error) => progress(&format!("{name} is left out: {error:#}")),
            },
        }
    };
    if args.compares_with(Peer::Torch) {
        let options = args.torch.options(threads, &args.torch_device(), args.dtype);
        start("PyTorch", TORCH_BUFFERS, &|| Peers::torch(&options, &tensors));
    }
    if args.compares_with(Peer::Candle) {
        let program = args.candle.as_deref().context("--vs candle needs --candle PROGRAM")?;
        for memory in [Memory::AsIs, Memory::Kept] {
            let name = match memory {
                Memory::AsIs => "candle's optimizers",
                Memory::Kept => "candle's optimizers with freed memory kept",
            };
            start(name, CANDLE_BUFFERS, &|| Peers::candle(program, memory, threads, &tensors));
        }
    }
    Ok(())
}

/// Of bytes, for people.
fn gib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1u64 << 30) as f64)
}

fn progress(message: &str) {
    eprintln!("{message}");
}
