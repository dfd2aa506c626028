//! The command line, and the order of things.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use serde::Serialize;
use tpgm_candle::models::bert::BertConfig;
use tpgm_examples::data::text::{Fields, TextEncoder};
use tpgm_examples::data::{Problems, Strictness, named};
use tpgm_examples::device::DeviceArgs;
use tpgm_examples::fingerprint::Fingerprint;
use tpgm_examples::precision::Precision;
use tpgm_examples::progress::Progress;
use tpgm_examples::search::SearchArgs;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::{self, Described, Head, Lab, Method, Recipe, RecordArgs, Search, Task};
use tpgm_examples::{folder, hub, workers};

use crate::pooling;
use crate::task::{Classification, rule};
use crate::texts::{Files, Texts};

/// Fine-tunes a BERT-like sentence encoder on classified texts with nine methods, and tests it on shifted texts.
///
/// Texts come from CSV files with a header line, or JSONL files. Ctrl-C saves; the same command with --resume goes on.
#[derive(Debug, Clone, Parser)]
#[command(name = "finetune_text", version, args_override_self = true)]
pub(crate) struct Args {
    /// Folder with config.json, model.safetensors and tokenizer.json, or a model of the Hugging Face hub (feature hf-hub)
    #[arg(long)]
    model: String,
    /// Training texts
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Held-out texts, like the training texts: one half for learning radii, one for choosing settings [default: a fifth
    /// of the training texts]
    #[arg(long, value_name = "FILE")]
    held_out: Option<PathBuf>,
    /// Test texts; the first file is in distribution, the others are shifted. No setting is chosen on them
    #[arg(long = "test", value_name = "[NAME=]FILE", required = true)]
    tests: Vec<String>,
    /// Column (or field) of the texts
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Column (or field) of the classes
    #[arg(long, value_name = "NAME", default_value = "label")]
    label_column: String,
    /// Stop at a row that cannot be used, instead of counting and naming it
    #[arg(long)]
    strict: bool,
    /// Folder for tables, plots, logs and models
    #[arg(long, default_value = "runs/finetune_text")]
    out: PathBuf,
    /// Go on with the interrupted run in --out
    #[arg(long)]
    resume: bool,
    /// Sweep learning rate and strength of every method, then repeat the best with other seeds
    #[arg(long)]
    full: bool,
    /// A small untrained model and made-up texts, to see that it works (seconds): the options that name them need not be given
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Methods to compare
    #[arg(long, value_delimiter = ',', value_name = "METHODS", value_enum, default_values_t = NINE)]
    methods: Vec<Method>,
    /// Seed of the head's initial weights, dropout and the order of texts; with --full the first of several
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seeds of --full
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Passes over the training texts
    #[arg(long, default_value_t = 3)]
    epochs: u64,
    /// Texts per step
    #[arg(long, default_value_t = NonZero::new(32).unwrap())]
    batch: NonZero<usize>,
    /// Tokens of a text; the rest is cut off
    #[arg(long, default_value_t = 128)]
    max_length: usize,
    /// Learning rates of the encoder that --full tries; without it, the first one is used
    #[arg(long, value_delimiter = ',', value_name = "RATES", default_values_t = [1e-4, 3e-5])]
    rates: Vec<f64>,
    /// Learning rate of the head
    #[arg(long, default_value_t = 3e-2)]
    head_lr: f64,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    records: RecordArgs,
    /// Element type of weights and activations
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,
    #[command(flatten)]
    device: DeviceArgs,
    /// Runs at the same time; processors are divided among them [default: number of processors, at most 4; 1 on a GPU]
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
}

const NINE: [Method; 9] = [
    Method::LinearProbe,
    Method::FineTuning,
    Method::LpFt,
    Method::L2Sp,
    Method::WiseFt,
    Method::Tpgm,
    Method::Ftp,
    Method::Spd,
    Method::Digrap,
];

/// What must be the same to go on with a run.
#[derive(Debug, Serialize)]
struct Config {
    model: PathBuf,
    train: PathBuf,
    held_out: Option<PathBuf>,
    tests: Vec<(String, PathBuf)>,
    columns: [String; 2],
    full: bool,
    #[serde(skip_serializing_if = "SearchArgs::is_default")]
    search: SearchArgs,
    seed: u64,
    epochs: u64,
    batch: usize,
    #[serde(skip_serializing_if = "Precision::is_default")]
    dtype: Precision,
    max_length: usize,
    rates: Vec<f64>,
    head_lr: f64,
    /// What the files hold.
    files: Fingerprint,
}

/// Files of a model besides its weights and its tokenizer.
const OPTIONAL: [&str; 1] = [pooling::FILE];

impl Args {
    fn jobs(&self) -> Result<usize> {
        self.device.place.runs_at_once(self.jobs.map(NonZero::get), workers::default_count())
    }

