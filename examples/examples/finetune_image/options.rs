//! The options of the command line.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use tpgm_candle::models::Activation;
use tpgm_examples::data::images::Resample;
use tpgm_examples::data::named;
use tpgm_examples::device::DeviceArgs;
use tpgm_examples::precision::Precision;
use tpgm_examples::search::SearchArgs;
use tpgm_examples::study::{Method, RecordArgs};
use tpgm_examples::workers;

use crate::network::{self, Arch};
use crate::preset::Preset;
use crate::pretrain::Pretrain;

/// Fine-tunes an image classifier with methods of robust fine-tuning, and tests it on shifted images.
///
/// Images come from a folder with a folder per class, or a list file with lines `path class`. Ctrl-C saves; the same
/// command with --resume goes on.
#[derive(Debug, Clone, Parser)]
#[command(name = "finetune_image", version, args_override_self = true, subcommand_negates_reqs = true)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// The experiment of a paper: sets the options below that are not given
    #[arg(long, value_enum)]
    pub(crate) preset: Option<Preset>,
    /// Checkpoint (safetensors or PyTorch), folder with model.safetensors, or model of the Hugging Face hub (feature hf-hub)
    #[arg(long, required = true)]
    model: Option<String>,
    /// Kind of network
    #[arg(long, value_enum, required = true)]
    arch: Option<Arch>,
    /// Shape of the network [default: config.json beside the checkpoint, or the usual shape]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Activation of a CLIP that has no --config and no config.json: quick-gelu for OpenAI's models and those of OpenCLIP whose
    /// names end in -quickgelu, gelu for OpenCLIP's others
    #[arg(long, value_parser = network::activation)]
    pub(crate) activation: Option<Activation>,
    /// What the checkpoint's names begin with, for example `module.base_encoder.`
    #[arg(long, default_value = "")]
    pub(crate) prefix: String,
    /// Where a PyTorch checkpoint has its weights, for example state_dict_ema [default: under a usual key, which is printed]
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Tensors of the checkpoint that the network need not use: names, or patterns with `*` and `?`
    #[arg(long, value_delimiter = ',', value_name = "PATTERNS")]
    pub(crate) unused: Vec<String>,
    /// All images of a study in one folder, as `cargo xtask data emoji` writes them, instead of the options below: `train`,
    /// `val` for choosing settings, `radii` for learning radii, `test/NAME`, the first being `test/id`
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["train", "held_out", "radii", "tests"])]
    pub(crate) set: Option<PathBuf>,
    /// Training images
    #[arg(long, value_name = "FOLDER|LIST", required_unless_present = "set")]
    pub(crate) train: Option<PathBuf>,
    /// Held-out images, like the training images: one half for learning radii, one for choosing settings [default: a tenth
    /// of the training images]
    #[arg(long, value_name = "FOLDER|LIST")]
    pub(crate) held_out: Option<PathBuf>,
    /// Held-out images for learning radii; those of --held-out are then for choosing settings alone
    #[arg(long, value_name = "FOLDER|LIST", requires = "held_out")]
    pub(crate) radii: Option<PathBuf>,
    /// Test images; the first are in distribution, the others are shifted. No setting is chosen on them
    #[arg(long = "test", value_name = "[NAME=]FOLDER|LIST", required_unless_present = "set")]
    pub(crate) tests: Vec<String>,
    /// Test sets whose mean is also reported apart
    #[arg(long = "group", value_name = "NAME=TEST,TEST")]
    pub(crate) groups: Vec<String>,
    /// What the paths of list files are relative to [default: the folder of the list]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) root: Option<PathBuf>,
    /// Stop at an image that cannot be read, or another file among images, instead of counting and naming it
    #[arg(long)]
    pub(crate) strict: bool,
    /// Start from CLIP's zero-shot classifier instead of a new head; takes tokenizer.json in the folder of the model
    #[arg(long)]
    pub(crate) zero_shot: bool,
    /// Names of the classes for zero-shot prompts, one per line, in the order of the classes [default: the folders' names]
    #[arg(long, value_name = "FILE")]
    pub(crate) class_names: Option<PathBuf>,
    /// Zero-shot prompt, `{}` being the class; give several for their mean
    #[arg(long = "template", value_name = "TEXT", default_value = "a photo of a {}.")]
    pub(crate) templates: Vec<String>,
    /// A checkpoint fine-tuned elsewhere, with its head: WiSE-FT and TPGM post hoc take it instead of training
    #[arg(long, value_name = "FILE")]
    pub(crate) tuned: Option<PathBuf>,
    /// Folder for tables, plots, logs and models
    #[arg(long, default_value = "runs/finetune_image")]
    pub(crate) out: PathBuf,
    /// Go on with the interrupted run in --out
    #[arg(long)]
    pub(crate) resume: bool,
    /// Sweep learning rate and strength of every method, then repeat the best with other seeds
    #[arg(long)]
    pub(crate) full: bool,
    /// A small untrained model and made-up images, to see that it works (seconds): the options that name them need not be given
    #[arg(long, conflicts_with = "full")]
    pub(crate) quick: bool,
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    #[command(flatten)]
    pub(crate) records: RecordArgs,
    /// Every method starts from the linear probe instead of a new head
    #[arg(long, conflicts_with = "zero_shot")]
    pub(crate) probed_head: bool,
    /// Methods to compare [default: fine-tuning, TPGM, FTP, or those of the preset]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METHODS")]
    pub(crate) methods: Option<Vec<Method>>,
    /// Seed of the head's initial weights, dropout and the order of images; with --full the first of several
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Seeds of --full
    #[arg(long, default_value_t = 3)]
    pub(crate) seeds: u64,
    /// Passes over the training images [default: 10, or those of the preset]
    #[arg(long)]
    pub(crate) epochs: Option<u64>,
    /// Images per step [default: 64, or those of the preset]
    #[arg(long)]
    pub(crate) batch: Option<NonZero<usize>>,
    /// Learning rates that --full tries; without it, the first one is used [default: 1e-5,1e-4, or those of the preset]
    #[arg(long, value_delimiter = ',', value_name = "RATES")]
    pub(crate) rates: Option<Vec<f64>>,
    /// Learning rate of a new head [default: 1e-3, or that of the preset]
    #[arg(long)]
    pub(crate) head_lr: Option<f64>,
    /// Smallest share of a training image that is cut out at random [default: 0.08, or images are turned, scaled and moved
    /// where the preset says so]
    #[arg(long)]
    pub(crate) smallest_area: Option<f64>,
    /// How images are prepared: Hugging Face's preprocessor_config.json, timm's config.json or open_clip_config.json [default:
    /// the first of them beside the checkpoint; without one, as the pre-training of --arch usually did]
    #[arg(long, value_name = "FILE")]
    pub(crate) preprocessor: Option<PathBuf>,
    /// Side of the images in pixels, for networks that take any [default: that of the preset or the preprocessor, or
    /// 224]
    #[arg(long)]
    pub(crate) side: Option<usize>,
    /// The length that the shorter side is scaled to, before the middle is cut out [default: that of the preprocessor]
    #[arg(long, value_name = "PIXELS")]
    pub(crate) resize: Option<usize>,
    /// Scale both sides to that length (true) or the shorter one (false) [default: what the preprocessor says]
    #[arg(long, value_name = "true|false")]
    pub(crate) squash: Option<bool>,
    /// How images are scaled [default: what the preprocessor says, or bicubic]
    #[arg(long, value_enum, value_name = "FILTER", hide_short_help = true)]
    pub(crate) resample: Option<Resample>,
    /// Mean of red, green and blue, of values from 0 to 1 [default: that of the preprocessor]
    #[arg(long, value_delimiter = ',', value_name = "R,G,B")]
    pub(crate) mean: Option<Vec<f32>>,
    /// Standard deviation of red, green and blue [default: that of the preprocessor]
    #[arg(long, value_delimiter = ',', value_name = "R,G,B")]
    pub(crate) deviation: Option<Vec<f32>>,
    /// Steps between two checkpoints; 0 saves only when stopped
    #[arg(long, default_value_t = 500)]
    pub(crate) save_every: u64,
    /// Element type of weights and activations
    #[arg(long, value_enum, default_value_t, hide_short_help = true)]
    pub(crate) dtype: Precision,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Runs at the same time; processors are divided among them
    #[arg(long, default_value_t = NonZero::<usize>::MIN)]
    pub(crate) jobs: NonZero<usize>,
}

