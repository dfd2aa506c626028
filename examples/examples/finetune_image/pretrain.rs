//! Pre-training: the network learns to recognize images of other classes than those that it is fine-tuned on.
//!
//! It is fine-tuning without a constraint, so it is a run of the study: interrupted, it goes on to the same bits.

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use serde::Serialize;
use tpgm_candle::{AdamW, DataOrder, Rule};
use tpgm_examples::data::images::{Affine, Augmentation, ImageList, Source, Transform};
use tpgm_examples::data::{Problems, Strictness};
use tpgm_examples::device::DeviceArgs;
use tpgm_examples::fingerprint::Fingerprint;
use tpgm_examples::precision::Precision;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::{Head, Lab, Method, Recipe, Setting, Task};
use tpgm_examples::{folder, workers};

use crate::images::Images;
use crate::network::Arch;
use crate::start::Found;
use crate::task::Classification;

/// Options of pre-training.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Pretrain {
    /// Checkpoint to start from, safetensors or PyTorch
    #[arg(long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Kind of network
    #[arg(long, value_enum, default_value = "efficientnet-lite0")]
    pub(crate) arch: Arch,
    /// Shape of the network [default: the usual one]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Images, a folder for each class
    #[arg(long, value_name = "FOLDER")]
    pub(crate) images: PathBuf,
    /// Where to write the checkpoint, without its head
    #[arg(long, value_name = "FILE", default_value = "runs/pretrain/pretrained.safetensors")]
    pub(crate) checkpoint: PathBuf,
    /// Folder for logs and what an interrupted run goes on from
    #[arg(long, default_value = "runs/pretrain")]
    pub(crate) out: PathBuf,
    /// Go on with the interrupted run in --out
    #[arg(long)]
    pub(crate) resume: bool,
    /// Passes over the images
    #[arg(long, default_value_t = 10)]
    pub(crate) epochs: u64,
    /// Images per step
    #[arg(long, default_value_t = NonZero::new(64).unwrap())]
    pub(crate) batch: NonZero<usize>,
    /// Peak learning rate: AdamW without decay, linear warm-up over a twentieth of the steps, then cosine to zero; gradients
    /// are clipped to a norm of 1
    #[arg(long, default_value_t = 5e-4)]
    pub(crate) lr: f64,
    /// Peak learning rate of the head
    #[arg(long, default_value_t = 2.5e-3)]
    pub(crate) head_lr: f64,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 64)]
    pub(crate) side: usize,
    /// Seed of the head's initial weights, the order of images and their augmentation
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Steps between two saves of the run; 0 saves only when stopped
    #[arg(long, default_value_t = 100)]
    pub(crate) save_every: u64,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// What must be the same to go on.
#[derive(Debug, Serialize)]
struct Config {
    arch: Arch,
    epochs: u64,
    batch: usize,
    lr: f64,
    head_lr: f64,
    side: usize,
    seed: u64,
    files: Fingerprint,
}

/// Every so manieth image is looked at again in the end.
const LOOK: usize = 10;

fn rule(lr: f64) -> Rule {
    AdamW::default().lr(lr).weight_decay(0.0).into()
}

/// Trains, writes the checkpoint without its head, and says how many of the images are recognized.
///
/// # Errors
///
/// Files that cannot be read or written, a checkpoint that does not fit, a loss that is not finite.
pub(crate) fn pretrain(options: &Pretrain, progress: &Progress, stop: &Stop) -> Result<()> {
    ensure!(options.epochs > 0, "--epochs is 0: nothing would be trained");
    ensure!(options.side > 0, "--side is 0");
    let device: Device = options.device.place.open()?;
    let problems = Problems::new(Strictness::Fail);
    let shape = options.arch.shape(options.config.as_deref(), None)?;
    let train = ImageList::training(&Source::new(&options.images, None)?, &problems)?;
    let some: Vec<_> = (0..train.len()).step_by(LOOK).collect();
    let config = Config {
        arch: options.arch,
        epochs: options.epochs,
        batch: options.batch.get(),
        lr: options.lr,
        head_lr: options.head_lr,
        side: options.side,
        seed: options.seed,
        files: Fingerprint::default().with("images", &train.digest()).file("checkpoint", &options.model)?,
    };
    let batch = options.batch.get();
    let steps = DataOrder::new(train.len(), batch, 0)?.batches_per_epoch() * options.epochs;
    let runs = folder::prepare(&options.out, "runs", options.resume, &config)?;
    let classes = train.classes().to_vec();
    let found =
        Found { path: &options.model, prefix: "", key: None, unused: &[], shape: &shape, classes: &classes };
    let start = options.out.join("start.safetensors");
    if !(options.resume && start.exists()) {
        progress.line(found.write(&start, None)?.to_string().trim_end());
    }
    let side = options.side;
    let transform = Transform { side, resize: side, ..options.arch.transform() };
    progress.line(format!("{} classes, {} images, {steps} steps; {transform}", classes.len(), train.len()));
    let task = Classification {
        head: found.head()?,
        shape: shape.clone(),
        images: Images {
            radii: train.select(&some),
            both: train.clone(),
            choice: train.select(&some),
            tests: Vec::new(),
            prints: Fingerprint::default(),
            train,
        },
        transform,
        augmentation: Augmentation::Affine(Affine::EMOJI),
        groups: Vec::new(),
        precision: Precision::F32,
        problems,
    };
    let recipe = Recipe {
        head: Head::New,
        steps,
        batch,
        radii_batch: batch,
        rule,
        warmup: steps / 20,
        lr_every: 1,
        head_lr: Some(options.head_lr),
        probe_rates: Vec::new(),
        max_grad_norm: Some(1.0),
        precision: Precision::F32,
        count_derailed: false,
        rates: vec![options.lr],
        rate: options.lr,
        own_rates: Vec::new(),
        strengths: Method::strengths,
        methods: vec![Method::FineTuning],
        save_every: options.save_every,
        threads: workers::threads_of(1),
    };
    let lab = Lab {
        task: &task,
        recipe: &recipe,
        checkpoint: start,
        tuned: None,
        runs,
        records: None,
        device: &device,
        progress,
        stop,
    };
    lab.audit(options.seed)?;
    let setting = Setting { method: Method::FineTuning, lr: options.lr, strength: None, seed: options.seed };
    let Some(outcome) = lab.train(setting, None)? else {
        progress.line(folder::how_to_resume());
        return Ok(());
    };
    let model = lab.model(&setting);
    let mut tensors = candle_core::safetensors::load(&model, &Device::Cpu)?;
    tensors.retain(|name, _| !name.starts_with(&format!("{}.", task.head())));
    if let Some(folder) = options.checkpoint.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    candle_core::safetensors::save(&tensors, &options.checkpoint)
        .with_context(|| format!("cannot write {}", options.checkpoint.display()))?;
    progress.line(format!(
        "{:.1} % of every tenth training image are recognized; {:.0} seconds; wrote {}",
        100.0 * outcome.scores.choice,
        outcome.seconds,
        options.checkpoint.display()
    ));
    Ok(())
}
