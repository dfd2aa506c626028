//! The command line, and the order of things.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Parser;
use serde::{Deserialize, Serialize};
use tpgm_candle::Params;
use tpgm_candle::lora::{LoraConfig, save_adapter};
use tpgm_candle::models::llama::{Llama, LlamaConfig};
use tpgm_examples::device::DeviceArgs;
use tpgm_examples::fingerprint::Fingerprint;
use tpgm_examples::precision::Precision;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::Log;
use tpgm_examples::table::Table;
use tpgm_examples::{files, folder};

use crate::language::Language;
use crate::page::page;
use crate::sample::{Sampling, continued, perplexity};
use crate::text::{Encoder, Windows, read, split};
use crate::tiny::{self, Pretraining};
use crate::train::{Bound, Ended, Training};

/// Fine-tunes a decoder (Llama, Qwen2) on a text with LoRA, and measures what it learned and what it forgot.
///
/// The last part of the text is held out: it is never trained on. Ctrl-C saves; the same command with --resume goes on.
#[derive(Debug, Clone, Parser)]
#[command(name = "finetune_lora", version, args_override_self = true)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and model.safetensors (or its shards)
    #[arg(long, value_name = "DIR", required_unless_present_any = ["tiny", "quick"], requires = "train")]
    model: Option<PathBuf>,
    /// Without a model: pre-train a small one on bytes of a generated text, and adapt it to another one (a minute)
    #[arg(long, conflicts_with = "model")]
    tiny: bool,
    /// As --tiny with few short steps, to see that it works (seconds)
    #[arg(long, conflicts_with = "model")]
    quick: bool,
    /// Text to train on, in UTF-8
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,
    /// Another text, to see what is forgotten; may be repeated
    #[arg(long, value_name = "FILE")]
    test: Vec<PathBuf>,
    /// Share of the text, at its end, that is held out
    #[arg(long, default_value_t = 0.1)]
    held_out_share: f64,
    /// Folder for the adapter, checkpoints and results
    #[arg(long, default_value = "runs/finetune_lora")]
    out: PathBuf,
    /// Go on with the interrupted run in --out
    #[arg(long)]
    resume: bool,
    /// Rank of the update of each layer
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// The update is scaled by alpha / rank
    #[arg(long, default_value_t = 16.0)]
    alpha: f64,
    /// Layers to adapt: names, their ends, or patterns with `*` and `?`
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    )]
    targets: Vec<String>,
    /// What bounds the factors around zero
    #[arg(long, value_enum, default_value = "spd")]
    constraint: Bound,
    /// Strength of SPD (at least 0), or `k` of FTP (0 to 1)
    #[arg(long, default_value_t = 1.0)]
    strength: f64,
    /// Learning rate of AdamW
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Steps of fine-tuning [default: 200, with --tiny 400, with --quick 20]
    #[arg(long)]
    steps: Option<u64>,
    /// Steps of pre-training without a model [default: 600, with --quick 40]
    #[arg(long)]
    pretrain_steps: Option<u64>,
    /// Tokens in a sequence [default: 256, with --tiny 96, with --quick 32]
    #[arg(long)]
    max_length: Option<usize>,
    /// Sequences in a step [default: 4, with --tiny 16, with --quick 8]
    #[arg(long)]
    batch: Option<usize>,
    /// Seed of factors, order of batches, and samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between two checkpoints; 0 saves only at the end and when stopped
    #[arg(long, default_value_t = 100)]
    save_every: u64,
    /// Element type of the frozen weights and of activations; factors are f32
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,
    #[command(flatten)]
    device: DeviceArgs,
    /// What the samples before and after begin with [default: the begin of the held-out text]
    #[arg(long)]
    prompt: Option<String>,
    /// Tokens of a sample; 0 for none
    #[arg(long, default_value_t = 80)]
    sample_tokens: usize,
    /// Temperature of the samples; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
}

/// What must be the same to go on with a run.
#[derive(Debug, Serialize)]
struct Config {
    model: Option<PathBuf>,
    /// Without a model.
    pretrain_steps: Option<u64>,
    text: Option<PathBuf>,
    held_out: f64,
    length: usize,
    lora: LoraConfig,
    training: Training,
    /// What the files hold.
    files: Fingerprint,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Name of a text, with its perplexity before and after.
    pub(crate) perplexities: Vec<(String, f64, f64)>,
    /// Milliseconds per step, and where they went.
    pub(crate) times: tpgm_examples::timing::StepTimes,
}

/// Bytes of the generated texts.
const FARM: usize = 120_000;
const SEA: usize = 60_000;

