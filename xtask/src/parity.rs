//! `cargo xtask parity DIR`: golden cases through an implementation.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, ValueEnum};
use tpgm_core::Cpu;
use tpgm_core::testing::golden::{BackendSubject, OracleSubject, Subject, run_folder};
use tpgm_cuda::{Cuda, Emulator, Gpu, Reports};

use crate::emulate;

/// Options of `parity`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Folder with an `index.json`, laid out as `crates/tpgm-core/tests/golden/README.md` says
    dir: PathBuf,
    /// What is compared
    #[arg(long, value_enum, default_value_t = Implementation::Cpu)]
    backend: Implementation,
    /// Only the cases with this text in their name
    #[arg(long)]
    filter: Option<String>,
    /// Also print each run: element type, source of the gradients, worst number, and what could not be compared
    #[arg(long)]
    verbose: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Implementation {
    /// The plain f64 reference
    Oracle,
    /// The fused CPU backend
    Cpu,
    /// The CUDA kernels, compiled for the CPU: takes a C++ compiler
    Emulated,
    /// The CUDA kernels on the first GPU
    Cuda,
}

impl Implementation {
    fn subject(self) -> Result<Box<dyn Subject>> {
        Ok(match self {
            Implementation::Oracle => Box::new(OracleSubject),
            Implementation::Cpu => Box::new(BackendSubject::new("cpu", Cpu::new())),
            Implementation::Emulated => {
                let Some(library) = emulate::library(emulate::Variant::Plain)? else {
                    bail!("the kernels cannot be compiled for the CPU without a C++ compiler");
                };
                let emulator = Gpu::on(Emulator::load(&library)?).reports(Reports::AtOnce);
                Box::new(BackendSubject::new("emulated", emulator))
            }
            Implementation::Cuda => {
                Box::new(BackendSubject::new("cuda", Cuda::new(0)?.reports(Reports::AtOnce)))
            }
        })
    }
}

/// Prints a line a case and `N passed, N failed` at the end; exits with 1 if a case failed.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let subject = args.backend.subject()?;
    let report = run_folder(&args.dir, subject.as_ref(), args.filter.as_deref())
        .with_context(|| format!("the golden folder {}", args.dir.display()))?;
    for case in &report.cases {
        println!("{case}");
        // Runs that failed are part of the case's own lines.
        for run in case.runs.iter().filter(|run| args.verbose && run.passed()) {
            println!("       {run}");
        }
    }
    let (passed, failed) = report.counts();
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}
