//! The command line, and the order of things.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;
use tpgm_examples::fingerprint::Fingerprint;
use tpgm_examples::progress::Progress;
use tpgm_examples::search::{Point, SearchArgs, Swept, sweep_over_seeds};
use tpgm_examples::stop::{Stop, Stopped};
use tpgm_examples::study::RecordArgs;
use tpgm_examples::{folder, workers};

use crate::lab::{Lab, Outcome};
use crate::method::{Method, Setting};
use crate::pretrain::{Pretrain, pretrain};
use crate::world::{Scale, World};
use crate::{report, rows};

/// Fine-tunes a small pair of image and text towers on real images with the methods of the wider family, and tests it in other
/// domains.
///
/// Everything is drawn from a seed: nothing is downloaded. Ctrl-C stops; the same command with --resume goes on after the runs that
/// are finished.
#[derive(Debug, Clone, Parser)]
#[command(name = "family_mini", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Folder for tables and outcomes
    #[arg(long, default_value = "runs/family_mini")]
    out: PathBuf,
    /// Go on with the interrupted study in --out
    #[arg(long)]
    resume: bool,
    /// Sweep four settings of every method, then repeat the best with two other seeds
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Everything very small, to see that it works (seconds)
    #[arg(long)]
    quick: bool,
    /// Seed of new parameters and of the order of images; with --full the first of three
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    records: RecordArgs,
    /// Runs at the same time, one thread each [default: number of processors, at most 4]
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
    /// The pre-trained pair [default: the one in the repository]
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Steps of every training run [default: 300]
    #[arg(long)]
    steps: Option<u64>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Train both towers on pairs of images and texts of all domains, and write the checkpoint that everything starts from
    Pretrain(Pretrain),
}

/// Seed of the classes and images. One world for all runs: seeds of training are compared on the same images.
const WORLD: u64 = 0;

/// Seeds of `--full`.
const SEEDS: u64 = 3;

/// What must be the same to go on with a study.
#[derive(Debug, Serialize)]
struct Config {
    full: bool,
    seed: u64,
    #[serde(skip_serializing_if = "SearchArgs::is_default")]
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
pub(crate) fn run(args: &Args, progress: &Progress, stop: &Stop) -> Result<()> {
    if let Some(Command::Pretrain(options)) = &args.command {
        return pretrain(options, progress);
    }
    let begun = Instant::now();
    args.search.check()?;
    let mut scale = if args.quick { Scale::QUICK } else { Scale::NORMAL };
    scale.steps = args.steps.unwrap_or(scale.steps);
    ensure!(scale.steps > 0, "--steps is 0: there is nothing to compare without training");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/family_mini/pretrained.safetensors");
    let checkpoint = args.checkpoint.clone().unwrap_or(own);
    let files = Fingerprint::default().file("checkpoint", &checkpoint)?;
    let config = Config { full: args.full, seed: args.seed, search: args.search.clone(), scale, files };
    let runs = folder::prepare(&args.out, "runs", args.resume, &config)?;
    progress.line("drawing the images");
    let world = World::draw(WORLD, &scale)?;
    let head = args.out.join("zero_shot.safetensors");
    let records = args.records.open("family_mini", &(scale, &config.files))?;
    let journals = args.records.journals(records.as_ref(), &runs, args.seed);
    // Trials go where outcomes go: both are of one configuration.
    let journal = match (&args.records.outcomes, &records) {
        (Some(path), Some(records)) => {
            path.with_file_name(format!("autoft_{}_{}.jsonl", records.print(), args.seed))
        }
        _ => runs.join("autoft.jsonl"),
    };
    let (records, seed) = (records.as_ref(), args.seed);
    let lab = Lab { world: &world, scale, checkpoint, head, runs, records, journal, seed, progress, stop };
    lab.write_head()?;

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
    let setting =
        |(method, (lr, strength), seed): (Method, Point, u64)| Setting { method, lr, strength, seed };
    if !args.full {
        let settings = Method::ALL.map(|method| setting((method, method.setting(), lab.seed)));
        let all = run_all(lab, jobs, settings.to_vec())?;
        let chosen = all.iter().map(|outcome| vec![outcome.clone()]).collect();
        return Ok(Swept { all, chosen });
    }
    let methods = Method::ALL.map(|method| (method, method.name(), method.axes())).to_vec();
    let run = |points: Vec<_>| run_all(lab, jobs, points.into_iter().map(setting).collect()).map(Some);
    let seeds = lab.seed..lab.seed + SEEDS;
    let swept = sweep_over_seeds(&args.search, journals, seeds, methods, run, |outcome| outcome.choice)?;
    Ok(swept.ok_or(Stopped)?)
}

/// Runs settings, those of one base in one go, and returns their outcomes in the same order.
fn run_all(lab: &Lab<'_>, jobs: usize, settings: Vec<Setting>) -> Result<Vec<Outcome>> {
    let outcomes = workers::run(jobs, 1, grouped(settings.clone()), |group| rows::run(lab, &group))?.concat();
    let of = |setting: &Setting| {
        let outcome = outcomes.iter().find(|outcome| outcome.setting == *setting);
        outcome.cloned().with_context(|| format!("{} was not run", setting.method.name()))
    };
    settings.iter().map(of).collect()
}

/// Settings that are made from the same run stand together.
fn grouped(settings: Vec<Setting>) -> Vec<Vec<Setting>> {
    let shared = |method: Method| matches!(method.base(), Method::FineTuning | Method::Bang);
    let base = |setting: &Setting| (setting.method.base(), setting.lr.to_bits(), setting.seed);
    let mut groups: Vec<Vec<Setting>> = Vec::new();
    for setting in settings {
        let same = |group: &&mut Vec<Setting>| shared(setting.method) && base(&group[0]) == base(&setting);
        match groups.iter_mut().find(same) {
            Some(group) => group.push(setting),
            // First: it takes longest.
            None if setting.method == Method::AutoFt => groups.insert(0, vec![setting]),
            None => groups.push(vec![setting]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(method: Method, lr: f64, strength: Option<f64>) -> Setting {
        Setting { method, lr, strength, seed: 0 }
    }

    #[test]
    fn settings_of_one_base_are_one_job() {
        let groups = grouped(vec![
            setting(Method::FineTuning, 1e-3, None),
            setting(Method::FineTuning, 3e-4, None),
            setting(Method::L2Sp, 1e-3, Some(0.1)),
            setting(Method::L2Sp, 1e-3, Some(0.3)),
            setting(Method::WiseFt, 1e-3, Some(0.5)),
            setting(Method::Bang, 1e-3, Some(0.5)),
            setting(Method::Bang, 1e-3, Some(0.7)),
            setting(Method::AutoFt, 0.0, None),
        ]);
        let methods: Vec<Vec<Method>> =
            groups.iter().map(|group| group.iter().map(|setting| setting.method).collect()).collect();
        assert_eq!(
            methods,
            [
                vec![Method::AutoFt],
                vec![Method::FineTuning, Method::WiseFt],
                vec![Method::FineTuning],
                vec![Method::L2Sp],
                vec![Method::L2Sp],
                vec![Method::Bang, Method::Bang],
            ]
        );
    }
}