/// Texts as they are read: to train on, held out, and out of distribution with their names.
struct Texts {
    train: String,
    held_out: String,
    ood: Vec<(String, String)>,
}

/// Does what the command line asks for.
///
/// # Errors
///
/// Options that do not fit, files that cannot be read or written, a loss that is not finite.
pub(crate) fn run(args: &Args, progress: &Progress, stop: &Stop) -> Result<()> {
    let config = args.config()?;
    let device = &args.device.place.open()?;
    let texts = args.texts()?;
    let checkpoints = folder::prepare(&args.out, "checkpoints", args.resume, &config)?;
    let pretrained = match &args.model {
        Some(folder) => folder.clone(),
        None => args.pretrained(&config, device, progress)?,
    };
    let shape = LlamaConfig::from_file(pretrained.join("config.json"))?;
    check_length(config.length, &shape)?;
    let encoder = match &args.model {
        Some(folder) => Encoder::open(folder, shape.vocab_size)?,
        None => Encoder::Bytes,
    };
    if let Some(warning) = encoder.warning() {
        progress.line(warning);
    }
    let windows = |name: &str, text: &str| -> Result<Windows> {
        Ok(Windows::new(name, encoder.encode(name, text)?, config.length)?.on(device))
    };
    let train = windows("text to train on", &texts.train)?;
    let mut measured = vec![("held out".to_owned(), windows("held-out text", &texts.held_out)?)];
    for (name, text) in &texts.ood {
        measured.push((name.clone(), windows(name, text)?));
    }

    let params = Params::open(&pretrained, device)?.dtype(args.dtype.dtype()).freeze("*");
    let model = Llama::with_lora(&shape, &config.lora, &params)
        .with_context(|| format!("cannot adapt {}", pretrained.display()))?;
    progress.line(params.report()?.to_string().trim_end());
    let batch = train.batch(&[0])?;
    let report = params.audit(|| model.loss(&batch.ids, &batch.counted, false))?;
    let numbers: usize = params.all().iter().map(|param| param.var().elem_count()).sum();
    progress.line(format!(
        "{} factors ({numbers} parameters) get a gradient; {} windows of {} tokens to train on",
        report.trainable,
        train.len(),
        config.length
    ));

    let perplexities = |model: &Llama| -> Result<Vec<f64>> {
        measured.iter().map(|(_, windows)| perplexity(model, windows, config.training.batch)).collect()
    };
    let prompt = args.prompt.clone().unwrap_or_else(|| first_words(&texts.held_out).to_owned());
    let say = |model: &Llama| -> Result<String> {
        let sampling = Sampling {
            tokens: args.sample_tokens,
            temperature: args.temperature,
            seed: args.seed,
            length: config.length,
        };
        encoder.decode(&continued(model, device, &encoder.encode("prompt", &prompt)?, sampling)?)
    };
    // The factors do nothing yet, also where a run goes on: they are loaded by it.
    let before = (perplexities(&model)?, say(&model)?);
    let ended = config.training.train(&params, &model, &train, &checkpoints, progress, stop)?;
    let Ended::Done(times) = ended else {
        progress.line(folder::how_to_resume());
        return Ok(());
    };
    save_adapter(args.out.join("adapter"), &config.lora, &params)?;
    let after = (perplexities(&model)?, say(&model)?);

    let mut table = Table::new(["perplexity", "before", "after"]);
    let mut outcome = Outcome { perplexities: Vec::new(), times };
    for (i, (name, _)) in measured.iter().enumerate() {
        let (before, after) = (before.0[i], after.0[i]);
        table.rows.push(vec![name.clone(), format!("{before:.3}"), format!("{after:.3}")]);
        outcome.perplexities.push((name.clone(), before, after));
    }
    files::write_json(&args.out.join("outcome.json"), &outcome)?;
    files::write(&args.out.join("table.md"), table.markdown())?;
    page(&config, config.training.bound, &params, &table, &Log::read(&checkpoints.join("log.jsonl"), None)?)?
        .write(&args.out)?;
    progress.line(format!("\n{}", table.text()));
    if args.sample_tokens > 0 {
        progress.line(format!("before: {}\n\nafter: {}\n", before.1, after.1));
    }
    progress.line(times.to_string());
    progress.line(format!("the adapter is in {}", args.out.join("adapter").display()));
    Ok(())
}

impl Args {
    /// A small model is made on the spot.
    pub(crate) fn without_model(&self) -> bool {
        self.tiny || self.quick
    }

    fn pretrain_steps(&self) -> u64 {
        self.pretrain_steps.unwrap_or(if self.quick { 40 } else { 600 })
    }