    /// Processors for each run.
    ///
    /// # Errors
    ///
    /// More runs than the device takes.
    pub(crate) fn threads(&self) -> Result<usize> {
        Ok(workers::threads_of(self.jobs()?))
    }
}

/// Does what the command line asks for.
///
/// # Errors
///
/// Options that do not fit, files that cannot be read or written, a loss that is not finite.
pub(crate) fn run(args: &Args, progress: &Progress, stop: &Stop) -> Result<()> {
    let begun = Instant::now();
    ensure!(args.epochs > 0, "--epochs is 0: there is nothing to compare without training");
    ensure!(!args.rates.is_empty(), "--rates is empty");
    ensure!(args.seeds > 0, "--seeds is 0");
    args.search.check()?;
    let (jobs, device) = (args.jobs()?, args.device.place.open()?);
    let tests = args.tests.iter().map(|test| named(test)).collect::<Result<Vec<_>>>()?;
    let files = ["config.json", "model.safetensors", "tokenizer.json"];
    let model = hub::model_folder(&args.model, &files, &OPTIONAL)?;
    let bert = BertConfig::from_file(model.join("config.json"))?;
    ensure!(
        args.max_length <= bert.max_length(),
        "--max-length is {}, the model takes up to {} tokens",
        args.max_length,
        bert.max_length()
    );
    let mut prints = Fingerprint::default().files(&model, &files)?.files(&model, &OPTIONAL)?;
    prints = prints.file("training texts", &args.train)?;
    if let Some(path) = &args.held_out {
        prints = prints.file("held-out texts", path)?;
    }
    for (number, (name, path)) in tests.iter().enumerate() {
        prints = prints.file(format!("test texts {}, {name}", number + 1), path)?;
    }
    let config = Config {
        model: model.clone(),
        train: args.train.clone(),
        held_out: args.held_out.clone(),
        tests: tests.clone(),
        columns: [args.label_column.clone(), args.text_column.clone()],
        full: args.full,
        search: args.search.clone(),
        seed: args.seed,
        epochs: args.epochs,
        batch: args.batch.get(),
        dtype: args.dtype,
        max_length: args.max_length,
        rates: args.rates.clone(),
        head_lr: args.head_lr,
        files: prints,
    };

    let problems = Problems::new(if args.strict { Strictness::Fail } else { Strictness::PassOver });
    let fields = Fields { label: args.label_column.clone(), text: args.text_column.clone() };
    let files = Files { train: &args.train, held_out: args.held_out.as_deref(), tests: &tests, fields };
    let encoder = TextEncoder::open(&model, args.max_length, bert.vocab_size)?.padded_with(bert.padding())?;
    if let Some(warning) = encoder.warning() {
        progress.line(warning);
    }
    let texts = problems.explain(Texts::read(&files, &encoder, &problems))?;
    describe(&texts, &problems, progress);
    let steps = texts.train.len().div_ceil(args.batch.get()) as u64 * args.epochs;
    let task = Classification { config: bert, pooling: pooling::of_model(&model)?, texts };
    let recipe = Recipe {
        head: Head::New,
        steps,
        batch: args.batch.get(),
        radii_batch: args.batch.get(),
        rule,
        warmup: steps / 20,
        lr_every: 1,
        head_lr: Some(args.head_lr),
        probe_rates: Vec::new(),
        max_grad_norm: None,
        precision: args.dtype,
        count_derailed: false,
        rates: args.rates.clone(),
        rate: args.rates[0],
        own_rates: Vec::new(),
        strengths: Method::strengths,
        methods: args.methods.clone(),
        save_every: 0,
        threads: args.threads()?,
    };
    recipe.validate()?;
    let runs = folder::prepare(&args.out, "runs", args.resume, &config)?;
    let checkpoint = model.join("model.safetensors");
    let Config { epochs, batch, max_length, head_lr, ref files, .. } = config;
    let records = args
        .records
        .open(&args.dtype.study("finetune_text"), &(epochs, batch, max_length, head_lr, files))?;
    let journals = args.records.journals(records.as_ref(), &runs, args.seed);
    let lab = Lab {
        task: &task,
        recipe: &recipe,
        checkpoint,
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
        study::sweep(&lab, jobs, args.seed, args.seeds, search)?
    } else {
        study::once(&lab, jobs, args.seed)?
    };
    let Some(outcomes) = outcomes else {
        progress.line(folder::how_to_resume());
        return Ok(());
    };
    let domains = task.domains();
    let described = Described {
        page: "finetune_text: methods of robust fine-tuning on texts",
        title: "each method's settings; the one chosen on held-out texts is large",
        id: &format!("on {}", domains[0]),
        ood: &format!("on {} shifted sets", domains.len() - 1),
    };
    study::write(&args.out, &lab, &outcomes, described)?;
    progress.line(format!("{:.0} seconds in all; see {}", begun.elapsed().as_secs_f64(), args.out.display()));
    Ok(())
}

/// How many texts there are.
fn describe(texts: &Texts, problems: &Problems, progress: &Progress) {
    let classes = texts.classes.len();
    let sets = [("training", &texts.train), ("radii", &texts.radii), ("choice", &texts.choice)];
    let tests = texts.tests.iter().map(|(name, texts)| (name.as_str(), texts));
    let sets: Vec<_> =
        sets.into_iter().chain(tests).map(|(name, set)| format!("{name} {}", set.len())).collect();
    let length = texts.train.tokens() as f64 / texts.train.len() as f64;
    progress.line(format!(
        "{classes} classes; texts: {}; a training text has {length:.0} tokens in the mean",
        sets.join(", ")
    ));
    if problems.count() > 0 {
        progress.line(problems.to_string());
    }
}