/// Something else than fine-tuning.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Train the network to recognize images, and write the checkpoint that fine-tuning then starts from
    Pretrain(Pretrain),
}

/// Where the images of a study are.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    pub(crate) train: PathBuf,
    pub(crate) held_out: Option<PathBuf>,
    pub(crate) radii: Option<PathBuf>,
    /// With the names of the sets.
    pub(crate) tests: Vec<(String, PathBuf)>,
}

impl Sources {
    /// Of a folder with everything.
    fn in_set(folder: &Path) -> Result<Self> {
        let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_dir());
        let missing = |name: &str| {
            format!(
                "--set {}: it has no folder {name}; `cargo xtask data emoji` makes such folders",
                folder.display()
            )
        };
        let tests = there("test").with_context(|| missing("test"))?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&tests).with_context(|| format!("cannot read {}", tests.display()))? {
            let entry = entry.with_context(|| format!("cannot read {}", tests.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() && !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort_by_key(|name| (name != "id", name.clone()));
        ensure!(names.first().is_some_and(|name| name == "id"), missing("test/id"));
        Ok(Self {
            train: there("train").with_context(|| missing("train"))?,
            held_out: Some(there("val").with_context(|| missing("val"))?),
            radii: there("radii"),
            tests: names.into_iter().map(|name| (name.clone(), tests.join(name))).collect(),
        })
    }
}

impl Args {
    /// The checkpoint, its folder or its name.
    pub(crate) fn model(&self) -> &str {
        self.model.as_deref().expect("the command line needs --model where there is no other command")
    }

    /// Kind of network.
    pub(crate) fn arch(&self) -> Arch {
        self.arch.expect("the command line needs --arch where there is no other command")
    }

    /// Where the images are.
    ///
    /// # Errors
    ///
    /// A folder is missing, or an option names none.
    pub(crate) fn sources(&self) -> Result<Sources> {
        if let Some(folder) = &self.set {
            return Sources::in_set(folder);
        }
        Ok(Sources {
            train: self.train.clone().context("--train or --set: there are no training images")?,
            held_out: self.held_out.clone(),
            radii: self.radii.clone(),
            tests: self.tests.iter().map(|test| named(test)).collect::<Result<_>>()?,
        })
    }

    /// The groups of test sets: names, and the names of their sets.
    ///
    /// # Errors
    ///
    /// An option that is not `NAME=TEST,TEST`.
    pub(crate) fn groups(&self) -> Result<Vec<(String, Vec<String>)>> {
        let group = |option: &String| {
            let (name, tests) = option
                .split_once('=')
                .with_context(|| format!("--group {option}: expected NAME=TEST,TEST"))?;
            Ok((name.to_owned(), tests.split(',').map(str::to_owned).collect()))
        };
        self.groups.iter().map(group).collect()
    }

    /// Processors for each run.
    pub(crate) fn threads(&self) -> usize {
        workers::threads_of(self.jobs.get())
    }
}
