//! The order of things.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tpgm_candle::DataOrder;
use tpgm_candle::models::Activation;
use tpgm_examples::data::images::{Augmentation, Crop, PREPROCESSING_FILES, Transform};
use tpgm_examples::data::{Problems, Strictness};
use tpgm_examples::fingerprint::Fingerprint;
use tpgm_examples::precision::Precision;
use tpgm_examples::progress::Progress;
use tpgm_examples::search::SearchArgs;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::{self, Described, Head, Lab, Method, Recipe, Search, Task};
use tpgm_examples::{files, folder, hub};

use crate::images::{Images, Places};
use crate::network::Arch;
use crate::options::{Args, Command, Sources};
use crate::prepare::Preparation;
use crate::preset::{Defaults, Preset, Schedule};
use crate::pretrain::pretrain;
use crate::start::{DependsOn, Found, Prompts};
use crate::task::Classification;

/// What must be the same to go on with a run.
#[derive(Debug, Serialize)]
struct Config {
    preset: Option<Preset>,
    arch: Arch,
    model: String,
    config: Option<PathBuf>,
    activation: Option<Activation>,
    prefix: String,
    key: Option<String>,
    unused: Vec<String>,
    train: PathBuf,
    held_out: Option<PathBuf>,
    radii: Option<PathBuf>,
    tests: Vec<(String, PathBuf)>,
    root: Option<PathBuf>,
    zero_shot: bool,
    probed_head: bool,
    class_names: Option<PathBuf>,
    templates: Vec<String>,
    tuned: Option<PathBuf>,
    full: bool,
    #[serde(skip_serializing_if = "SearchArgs::is_default")]
    search: SearchArgs,
    seed: u64,
    epochs: u64,
    batch: usize,
    #[serde(skip_serializing_if = "Precision::is_default")]
    dtype: Precision,
    rates: Vec<f64>,
    head_lr: Option<f64>,
    transform: Transform,
    augmentation: Augmentation,
    /// What the model and the images are.
    files: Fingerprint,
}

