//! The command line, and the order of things.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};
use tpgm_examples::files;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

use crate::experiment::{Outcomes, once, sweep};
use crate::lab::Lab;
use crate::method::Method;
use crate::pretrain::{Pretrain, pretrain};
use crate::report::{Quantity, frontier, over_steps, samples, table};
use crate::train::{Net, Start};
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
    /// Runs at the same time, one thread each [default: number of processors, at most 4]
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
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Config {
    full: bool,
    seed: u64,
    scale: Scale,
    checkpoint: PathBuf,
}

/// Does what the command line asks for.
///
/// # Errors
///
/// Options that do not fit, files that cannot be read or written, a loss that is not finite.
pub(crate) fn run(args: &Args, progress: &Progress, stop: &Stop) -> Result<()> {
    if let Some(Command::Pretrain(options)) = &args.command {
        return pretrain(options, progress);
    }
    let begun = Instant::now();
    let config = args.config();
    let scale = config.scale;
    ensure!(scale.batch > 0, "--batch is 0: a step needs at least one image");
    ensure!(scale.steps > 0, "--steps is 0: there is nothing to compare without training");
    let runs = prepare(&args.out, args.resume, &config)?;

    progress.line("drawing the images");
    let world = World::draw(WORLD, &scale)?;
    files::write(&args.out.join("samples.svg"), samples(WORLD, scale.classes)?)?;

    let net = Net::open(&config.checkpoint, Start::NewHead, scale.classes, args.seed)?;
    let batch: Vec<_> = (0..scale.batch.min(world.train.len())).collect();
    net.params.audit(|| net.loss(&world.train, &batch))?;
    let tensors = net.params.all();
    let numbers: usize = tensors.iter().map(|param| param.var().elem_count()).sum();
    progress.line(format!(
        "audit: all {} trainable tensors ({numbers} parameters) get a gradient",
        tensors.len()
    ));

    let save_every = if args.full { 0 } else { (scale.steps / 4).max(1) };
    let lab =
        Lab { world: &world, scale, checkpoint: config.checkpoint.clone(), runs, save_every, progress, stop };
    let threads = args.jobs.map_or_else(default_jobs, NonZero::get);
    let outcomes =
        if args.full { sweep(&lab, threads, args.seed, SEEDS)? } else { once(&lab, threads, args.seed)? };
    let Some(outcomes) = outcomes else {
        let again: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--resume").collect();
        let again = again.iter().map(|arg| format!("{arg} ")).collect::<String>();
        progress.line(format!("\nstopped and saved. To go on: the same command with `-- {again}--resume`"));
        return Ok(());
    };
    write_report(&args.out, &lab, &outcomes, progress)?;
    progress.line(format!("{:.0} seconds in all; see {}", begun.elapsed().as_secs_f64(), args.out.display()));
    Ok(())
}

impl Args {
    fn config(&self) -> Config {
        let mut scale = if self.quick { Scale::QUICK } else { Scale::NORMAL };
        scale.classes = self.classes.unwrap_or(scale.classes);
        scale.train = self.images.unwrap_or(scale.train);
        scale.batch = self.batch.unwrap_or(scale.batch);
        scale.steps = self.steps.unwrap_or(scale.steps);
        let own =
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/domainnet_mini/pretrained.safetensors");
        let checkpoint = self.checkpoint.clone().unwrap_or_else(own);
        Config { full: self.full, seed: self.seed, scale, checkpoint }
    }
}

fn default_jobs() -> usize {
    thread::available_parallelism().map_or(1, |processors| processors.get().min(4))
}

/// Makes the folder ready and returns that of the runs.
fn prepare(out: &Path, resume: bool, config: &Config) -> Result<PathBuf> {
    let (runs, path) = (out.join("runs"), out.join("config.json"));
    let saved: Option<Config> = files::read_json(&path)?;
    match saved {
        None if resume => bail!("there is no run in {}: leave out --resume to begin one", out.display()),
        Some(saved) if resume => ensure!(
            saved == *config,
            "{} was begun with other options ({saved:?}): give the same ones, or leave out --resume to begin anew",
            out.display()
        ),
        // Only what an earlier run of this example wrote is deleted.
        Some(_) if runs.exists() => {
            fs::remove_dir_all(&runs).with_context(|| format!("cannot delete {}", runs.display()))?;
        }
        _ => {}
    }
    files::write_json(&path, config)?;
    Ok(runs)
}

fn write_report(out: &Path, lab: &Lab<'_>, outcomes: &Outcomes, progress: &Progress) -> Result<()> {
    let table = table(&outcomes.chosen);
    files::write(&out.join("table.md"), table.markdown())?;
    files::write(&out.join("table.csv"), table.csv())?;
    files::write_json(&out.join("outcomes.json"), &outcomes.all)?;
    let title = "each method's settings; the one chosen on held-out real images is large";
    files::write(&out.join("frontier.svg"), frontier(&outcomes.all, &outcomes.chosen, title)?)?;
    for chosen in &outcomes.chosen {
        let setting = chosen[0].setting;
        if matches!(setting.method, Method::Tpgm | Method::Ftp) {
            let name = setting.method.name().to_lowercase();
            for (kind, quantity) in [("radius", Quantity::Radius), ("ratio", Quantity::Ratio)] {
                let plot = over_steps(&lab.log(&setting), setting.method, quantity)?;
                files::write(&out.join(format!("{kind}_{name}.svg")), plot)?;
            }
        }
    }
    progress.line(format!("\n{}", table.text()));
    Ok(())
}