    fn config(&self) -> Result<Config> {
        ensure!(
            self.held_out_share > 0.0 && self.held_out_share < 1.0,
            "--held-out-share is {}, not between 0 and 1",
            self.held_out_share
        );
        let otherwise = |quick, tiny, usual| match (self.quick, self.tiny) {
            (true, _) => quick,
            (_, true) => tiny,
            _ => usual,
        };
        let training = Training {
            bound: self.constraint,
            strength: self.strength,
            lr: self.lr,
            steps: self.steps.unwrap_or(otherwise(20, 400, 200)),
            batch: self.batch.unwrap_or(otherwise(8, 16, 4) as usize),
            seed: self.seed,
            save_every: self.save_every,
            precision: self.dtype,
        };
        ensure!(training.steps > 0, "--steps is 0: there is nothing to train");
        ensure!(training.batch > 0, "--batch is 0: a step needs a sequence");
        let (rank, alpha, targets, seed) = (self.rank, self.alpha, self.targets.clone(), self.seed);
        let lora = LoraConfig { rank, alpha, targets, seed, ..LoraConfig::default() };
        let length = self.max_length.unwrap_or(otherwise(32, 96, 256) as usize);
        let (model, text, held_out) = (self.model.clone(), self.train.clone(), self.held_out_share);
        let pretrain_steps = self.without_model().then(|| self.pretrain_steps());
        let files = self.fingerprint()?;
        Ok(Config { model, pretrain_steps, text, held_out, length, lora, training, files })
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut files = Fingerprint::default();
        if let Some(folder) = &self.model {
            for path in model_files(folder)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                files = files.file(name, &path)?;
            }
        }
        if let Some(path) = &self.train {
            files = files.file("text", path)?;
        }
        self.test
            .iter()
            .try_fold(files, |files, path| files.file(format!("other text {}", path.display()), path))
    }

    fn texts(&self) -> Result<Texts> {
        let text = match &self.train {
            Some(path) => read(path)?,
            None => Language::Sea.write(SEA, self.seed + 1),
        };
        let (train, held_out) = split(&text, self.held_out_share);
        let mut ood = Vec::new();
        for path in &self.test {
            ood.push((path.display().to_string(), read(path)?));
        }
        if self.without_model() {
            ood.push(("text of pre-training, held out".to_owned(), self.farm().1));
        }
        Ok(Texts { train: train.to_owned(), held_out: held_out.to_owned(), ood })
    }

    /// What the small model is pre-trained on, and what is held out of it.
    fn farm(&self) -> (String, String) {
        let text = Language::Farm.write(FARM, self.seed);
        let (train, held_out) = split(&text, self.held_out_share);
        (train.to_owned(), held_out.to_owned())
    }

    /// The folder of the small model, which is pre-trained unless a run goes on.
    fn pretrained(&self, config: &Config, device: &Device, progress: &Progress) -> Result<PathBuf> {
        let folder = self.out.join("pretrained");
        if !(self.resume && folder.join("model.safetensors").exists()) {
            check_length(config.length, &tiny::config())?;
            let name = "text of pre-training";
            let tokens = Encoder::Bytes.encode(name, &self.farm().0)?;
            let windows = Windows::new(name, tokens, config.length)?;
            let how = Pretraining { steps: self.pretrain_steps(), batch: 16, seed: self.seed };
            tiny::pretrain(&folder, &windows.on(device), how, progress)?;
        }
        Ok(folder)
    }
}

/// The files that a model is read from: in JSON, and its weights.
fn model_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || {
        let paths = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
        paths.collect::<std::io::Result<Vec<_>>>()
    };
    let mut paths = read().with_context(|| format!("cannot read {}", folder.display()))?;
    let kinds = ["json", "safetensors", "bin", "pt", "pth"];
    paths.retain(|path| {
        path.is_file() && kinds.iter().any(|kind| path.extension().is_some_and(|end| end == *kind))
    });
    Ok(paths)
}

fn check_length(length: usize, shape: &LlamaConfig) -> Result<()> {
    let most = shape.max_position_embeddings;
    ensure!(length <= most, "--max-length is {length}, but the model takes up to {most} tokens");
    Ok(())
}

/// The first words of a text, or of its first whole line, to begin a sample with.
fn first_words(text: &str) -> &str {
    let text = text.split_once('\n').map(|(_, rest)| rest).filter(|rest| !rest.is_empty()).unwrap_or(text);
    let end = text.match_indices([' ', '\n']).nth(2).map_or(text.len(), |(end, _)| end);
    &text[..end]
}