/// Does what the command line asks for.
///
/// # Errors
///
/// Options that do not fit, files that cannot be read or written, a loss that is not finite.
pub(crate) fn run(args: &Args, progress: &Progress, stop: &Stop) -> Result<()> {
    let begun = Instant::now();
    if let Some(Command::Pretrain(options)) = &args.command {
        return pretrain(options, progress, stop);
    }
    args.search.check()?;
    let jobs = args.device.place.runs_at_once(Some(args.jobs.get()), 1)?;
    let device = args.device.place.open()?;
    let defaults = Defaults::of(args.preset, args.arch());
    let sources = args.sources()?;
    let (model, checkpoint) = locate(args)?;
    let beside = model.join("config.json");
    // The files of CLIP's and other ResNets come without one, or with one of another kind, and so do those of timm.
    let has_config =
        matches!(args.arch(), Arch::Vit | Arch::ClipVit) && beside.exists() && !is_timm(&beside)?;
    let shape_file = args.config.clone().or(has_config.then_some(beside));
    let shape = args.arch().shape(shape_file.as_deref(), args.activation)?;
    let prepared = Preparation::find(args, &model, shape.side(), defaults.side)?;
    let transform = prepared.transform;
    let augmentation = match args.smallest_area {
        Some(smallest_area) => Augmentation::Window(Crop { smallest_area, mirror: true }),
        None => defaults.augmentation,
    };
    if let Augmentation::Window(Crop { smallest_area, .. }) = augmentation {
        ensure!(
            smallest_area > 0.0 && smallest_area <= 1.0,
            "--smallest-area is {smallest_area}: it must be above 0 and at most 1"
        );
    }
    ensure!(
        args.tuned.is_none() || args.zero_shot,
        "--tuned goes with --zero-shot: from which WiSE-FT and TPGM start"
    );

    let problems = Problems::new(if args.strict { Strictness::Fail } else { Strictness::PassOver });
    let Sources { train, held_out, radii, tests } = &sources;
    let places = Places {
        train,
        held_out: held_out.as_deref(),
        radii: radii.as_deref(),
        tests,
        root: args.root.as_deref(),
    };
    let images = problems.explain(Images::find(&places, &problems))?;
    progress.line(images.describe());
    progress.line(prepared.describe());
    let mut prints = images.prints.clone().file("checkpoint", &checkpoint)?;
    let named =
        [("shape", &shape_file), ("class names", &args.class_names), ("tuned checkpoint", &args.tuned)];
    for (what, path) in named {
        if let Some(path) = path {
            prints = prints.file(what, path)?;
        }
    }
    if args.zero_shot {
        prints = prints.files(&model, &["tokenizer.json"])?;
    }
    let config = Config {
        preset: args.preset,
        arch: args.arch(),
        model: args.model().to_owned(),
        config: args.config.clone(),
        activation: args.activation,
        prefix: args.prefix.clone(),
        key: args.key.clone(),
        unused: args.unused.clone(),
        train: train.clone(),
        held_out: held_out.clone(),
        radii: radii.clone(),
        tests: tests.clone(),
        root: args.root.clone(),
        zero_shot: args.zero_shot,
        probed_head: args.probed_head,
        class_names: args.class_names.clone(),
        templates: args.templates.clone(),
        tuned: args.tuned.clone(),
        full: args.full,
        search: args.search.clone(),
        seed: args.seed,
        epochs: args.epochs.unwrap_or(defaults.epochs),
        batch: args.batch.map_or(defaults.batch, NonZero::get),
        dtype: args.dtype,
        rates: args.rates.clone().unwrap_or_else(|| defaults.rates.clone()),
        head_lr: args.head_lr.or(defaults.head_lr),
        transform,
        augmentation,
        files: prints,
    };
    ensure!(config.epochs > 0, "--epochs is 0: there is nothing to compare without training");
    ensure!(!config.rates.is_empty(), "--rates is empty");
    let recipe = recipe(args, &defaults, &config, images.train.len())?;
    recipe.validate()?;

    let runs = folder::prepare(&args.out, "runs", args.resume, &config)?;
    let classes = images.classes().to_vec();
    let found = Found {
        path: &checkpoint,
        prefix: &args.prefix,
        key: args.key.as_deref(),
        unused: &args.unused,
        shape: &shape,
        classes: &classes,
    };
    let (start, tuned) = (args.out.join("start.safetensors"), args.out.join("tuned.safetensors"));
    if !(args.resume && start.exists()) {
        let prompts = args.zero_shot.then(|| Prompts {
            names: args.class_names.as_deref(),
            templates: &args.templates,
            tokenizer: model.join("tokenizer.json"),
        });
        let report = found.write(&start, prompts.as_ref())?;
        progress.line(report.to_string().trim_end());
        if let Some(path) = &args.tuned {
            let report = Found { path, prefix: "", key: None, ..found }.write_whole(&tuned)?;
            progress.line(report.to_string().trim_end());
        }
    }
    let groups = groups(args, &defaults, tests)?;
    let records = args.records.open(&study_name(args), &config.outcome_depends_on())?;
    let journals = args.records.journals(records.as_ref(), &runs, args.seed);
    if let Some(records) = &records {
        progress.line(format!("{} outcomes of this study are known", records.len()));
    }
    let task = Classification {
        head: found.head()?,
        shape: shape.clone(),
        images,
        transform,
        augmentation,
        groups,
        precision: args.dtype,
        problems,
    };
    let lab = Lab {
        task: &task,
        recipe: &recipe,
        checkpoint: start,
        tuned: args.tuned.as_ref().map(|_| tuned),
        runs,
        records: records.as_ref(),
        device: &device,
        progress,
        stop,
    };
    task.problems.explain(lab.audit(args.seed))?;

    let outcomes = if args.full {
        let search = Search { args: &args.search, journals: &journals };
        study::sweep(&lab, jobs, args.seed, args.seeds, search)
    } else {
        study::once(&lab, jobs, args.seed)
    };
    let outcomes = task.problems.explain(outcomes)?;
    if task.problems.count() > 0 {
        progress.line(task.problems.to_string());
    }
    let Some(outcomes) = outcomes else {
        progress.line(folder::how_to_resume());
        return Ok(());
    };
    let domains = task.domains();
    let described = Described {
        page: "finetune_image: methods of robust fine-tuning on images",
        title: "each method's settings; the one chosen on held-out images is large",
        id: &format!("on {}", domains[0]),
        ood: &format!("on {} shifted sets", domains.len() - 1),
    };
    study::write(&args.out, &lab, &outcomes, described)?;
    if let Some(published) = args.preset.and_then(|preset| preset.published(args.arch())) {
        let beside = published.beside(&domains, &outcomes.all);
        files::write(&args.out.join("published.md"), beside.markdown())?;
        progress.line(format!("published and measured accuracy in percent\n{}", beside.text()));
    }
    progress.line(format!("{:.0} seconds in all; see {}", begun.elapsed().as_secs_f64(), args.out.display()));
    Ok(())
}

