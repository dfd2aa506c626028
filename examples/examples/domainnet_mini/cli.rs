//! The command line, and the order of things.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;
use tpgm_examples::device::DeviceArgs;
use tpgm_examples::fingerprint::Fingerprint;
use tpgm_examples::precision::Precision;
use tpgm_examples::progress::Progress;
use tpgm_examples::search::SearchArgs;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::{self, Described, Head, Lab, Method, Recipe, RecordArgs, Search};
use tpgm_examples::{files, folder, workers};

use crate::pretrain::{Pretrain, pretrain};
use crate::samples::samples;
use crate::task::rule;
use crate::world::{Scale, World};

/// Fine-tunes a small pre-trained backbone on real images with eleven methods and tests it in six domains.
///
/// Everything is drawn from a seed: nothing is downloaded. Ctrl-C saves; the same command with --resume goes on.
#[derive(Debug, Clone, Parser)]
#[command(name = "domainnet_mini", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Folder for tables, plots, logs and checkpoints
    #[arg(long, default_value = "runs/domainnet_mini")]
    out: PathBuf,
    /// Go on with the interrupted run in --out
    #[arg(long)]
    resume: bool,
    /// Sweep learning rate and strength of every method, then repeat the best with other seeds (about 25 minutes)
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Everything very small, to see that it works (seconds)
    #[arg(long)]
    quick: bool,
    /// Seed of the head's initial weights and of the order of images; with --full the first of three
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    records: RecordArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Runs at the same time, one thread each [default: number of processors, at most 4; 1 on a GPU]
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
    /// The pre-trained backbone [default: the one in the repository]
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Classes to fine-tune on [default: 40]
    #[arg(long)]
    classes: Option<usize>,
    /// Real training images per class [default: 40]
    #[arg(long)]
    images: Option<usize>,
    /// Images per step [default: 32]
    #[arg(long)]
    batch: Option<usize>,
    /// Steps of every training run [default: 600]
    #[arg(long)]
    steps: Option<u64>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Train the backbone on all domains and write the checkpoint that everything starts from
    Pretrain(Pretrain),
}

/// Seed of the classes and images. One world for all runs: seeds of training are compared on the same images.
const WORLD: u64 = 0;

/// Seeds of `--full`.
const SEEDS: u64 = 3;

/// What must be the same to go on with a run.
#[derive(Debug, Serialize)]
struct Config {
    full: bool,
    seed: u64,
    #[serde(skip_serializing_if = "SearchArgs::is_default")]
    search: SearchArgs,
    scale: Scale,
    checkpoint: PathBuf,
    /// What the checkpoint holds.
    files: Fingerprint,
}

/// Does what the command line asks for.
///
/// # Errors
///
/// Options that do not fit, files that cannot be read or written, a loss that is not finite.
pub(crate) fn run(args: &Args, progress: &Progress, stop: &Stop) -> Result<()> {
    let device = args.device.place.open()?;
    if let Some(Command::Pretrain(options)) = &args.command {
        return pretrain(options, &device, progress);
    }
    let jobs = args.device.place.runs_at_once(args.jobs.map(NonZero::get), workers::default_count())?;
    let begun = Instant::now();
    args.search.check()?;
    let config = args.config()?;
    let scale = config.scale;
    ensure!(scale.batch > 0, "--batch is 0: a step needs at least one image");
    ensure!(scale.steps > 0, "--steps is 0: there is nothing to compare without training");
    let runs = folder::prepare(&args.out, "runs", args.resume, &config)?;

    progress.line("drawing the images");
    let world = World::draw(WORLD, &scale)?;
    files::write(&args.out.join("samples.svg"), samples(WORLD, scale.classes)?)?;
    let recipe = recipe(&scale, args.full);
    let records = args.records.open("domainnet_mini", &(scale, &config.files))?;
    let journals = args.records.journals(records.as_ref(), &runs, args.seed);
    let lab = Lab {
        task: &world,
        recipe: &recipe,
        checkpoint: config.checkpoint,
        tuned: None,
        runs,
        records: records.as_ref(),
        device: &device,
        progress,
        stop,
    };
    lab.audit(args.seed)?;

    let outcomes = if args.full {
        let search = Search { args: &args.search, journals: &journals };
        study::sweep(&lab, jobs, args.seed, SEEDS, search)?
    } else {
        study::once(&lab, jobs, args.seed)?
    };
    let Some(outcomes) = outcomes else {
        progress.line(folder::how_to_resume());
        return Ok(());
    };
    let described = Described {
        page: "domainnet_mini: methods of robust fine-tuning in six domains",
        title: "each method's settings; the one chosen on held-out real images is large",
        id: "on real images",
        ood: "in five other domains",
    };
    study::write(&args.out, &lab, &outcomes, described)?;
    progress.line(format!("{:.0} seconds in all; see {}", begun.elapsed().as_secs_f64(), args.out.display()));
    Ok(())
}

/// How every model is trained.
pub(crate) fn recipe(scale: &Scale, full: bool) -> Recipe {
    Recipe {
        head: Head::New,
        steps: scale.steps,
        batch: scale.batch,
        radii_batch: scale.batch,
        rule,
        warmup: scale.steps / 20,
        lr_every: 1,
        head_lr: Some(1e-2),
        probe_rates: Vec::new(),
        max_grad_norm: None,
        precision: Precision::F32,
        count_derailed: false,
        rates: vec![3e-4, 1e-3],
        rate: 1e-3,
        own_rates: Vec::new(),
        strengths: Method::strengths,
        methods: Method::ALL.to_vec(),
        save_every: if full { 0 } else { (scale.steps / 4).max(1) },
        threads: 1,
    }
}

impl Args {
    fn config(&self) -> Result<Config> {
        let mut scale = if self.quick { Scale::QUICK } else { Scale::NORMAL };
        scale.classes = self.classes.unwrap_or(scale.classes);
        scale.train = self.images.unwrap_or(scale.train);
        scale.batch = self.batch.unwrap_or(scale.batch);
        scale.steps = self.steps.unwrap_or(scale.steps);
        let own =
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/domainnet_mini/pretrained.safetensors");
        let checkpoint = self.checkpoint.clone().unwrap_or_else(own);
        let files = Fingerprint::default().file("checkpoint", &checkpoint)?;
        let search = self.search.clone();
        Ok(Config { full: self.full, seed: self.seed, search, scale, checkpoint, files })
    }
}
