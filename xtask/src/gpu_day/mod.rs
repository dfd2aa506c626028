//! `cargo xtask gpu-day`: what can be had from a GPU that is at hand for minutes, on a machine without Rust and without network.
//!
//! Everything is built here, with NVIDIA's compilers as Python packages, and packed into one folder with a script that runs
//! all of it in one call and brings the results home in two files. `--dry-run` runs that very folder here, under a stand-in
//! for the driver; `--import` takes results into the benchmarks' data files and lists what failed.

mod dry_run;
mod folder;
mod import;
mod programs;
mod results;
#[cfg(all(test, target_os = "linux"))]
mod script_tests;
mod toolkit;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use self::toolkit::Toolkit;

/// Options of `gpu-day`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests of tpgm-candle and the whole training steps, which take candle's CUDA kernels: an hour to build
    #[arg(long)]
    without_candle: bool,
    /// A CUDA toolkit to build with [default: NVIDIA's wheels, 700 MB, once]
    #[arg(long, value_name = "DIR", conflicts_with = "without_candle")]
    cuda_home: Option<PathBuf>,
    /// Checkout of the published FTP code (GT-RIPL/FTP), to take along
    #[arg(long, value_name = "DIR")]
    ftp: Option<PathBuf>,
    /// Checkout of the published TPGM code (PotatoTian/TPGM), to take along
    #[arg(long, value_name = "DIR")]
    tpgm: Option<PathBuf>,
    /// Also run the folder here, under a stand-in for the driver and with tiny tensors: does it end in time, and bring
    /// everything home?
    #[arg(long)]
    dry_run: bool,
    /// Seconds that the dry run may take, as BUDGET of the script
    #[arg(long, value_name = "SECONDS", requires = "dry_run", default_value_t = 570)]
    budget: u64,
    /// Build nothing: append the rows of a results.tar.gz to the benchmarks' data, write their page, list what failed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["without_candle", "cuda_home", "ftp", "tpgm", "dry_run"])]
    import: Option<PathBuf>,
}

/// Builds and packs; tries it, or takes results in, as asked.
///
/// # Errors
///
/// If something does not build, the folder is larger than a GPU machine may take, the dry run finds something wrong, or results
/// cannot be taken in.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(archive) = &args.import {
        return import::run(archive, Path::new(tpgm_benches::options::RESULTS));
    }
    let target = crate::root()?.join("target");
    let toolkit = match &args.cuda_home {
        _ if args.without_candle => None,
        Some(home) => Some(Toolkit::at(home)?),
        None => Some(Toolkit::fetch(&target)?),
    };
    let programs = programs::build(&target.join("gpu-day/build"), toolkit.as_ref())?;
    let published = folder::Published::new(args.ftp.as_deref(), args.tpgm.as_deref())?;
    let folder = folder::pack(&target.join("gpu-day"), &programs, &published)?;
    if args.dry_run {
        dry_run::run(&folder, &target.join("gpu-day/dry-run"), args.budget, toolkit.as_ref())?;
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    println!(
        "take `{}` to the GPU machine; there: OUT=results sh {name}/run.sh\n\
         bring back results/results.tar.gz; here: cargo xtask gpu-day --import results.tar.gz",
        folder.display()
    );
    Ok(())
}

/// Runs a tool of the system; `install` is what has it.
fn call(mut command: Command, install: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status =
        command.status().with_context(|| format!("cannot start `{program}` (Debian: install {install})"))?;
    ensure!(status.success(), "`{program}` ended with {status} (it takes, in Debian's names, {install})");
    Ok(())
}
