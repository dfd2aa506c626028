//! The command line, and the order of things.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;
use tpgm_examples::fingerprint::Fingerprint;
use tpgm_examples::progress::Progress;
use tpgm_examples::search::{Point, SearchArgs, Swept, sweep_over_seeds};
use tpgm_examples::stop::{Stop, Stopped};
use tpgm_examples::study::RecordArgs;
use tpgm_examples::{folder, workers};

use super::lab::{Lab, Outcome};
use super::method::{Method, Setting};
use super::pretrain::{Pretrain, pretrain};
use super::report;
use super::world::{Scale, World};

/// Fine-tunes a small pre-trained graph network on new classes of graphs with prompts, a head, or all its weights, and tests it on
/// graphs of other kinds.
///
/// Everything is drawn from a seed: nothing is downloaded. Ctrl-C stops; the same command with --resume goes on after the runs that
/// are finished.
#[derive(Debug, Clone, Parser)]
#[command(name = "graph_mini", version)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Folder for tables and outcomes
    #[arg(long, default_value = "runs/graph_mini")]
    out: PathBuf,
    /// Go on with the interrupted study in --out
    #[arg(long)]
    resume: bool,
    /// Sweep four settings of every method, then repeat the best with two other seeds
    #[arg(long)]
    full: bool,
    /// Everything very small, to see that it works (seconds)
    #[arg(long)]
    quick: bool,
    /// Seed of new parameters and of the order of graphs; with --full the first of three
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    records: RecordArgs,
    /// Runs at the same time, one thread each [default: number of processors, at most 4]
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
    /// The pre-trained network [default: the one in the repository]
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Steps of every training run [default: 400]
    #[arg(long)]
    steps: Option<u64>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Train the network on graphs of all kinds with other motifs, and write the checkpoint that everything starts from
    Pretrain(Pretrain),
}

/// Seed of the graphs. One world for all runs: seeds of training are compared on the same graphs.
const WORLD: u64 = 0;

/// Seeds of `--full`.
const SEEDS: u64 = 3;

/// What must be the same to go on with a study.
#[derive(Debug, Serialize)]
struct Config {
    full: bool,
    seed: u64,
    search: SearchArgs,
    scale: Scale,
    /// What the checkpoint holds.
    files: Fingerprint,
}

/// Does what the command line asks for.
///
/// # Errors
///
/// Options that do not fit, files that cannot be read or written, a loss that is not finite.
pub(super) fn run(args: &Args, progress: &Progress, stop: &Stop) -> Result<()> {
    if let Some(Command::Pretrain(options)) = &args.command {
        return pretrain(options, progress);
    }
    let begun = Instant::now();
    args.search.check()?;
    let mut scale = if args.quick { Scale::QUICK } else { Scale::NORMAL };
    scale.steps = args.steps.unwrap_or(scale.steps);
    ensure!(scale.steps > 0, "--steps is 0: there is nothing to compare without training");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/graph_mini/pretrained.safetensors");
    let checkpoint = args.checkpoint.clone().unwrap_or(own);
    let files = Fingerprint::default().file("checkpoint", &checkpoint)?;
    let Args { full, seed, .. } = *args;
    let config = Config { full, seed, search: args.search.clone(), scale, files };
    let runs = folder::prepare(&args.out, "runs", args.resume, &config)?;
    let world = World::draw(WORLD, &scale);
    let records = args.records.open("graph_mini", &(scale, &config.files))?;
    let journals = args.records.journals(records.as_ref(), &runs, seed);
    let records = records.as_ref();
    let lab = Lab { world: &world, scale, checkpoint, runs, records, progress, stop };
    let jobs = args.jobs.map_or_else(workers::default_count, NonZero::get);
    match study(&lab, jobs, args, &journals) {
        Ok(swept) => report::write(&args.out, &swept, progress)?,
        Err(error) if error.is::<Stopped>() => {
            progress.line(folder::how_to_resume());
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    progress.line(format!("{:.0} seconds in all; see {}", begun.elapsed().as_secs_f64(), args.out.display()));
    Ok(())
}

/// Every method once, or a sweep.
fn study(lab: &Lab<'_>, jobs: usize, args: &Args, journals: &Path) -> Result<Swept<Outcome>> {
    let run = |settings| workers::run(jobs, 1, settings, |setting: Setting| lab.run(&setting));
    if !args.full {
        let all = run(Method::ALL.map(|method| method.setting(args.seed)).to_vec())?;
        let chosen = all.iter().map(|outcome| vec![outcome.clone()]).collect();
        return Ok(Swept { all, chosen });
    }
    let methods = Method::ALL.map(|method| (method, method.name(), method.axes())).to_vec();
    let run_points = |points: Vec<(Method, Point, u64)>| {
        let setting = |(method, (lr, strength), seed)| Setting { method, lr, strength, seed };
        run(points.into_iter().map(setting).collect()).map(Some)
    };
    let seeds = args.seed..args.seed + SEEDS;
    let swept =
        sweep_over_seeds(&args.search, journals, seeds, methods, run_points, |outcome| outcome.choice)?;
    Ok(swept.ok_or(Stopped)?)
}
