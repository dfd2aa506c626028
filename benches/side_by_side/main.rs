//! Floors, our code and its peers, interleaved round by round in one run, as one table and as rows of a data file.
//!
//! Numbers of different runs of a noisy machine cannot be compared; the rounds of one run can. Every round runs every
//! contestant once, in an order that rotates from round to round.
#![allow(clippy::print_stderr, reason = "a command line tool shows progress")]

mod compare;
mod contention;
mod machine;
mod memory;
mod options;
mod page;
mod quick;
mod report;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Parser;
use tpgm_benches::{CpuTarget, GpuTarget, Memory, Method, Peers, Target, TorchOptions};
use tpgm_cuda::{CudaDevice, Emulator};

use crate::compare::Bench;
use crate::machine::Machine;
use crate::options::{Args, Peer, Place, RESULTS};
use crate::report::Run;

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

fn run<T: Target>(args: &Args, target: T) -> Result<()> {
    let (model, threads) = (args.model(), args.threads()?);
    let machine = Machine::here();
    let (device, driver) = (target.device().to_owned(), target.driver().map(str::to_owned));
    let out = args.results_file(&device)?;
    let peers = start_peers(args)?;
    progress(&format!("making the data of {model}"));
    let mut bench = Bench::new(target, model.param_set(args.dtype)?, args.dtype, args.rounds(), peers)?;

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

    let run = Run {
        machine,
        device,
        driver,
        torch: bench.torch().map(str::to_owned),
        model: model.name().to_owned(),
        dtype: args.dtype,
        params: bench.set().numel(),
        threads,
    };
    let mut text = run.heading(bench.set().len());
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

fn start_peers(args: &Args) -> Result<Vec<Peers>> {
    let tensors = args.model().tensors(args.dtype);
    let threads = args.threads()?;
    let mut peers = Vec::new();
    if args.compares_with(Peer::Torch) {
        progress("starting PyTorch");
        let options = TorchOptions {
            python: args.python(),
            ftp: args.ftp.clone(),
            tpgm: args.tpgm.clone(),
            threads,
            device: args.torch_device(),
            dtype: args.dtype,
        };
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
