//! Pre-training of the backbone on all domains: how the committed checkpoint was made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tpgm_candle::nn::cross_entropy;
use tpgm_examples::mini::{Backbone, HEAD};
use tpgm_examples::progress::Progress;

use crate::evaluate::marks;
use crate::windows::{labels, windows};
use tpgm_examples::mini::data::{Dice, Domain, Request, Split};

/// Images per class and domain that are drawn at once.
const ROUND: usize = 8;

/// Options of pre-training.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Pretrain {
    /// Where to write the checkpoint
    #[arg(long, default_value = "examples/examples/domainnet_mini/pretrained.safetensors")]
    pub(crate) checkpoint: PathBuf,
    /// Classes of pre-training; those of fine-tuning are others
    #[arg(long, default_value_t = 60)]
    pub(crate) classes: usize,
    /// Optimizer steps
    #[arg(long, default_value_t = 3000)]
    pub(crate) steps: usize,
    /// Images per step, all freshly drawn
    #[arg(long, default_value_t = 64)]
    pub(crate) batch: usize,
    /// Peak learning rate: AdamW, linear warm-up over a tenth of the steps, then cosine to zero
    #[arg(long, default_value_t = 2e-3)]
    pub(crate) lr: f64,
    /// Seed of the classes, images and initial weights
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Gives fresh variables values that depend on the seed only (candle's own generator cannot be seeded on the CPU).
fn initialize(vars: &BTreeMap<String, Var>, seed: u64) -> Result<()> {
    for (number, (name, var)) in vars.iter().enumerate() {
        if let (true, &[_, inputs]) = (name.ends_with(".weight"), var.dims()) {
            let mut dice = Dice::new([seed, 2, number as u64, 0]);
            let scale = (2.0 / inputs as f32).sqrt();
            let values: Vec<_> = (0..var.elem_count()).map(|_| scale * dice.bell()).collect();
            var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?;
        }
    }
    Ok(())
}

/// Trains, writes the checkpoint without the head, and prints the accuracy on new images of every domain.
pub(crate) fn pretrain(options: &Pretrain, device: &Device, progress: &Progress) -> Result<()> {
    let vars = VarMap::new();
    let model = Backbone::new(options.classes, VarBuilder::from_varmap(&vars, DType::F32, device))?;
    let vars: BTreeMap<_, _> = {
        let vars = vars.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    };
    initialize(&vars, options.seed)?;
    let rates = ParamsAdamW { lr: options.lr, weight_decay: 0.02, ..Default::default() };
    let mut optimizer = candle_nn::AdamW::new(vars.values().cloned().collect(), rates)?;

    let request = Request::pretraining(options.seed, options.classes).of(Split::Train, ROUND);
    let bar = progress.bar("pre-training", options.steps as u64);
    let (mut round, mut order, mut images) = (0, Vec::new(), request.draw(&[]));
    for step in 0..options.steps {
        if order.len() < options.batch {
            images = request.from(round * ROUND).draw(&Domain::ALL);
            images.check("pre-training")?;
            order = (0..images.len()).collect();
            Dice::new([options.seed, 3, round as u64, 0]).shuffle(&mut order);
            round += 1;
        }
        let batch = order.split_off(order.len().saturating_sub(options.batch));
        let share = step as f64 / options.steps as f64;
        let cosine = 0.5 + 0.5 * (std::f64::consts::PI * share).cos();
        optimizer.set_learning_rate(options.lr * cosine * (share * 10.0).min(1.0));
        let scores = model.forward(&windows(&images, &batch)?.to_device(device)?)?;
        let loss = cross_entropy(&scores, &labels(&images, &batch)?.to_device(device)?)?;
        optimizer.backward_step(&loss)?;
        bar.set_message(format!("loss {:.3}", loss.to_scalar::<f32>()?));
        bar.inc(1);
    }
    bar.finish();

    let backbone: std::collections::HashMap<_, _> = vars
        .iter()
        .filter(|(name, _)| !name.starts_with(HEAD))
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    candle_core::safetensors::save(&backbone, &options.checkpoint)
        .with_context(|| format!("cannot write {}", options.checkpoint.display()))?;
    progress.line(format!("wrote {}", options.checkpoint.display()));
    for domain in Domain::ALL {
        let images = request.of(Split::Test, 20).draw(&[domain]);
        let share = marks(&images, device, |windows| model.forward(windows))?.share();
        progress.line(format!("{:>10}: {:.1} % of new images", domain.name(), 100.0 * share));
    }
    Ok(())
}
