//! Pre-training of the graph network: how the committed checkpoint was made.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Module};
use tpgm_candle::nn::{cross_entropy, linear};
use tpgm_candle::{AdamW, Constraint, Params, RobustOptimizer, Schedule};
use tpgm_examples::metrics::share_of_right;
use tpgm_examples::progress::Progress;

use super::graphs::{Bases, PRETRAINED, Request};
use super::net::{Batch, Gin, WIDTH};

/// Options of pre-training.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Pretrain {
    /// Where to write the checkpoint
    #[arg(long, default_value = "examples/examples/graph_mini/pretrained.safetensors")]
    pub(super) checkpoint: PathBuf,
    /// Optimizer steps, each on graphs of its own
    #[arg(long, default_value_t = 1000)]
    pub(super) steps: u64,
    /// Graphs of each motif per step
    #[arg(long, default_value_t = 10)]
    pub(super) batch: usize,
    /// Peak learning rate: AdamW, linear warm-up over a twentieth of the steps, then cosine to zero
    #[arg(long, default_value_t = 3e-3)]
    pub(super) lr: f64,
    /// Seed of the graphs and the initial weights
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
}

/// Of the sets of pre-training, so that no graph is one of fine-tuning.
const NUMBER: u64 = 100;

/// Trains, writes the checkpoint, and prints how often motifs of new graphs are told rightly.
pub(super) fn pretrain(options: &Pretrain, progress: &Progress) -> Result<()> {
    let params = Params::new(&Device::Cpu).head("*").seed(options.seed);
    let vb = params.var_builder();
    let gin = Gin::new(&vb.pp("gin"))?;
    let head = linear(WIDTH, PRETRAINED.len(), vb.pp("head"))?;
    let rule = AdamW::default().lr(options.lr).weight_decay(0.01);
    let mut optimizer = RobustOptimizer::builder(&params)
        .rule(rule)
        .constraint(Constraint::None)
        .max_grad_norm(1.0)
        .build()?;
    let schedule = Schedule::cosine(options.lr, options.steps).warmup(options.steps / 20);
    let request = Request { motifs: &PRETRAINED, bases: Bases::All, nodes: (8, 40), noise: 0 };
    let bar = progress.bar("pre-training", options.steps);
    let logits = |batch: &Batch| head.forward(&gin.forward(&gin.embed(batch)?, batch)?);
    for step in 0..options.steps {
        let graphs = request.set(options.batch, options.seed, NUMBER + 1 + step);
        let batch = Batch::new(graphs.iter())?;
        optimizer.set_learning_rate(schedule.lr(step));
        let info = optimizer.backward_step(&cross_entropy(&logits(&batch)?, &batch.labels)?)?;
        bar.inc(1);
        if (step + 1) % 500 == 0 {
            progress.line(format!("step {}: loss {:.3}", step + 1, info.loss.unwrap_or(f64::NAN)));
        }
    }
    bar.finish();
    // The head is of other classes than those of fine-tuning.
    let tensors = params.tensors().into_iter().filter(|(name, _)| name.starts_with("gin."));
    candle_core::safetensors::save(&tensors.collect::<HashMap<_, _>>(), &options.checkpoint)
        .with_context(|| format!("cannot write {}", options.checkpoint.display()))?;
    progress.line(format!("wrote {}", options.checkpoint.display()));
    let graphs = request.set(100, options.seed, NUMBER);
    let batch = Batch::new(graphs.iter())?;
    let labels: Vec<_> = graphs.iter().map(|graph| graph.class).collect();
    let right = share_of_right(&logits(&batch)?.to_dtype(DType::F32)?, &labels)?;
    progress.line(format!("{:.1} % of the motifs of new graphs are told rightly", 100.0 * right));
    Ok(())
}
