//! Pre-training of both towers on pairs of images and texts: how the committed checkpoint was made.

use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{D, Device, Tensor};
use tpgm_candle::nn::losses::contrastive;
use tpgm_candle::nn::random::SplitMix64;
use tpgm_candle::{AdamW, Constraint, Params, RobustOptimizer, Schedule};
use tpgm_examples::mini::data::{Detail, Dice, Domain, Request, Split};
use tpgm_examples::progress::Progress;

use crate::net::{Pair, ids, pixels, unit};

/// Options of pre-training.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Pretrain {
    /// Where to write the checkpoint
    #[arg(long, default_value = "examples/examples/family_mini/pretrained.safetensors")]
    pub(crate) checkpoint: PathBuf,
    /// Classes of pre-training; those of fine-tuning are others
    #[arg(long, default_value_t = 1500)]
    pub(crate) classes: usize,
    /// Images per class and domain
    #[arg(long, default_value_t = 2)]
    pub(crate) images: usize,
    /// Optimizer steps
    #[arg(long, default_value_t = 3000)]
    pub(crate) steps: u64,
    /// Pairs per step
    #[arg(long, default_value_t = 96)]
    pub(crate) batch: usize,
    /// Peak learning rate: AdamW, linear warm-up over a twentieth of the steps, then cosine to zero
    #[arg(long, default_value_t = 1e-3)]
    pub(crate) lr: f64,
    /// Seed of the classes, images, their order and the initial weights
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Gives tensors that a new model leaves at zero small random values: embeddings, the class token, the patches. The scale of
/// the logits begins at 1 / 0.07, as CLIP's.
pub(crate) fn initialize(params: &Params, seed: u64) -> Result<()> {
    for param in params.all() {
        let (name, var) = (param.name(), param.var());
        if name.ends_with("logit_scale") {
            var.set(&Tensor::full((1f32 / 0.07).ln(), var.shape(), var.device())?)?;
        } else if !name.ends_with("bias") && var.abs()?.max_all()?.to_scalar::<f32>()? == 0.0 {
            let mut random = SplitMix64::named(seed, name);
            let scale = if name.contains("patch") { 0.05 } else { 0.02 };
            let values: Vec<f32> = (0..var.elem_count()).map(|_| (scale * random.normal()) as f32).collect();
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        }
    }
    Ok(())
}

/// Trains, writes the checkpoint, and prints how often new images of new classes are named rightly, by text alone.
pub(crate) fn pretrain(options: &Pretrain, progress: &Progress) -> Result<()> {
    let params = Params::new(&Device::Cpu).head("*").seed(options.seed);
    let pair = Pair::new(params.var_builder())?;
    initialize(&params, options.seed)?;
    let rule = AdamW::default().lr(options.lr).weight_decay(0.05);
    let mut optimizer = RobustOptimizer::builder(&params)
        .rule(rule)
        .constraint(Constraint::None)
        .max_grad_norm(1.0)
        .build()?;
    let schedule = Schedule::cosine(options.lr, options.steps).warmup(options.steps / 20);

    progress.line("drawing the images");
    let request = Request::pretraining(options.seed, options.classes).of(Split::Train, options.images);
    let (images, words) = (request.draw(&Domain::ALL), request.words());
    images.check("pre-training")?;
    let bar = progress.bar("pre-training", options.steps);
    let (mut order, mut round) = (Vec::new(), 0);
    for step in 0..options.steps {
        if order.len() < options.batch {
            order = (0..images.len()).collect();
            Dice::new([options.seed, 4, round, 0]).shuffle(&mut order);
            round += 1;
        }
        let batch = order.split_off(order.len().saturating_sub(options.batch));
        let detail = if step % 2 == 0 { Detail::Name } else { Detail::Description };
        let texts: Vec<_> = batch
            .iter()
            .map(|position| {
                let domain = Domain::ALL[position / options.images % Domain::ALL.len()];
                words[images.labels()[*position] as usize].text(domain, detail)
            })
            .collect();
        let (seen, read) = (pair.images(&pixels(&images, batch.into_iter())?)?, pair.texts(&ids(&texts)?)?);
        let loss = contrastive(&seen, &read, &pair.scale()?, 0.0)?.loss;
        optimizer.set_learning_rate(schedule.lr(step));
        let info = optimizer.backward_step(&loss)?;
        bar.set_message(format!("loss {:.3}", info.loss.unwrap_or(f64::NAN)));
        bar.inc(1);
        if (step + 1) % 500 == 0 {
            progress.line(format!("step {}: loss {:.3}", step + 1, info.loss.unwrap_or(f64::NAN)));
        }
    }
    bar.finish();
    let tensors: std::collections::HashMap<_, _> = params.tensors().into_iter().collect();
    candle_core::safetensors::save(&tensors, &options.checkpoint)
        .with_context(|| format!("cannot write {}", options.checkpoint.display()))?;
    progress.line(format!("wrote {}", options.checkpoint.display()));
    report(&pair, options.seed, progress)
}

/// Zero-shot accuracy on 24 classes of another world: neither pre-training nor fine-tuning has them.
fn report(pair: &Pair, seed: u64, progress: &Progress) -> Result<()> {
    let request = Request::fine_tuning(seed + 1_000, 24).of(Split::Test, 20);
    for domain in Domain::ALL {
        let images = request.draw(&[domain]);
        let right = |detail| -> Result<f64> {
            let texts: Vec<_> = request.words().iter().map(|words| words.text(domain, detail)).collect();
            let texts = unit(&pair.texts(&ids(&texts)?)?)?;
            let seen = pair.images(&pixels(&images, 0..images.len())?)?;
            let best = seen.matmul(&texts.t()?)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
            let right = best.iter().zip(images.labels()).filter(|(best, label)| best == label).count();
            Ok(100.0 * right as f64 / best.len() as f64)
        };
        let (name, description) = (right(Detail::Name)?, right(Detail::Description)?);
        progress.line(format!(
            "{:>10}: {name:.1} % by name, {description:.1} % by description, of 24 classes that are new",
            domain.name()
        ));
    }
    Ok(())
}
