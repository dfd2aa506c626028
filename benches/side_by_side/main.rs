//! Floors, our code and its peers, interleaved round by round in one run, as one table and as rows of a data file.
//!
//! Numbers of different runs of a noisy machine cannot be compared; the rounds of one run can. Every round runs every
//! contestant once, in an order that rotates from round to round.
#![allow(clippy::print_stderr, reason = "a command line tool shows progress")]

mod compare;
mod contention;
mod machine;
mod report;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use tpgm_benches::{Method, Model, PeerOptions, Peers};

use crate::compare::Bench;
use crate::machine::Machine;
use crate::report::Run;

/// Compares methods with the speed of memory and with PyTorch, in one run
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench")]
struct Args {
    /// Whose tensors: vit-b-16, resnet-50, clip-vit-l-14 or llama-3.2-1b
    #[arg(long, default_value = "vit-b-16")]
    model: Model,
    /// What to measure, for example adamw+ftp; may be repeated. All methods if not given
    #[arg(long = "method", value_parser = Method::by_name)]
    methods: Vec<Method>,
    /// Threads of every contestant. All processors if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Measured rounds, after the warm-up
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// A Python interpreter with PyTorch; without one, peers are left out
    #[arg(long)]
    python: Option<PathBuf>,
    /// Checkout of the published FTP code (GT-RIPL/FTP)
    #[arg(long, requires = "python")]
    ftp: Option<PathBuf>,
    /// Checkout of the published TPGM code (PotatoTian/TPGM)
    #[arg(long, requires = "python")]
    tpgm: Option<PathBuf>,
    /// File to which one JSON line per row is appended
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    ensure!(args.threads != Some(0), "--threads must be at least 1");
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let machine = Machine::here();
    let peers = start_peers(&args, threads)?;
    progress(&format!("making the data of {}", args.model));
    let mut bench = Bench::new(args.model, threads, args.rounds, peers)?;

    let methods = match args.methods.is_empty() {
        true => Method::all(),
        false => args.methods,
    };
    let mut rows = Vec::new();
    for (i, method) in methods.iter().enumerate() {
        progress(&format!("{} ({} of {})", method.name, i + 1, methods.len()));
        rows.append(&mut bench.compare(method)?);
    }
    let mut all = bench.floor_rows();
    all.append(&mut rows);

    let run = Run {
        machine: &machine,
        torch: bench.torch(),
        model: args.model.name(),
        params: bench.set().numel(),
        threads,
    };
    let mut out = std::io::stdout().lock();
    write!(out, "{}\n{}", run.heading(bench.set().len()), report::table(&all))?;
    if let Some(path) = &args.out {
        report::append(path, &run, &all)?;
    }
    Ok(())
}

fn start_peers(args: &Args, threads: usize) -> Result<Option<Peers>> {
    let Some(python) = &args.python else {
        progress("peers are left out: give --python PATH, an interpreter with PyTorch");
        return Ok(None);
    };
    progress("starting the peers");
    let options =
        PeerOptions { python: python.clone(), ftp: args.ftp.clone(), tpgm: args.tpgm.clone(), threads };
    Peers::start(&options, &args.model.tensors()).map(Some)
}

fn progress(message: &str) {
    eprintln!("{message}");
}
