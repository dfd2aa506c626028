//! `cargo xtask parity DIR`: golden cases through an implementation.
//!
//! Folders of optimizers' trajectories go through a backend here; those of the wider family (losses, teachers, pulls, merges,
//! gradients, prompts, searches, adaptation) through the test program `family` of `tpgm-candle`, which knows candle.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, ValueEnum};
use tpgm_core::Cpu;
use tpgm_core::testing::golden::{BackendSubject, OracleSubject, Subject, run_folder};
use tpgm_cuda::{Cuda, Emulator, Gpu, Reports};

use crate::test::FEATURES;
use crate::{cargo, emulate};

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
    if is_family(&args.dir)? {
        return run_family(args);
    }
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

/// What trajectories of optimizers are called: the kind of folder that is run here.
const TRAJECTORIES: [&str; 6] = ["adam_spd", "ftp_adamp", "ftp_sgdp", "tpgm_l2", "tpgm_mars", "wise"];

/// Whether a folder is of the wider family: its index lists cases, and none is a trajectory. A folder without a readable index
/// is left to the runner of trajectories, which says what is wrong with it.
fn is_family(dir: &Path) -> Result<bool> {
    let Ok(text) = std::fs::read_to_string(dir.join("index.json")) else { return Ok(false) };
    let Ok(index) = serde_json::from_str::<serde_json::Value>(&text) else { return Ok(false) };
    let cases = index["cases"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = cases.iter().filter_map(|case| case["case"].as_str()).collect();
    let trajectory = |name: &&str| TRAJECTORIES.contains(&name.split('/').next().unwrap_or_default());
    Ok(!names.is_empty() && !names.iter().any(trajectory))
}

/// Runs the program that knows the wider family; it prints the lines and the counts.
fn run_family(args: &Args) -> Result<()> {
    let dir = args.dir.canonicalize().with_context(|| format!("the folder {}", args.dir.display()))?;
    // As the tests are built, so that nothing is built anew.
    let build = ["test", "--quiet", "--workspace", "--features", FEATURES, "--test", "family", "--"];
    let mut command = cargo(&build);
    command.arg("--dir").arg(dir);
    if let Some(filter) = &args.filter {
        command.args(["--filter", filter]);
    }
    if args.verbose {
        command.arg("--verbose");
    }
    match args.backend {
        Implementation::Cpu => {}
        Implementation::Emulated => {
            let Some(library) = emulate::library(emulate::Variant::Plain)? else {
                bail!("the kernels cannot be compiled for the CPU without a C++ compiler");
            };
            command.env("TPGM_EMULATOR", library);
        }
        Implementation::Oracle | Implementation::Cuda => {
            bail!("folders of this kind run with `--backend cpu` or `--backend emulated`")
        }
    }
    if !command.status().context("cannot start cargo")?.success() {
        std::process::exit(1);
    }
    Ok(())
}