impl Config {
    /// What an outcome depends on besides its setting: no paths, and nothing that says which settings are run.
    fn outcome_depends_on(&self) -> impl Serialize {
        let print = (
            (self.arch, self.activation, self.zero_shot, self.probed_head, &self.templates),
            (self.epochs, self.batch, self.head_lr, self.preset),
            (self.transform, self.augmentation, self.files.clone()),
        );
        DependsOn::new(print, self.key.clone(), &self.prefix)
    }
}

/// What people call the study: the folder of its images, where there is one.
fn study_name(args: &Args) -> String {
    let set = args.set.as_deref().and_then(Path::file_name);
    let name = set.map_or("finetune_image".to_owned(), |name| name.to_string_lossy().into_owned());
    args.dtype.study(&if args.probed_head { format!("{name}, probed head") } else { name })
}

/// Groups of test sets, by positions: those that are asked for, or those of the preset whose sets are there.
fn groups(
    args: &Args,
    defaults: &Defaults,
    tests: &[(String, PathBuf)],
) -> Result<Vec<(String, Vec<usize>)>> {
    let position = |name: &str| tests.iter().position(|(test, _)| test == name);
    if args.groups.is_empty() {
        let there = |(name, of): &(&str, &[&str])| {
            let of: Vec<_> = of.iter().filter_map(|test| position(test)).collect();
            (!of.is_empty()).then(|| ((*name).to_owned(), of))
        };
        return Ok(defaults.groups.iter().filter_map(there).collect());
    }
    let by_position = |(name, of): (String, Vec<String>)| {
        let found = |test: &String| {
            position(test).with_context(|| format!("--group {name}: there is no test set `{test}`"))
        };
        let of = of.iter().map(found).collect::<Result<_>>()?;
        Ok((name, of))
    };
    args.groups()?.into_iter().map(by_position).collect()
}

/// The folder of the model, and its checkpoint.
fn locate(args: &Args) -> Result<(PathBuf, PathBuf)> {
    let path = Path::new(args.model());
    if path.is_file() {
        return Ok((path.parent().unwrap_or(Path::new(".")).to_owned(), path.to_owned()));
    }
    let optional = [&PREPROCESSING_FILES[..], &["tokenizer.json"]].concat();
    let folder = hub::model_folder(args.model(), &["model.safetensors"], &optional)?;
    let checkpoint = folder.join("model.safetensors");
    Ok((folder, checkpoint))
}

/// Whether a `config.json` is one of timm: it names the network, but has not its shape.
fn is_timm(path: &Path) -> Result<bool> {
    let config: Option<serde_json::Value> = files::read_json(path)?;
    Ok(config.is_some_and(|config| config.get("architecture").is_some_and(serde_json::Value::is_string)))
}

fn recipe(args: &Args, defaults: &Defaults, config: &Config, images: usize) -> Result<Recipe> {
    let per_epoch = DataOrder::new(images, config.batch, 0)?.batches_per_epoch();
    let steps = per_epoch * config.epochs;
    let each_step = defaults.schedule == Schedule::EachStep;
    // Learning rates that were given count for every method.
    let own_rates = if args.rates.is_some() { Vec::new() } else { defaults.own_rates.clone() };
    let head_lr = if args.zero_shot { args.head_lr } else { config.head_lr };
    let mut methods = args.methods.clone().unwrap_or_else(|| defaults.methods.clone());
    if args.probed_head && args.methods.is_none() {
        // LP-FT is fine-tuning from a probed head.
        methods.retain(|method| *method != Method::FineTuning);
    }
    Ok(Recipe {
        head: match (args.zero_shot, args.probed_head) {
            (true, _) => Head::InCheckpoint,
            (false, true) => Head::Probed,
            (false, false) => Head::New,
        },
        steps,
        batch: config.batch,
        radii_batch: defaults.radii_batch.unwrap_or(config.batch),
        rule: defaults.rule,
        warmup: if each_step { (defaults.warmup * steps as f64) as u64 } else { 0 },
        lr_every: if each_step { 1 } else { per_epoch },
        head_lr,
        probe_rates: if args.head_lr.is_some() { Vec::new() } else { defaults.probe_rates.clone() },
        max_grad_norm: defaults.max_grad_norm,
        precision: args.dtype,
        count_derailed: defaults.count_derailed,
        // A model that was tuned elsewhere is one model, whatever the rates.
        rates: if args.tuned.is_some() { config.rates[..1].to_vec() } else { config.rates.clone() },
        rate: config.rates[0],
        own_rates,
        strengths: defaults.strengths,
        methods,
        save_every: args.save_every,
        threads: args.threads(),
    })
}
