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

use anyhow::{Context, Result};
use clap::Parser;
use tpgm_benches::data::Parts;
use tpgm_benches::machine::Machine;
use tpgm_benches::options::RESULTS;
use tpgm_benches::report::Run;
use tpgm_benches::{CpuTarget, GpuTarget, Memory, Method, Peers, Target, report};
use tpgm_core::ParamSet;
use tpgm_cuda::{CudaDevice, Emulator};

use crate::compare::Bench;
use crate::options::{Args, Peer, Place};

fn main() -> Result<()> {
    let args = Args::parse();
    args.check()?;
    if args.page {
        return page::write(Path::new(RESULTS));
    }
    match args.backend {
        Place::Cpu => run(&args, CpuTarget::new(args.threads()?, CpuTarget::FLOOR_ELEMENTS)?),
        Place::Cuda => {
            let device = CudaDevice::new(args.device).context("--backend cuda needs an NVIDIA GPU")?;
            run(&args, GpuTarget::new(device, GpuTarget::<CudaDevice>::FLOOR_ELEMENTS)?)
        }
        Place::Emulated => run(&args, GpuTarget::new(Emulator::from_env()?, 0)?),
    }
}

fn run<T: Target>(args: &Args, mut target: T) -> Result<()> {
    // Before anything is measured: a file that cannot be written is noticed now.
    let out = args.results_file(target.device())?;
    if args.scaling {
        return scaling::run(args, &mut target, out.as_deref());
    }
    let model = args.model();
    let peers = start_peers(args)?;
    progress(&format!("making the data of {model}"));
    let set = model.param_set(args.dtype)?;
    let mut run = provenance(args, &target, model.name(), &set)?;
    let mut bench = Bench::new(&mut target, set, args.dtype, Parts::ALL, args.rounds(), peers)?;

    let methods = match args.methods.is_empty() {
        true if args.quick => quick::methods(),
        true => Method::all(),
        false => args.methods.clone(),
    };
    let mut rows = Vec::new();
    for (i, method) in methods.iter().enumerate() {
        progress(&format!("{} ({} of {})", method.name, i + 1, methods.len()));
        rows.append(&mut bench.compare(method, args.parts)?);
    }
    let mut all = bench.floor_rows();
    all.append(&mut rows);
    run.torch = bench.torch().map(str::to_owned);

    let mut text = run.heading();
    if let Some(warning) = args.warning() {
        text += &format!("{warning}\n");
    }
    write!(std::io::stdout().lock(), "{text}\n{}", report::table(&all))?;
    if let Some(path) = &out {
        report::append(path, &run, &all)?;
        progress(&format!("{} rows appended to `{}`", all.len(), path.display()));
    }
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

fn start_peers(args: &Args) -> Result<Vec<Peers>> {
    let tensors = args.model().tensors(args.dtype);
    let threads = args.threads()?;
    let mut peers = Vec::new();
    if args.compares_with(Peer::Torch) {
        progress("starting PyTorch");
        let options = args.torch.options(threads, &args.torch_device(), args.dtype);
        peers.push(Peers::torch(&options, &tensors)?);
    }
    if args.compares_with(Peer::Candle) {
        progress("starting candle's optimizers");
        let program = args.candle.as_deref().context("--vs candle needs --candle PROGRAM")?;
        for memory in [Memory::AsIs, Memory::Kept] {
            peers.push(Peers::candle(program, memory, threads, &tensors)?);
        }
    }
    Ok(peers)
}

fn progress(message: &str) {
    eprintln!("{message}");
}
