//! Trains and judges.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::{Device, Module, Tensor};
use serde::{Deserialize, Serialize};
use tpgm_candle::nn::prompts::{FeaturePrompt, FeaturePromptBasis};
use tpgm_candle::nn::{Linear, cross_entropy, linear};
use tpgm_candle::{AdamW, Constraint, DataOrder, Params, Projection, RobustOptimizer, Schedule};
use tpgm_examples::files;
use tpgm_examples::loader::next_positions;
use tpgm_examples::metrics::share_of_right;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::{Stop, Stopped};
use tpgm_examples::study::{Ran, Recorded, Records};

use super::graphs::CLASSES;
use super::method::{Prompt, Setting};
use super::net::{Batch, Gin, WIDTH};
use super::world::{Scale, Set, World};

/// Graphs that are predicted at once.
const AT_ONCE: usize = 60;

/// A network with its parameters.
pub(super) struct Net {
    pub(super) params: Params,
    gin: Gin,
    head: Linear,
    prompt: Added,
}

/// What is added to embedded nodes.
enum Added {
    Nothing,
    Single(FeaturePrompt),
    Basis(FeaturePromptBasis),
}

impl Net {
    /// From the checkpoint, with a new head, and new prompts whose anchor is zero.
    pub(super) fn open(checkpoint: &Path, setting: &Setting) -> Result<Self> {
        let mut params = Params::open(checkpoint, &Device::Cpu)?.seed(setting.seed).head("head.*");
        if !setting.method.trains_network() {
            params = params.freeze("gin.*");
        }
        let vb = params.var_builder();
        let gin = Gin::new(&vb.pp("gin"))?;
        let head = linear(WIDTH, CLASSES.len(), vb.pp("head"))?;
        let (name, seed) = ("prompts", setting.seed);
        let prompt = match setting.method.prompt(setting.strength.unwrap_or_default()) {
            Prompt::None => Added::Nothing,
            Prompt::Single => Added::Single(FeaturePrompt::zero_anchored(WIDTH, name, seed, &params)?),
            Prompt::Basis(vectors) => {
                Added::Basis(FeaturePromptBasis::zero_anchored(WIDTH, vectors, name, seed, &params)?)
            }
        };
        Ok(Self { params, gin, head, prompt })
    }

    /// Logits of shape (graphs, classes).
    pub(super) fn logits(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let nodes = self.gin.embed(batch)?;
        let nodes = match &self.prompt {
            Added::Nothing => nodes,
            Added::Single(prompt) => prompt.forward(&nodes)?,
            Added::Basis(basis) => basis.forward(&nodes)?,
        };
        self.head.forward(&self.gin.forward(&nodes, batch)?)
    }
}

/// What a setting led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) setting: Setting,
    /// Accuracy on the graphs for choosing, in `[0, 1]`.
    pub(super) choice: f64,
    /// Accuracy on each test set.
    pub(super) accuracy: Vec<f64>,
    /// Numbers that are trained.
    pub(super) trained: usize,
    /// Seconds of training.
    pub(super) seconds: f64,
}

impl Recorded for Outcome {
    type Setting = Setting;

    fn setting(&self) -> &Setting {
        &self.setting
    }
}

impl Ran for Outcome {
    fn method(&self) -> &'static str {
        self.setting.method.name()
    }

    fn words(&self) -> String {
        self.setting.words()
    }

    fn choice(&self) -> f64 {
        self.choice
    }

    fn accuracy(&self) -> &[f64] {
        &self.accuracy
    }
}

/// Where methods are run.
pub(super) struct Lab<'a> {
    pub(super) world: &'a World,
    pub(super) scale: Scale,
    /// The pre-trained network.
    pub(super) checkpoint: PathBuf,
    /// Where outcomes go.
    pub(super) runs: PathBuf,
    /// Outcomes of earlier runs, also of others than in `runs`.
    pub(super) records: Option<&'a Records<Outcome>>,
    pub(super) progress: &'a Progress,
    pub(super) stop: &'a Stop,
}

impl Lab<'_> {
    /// Trains a setting and judges it, unless its outcome is known.
    ///
    /// # Errors
    ///
    /// [`Stopped`], a loss that is not finite, or files that cannot be read or written.
    pub(super) fn run(&self, setting: &Setting) -> Result<Outcome> {
        let path = self.runs.join(setting.file());
        let known = files::read_json(&path)?.or_else(|| self.records.and_then(|of| of.find(setting)));
        if let Some(outcome) = known {
            return Ok(outcome);
        }
        let net = Net::open(&self.checkpoint, setting)?;
        let begun = Instant::now();
        self.train(&net, setting)?;
        let seconds = begun.elapsed().as_secs_f64();
        let judge = |set: &Set| judge(set, |batch| net.logits(batch));
        let accuracy = self.world.test.iter().map(|(_, set)| judge(set)).collect::<Result<_>>()?;
        let trained = net.params.all().iter().map(|param| param.var().elem_count()).sum();
        let choice = judge(&self.world.choice)?;
        let outcome = Outcome { setting: *setting, choice, accuracy, trained, seconds };
        files::write_json(&path, &outcome)?;
        self.records.map_or(Ok(()), |records| records.add(&outcome))?;
        self.progress.line(format!(
            "{} {} (seed {}): {:.1} % ID, {:.1} % OOD, {seconds:.1} s",
            setting.method.name(),
            setting.words(),
            setting.seed,
            100.0 * outcome.accuracy[0],
            100.0 * outcome.ood()
        ));
        Ok(outcome)
    }

    /// AdamW, a short warm-up and half a cosine wave.
    pub(super) fn train(&self, net: &Net, setting: &Setting) -> Result<()> {
        let Setting { method, lr, seed, .. } = *setting;
        let steps = self.scale.steps;
        let constraint = method.constraint(setting.strength.unwrap_or_default());
        let rule = AdamW::default().lr(lr).weight_decay(0.0);
        let mut optimizer =
            RobustOptimizer::builder(&net.params).rule(rule).constraint(constraint).threads(1).build()?;
        let learns_radii = matches!(constraint, Constraint::Tpgm(_));
        if learns_radii {
            optimizer.set_projection(Projection::Defer); // every step is followed by an update, which projects
        }
        let schedule = Schedule::cosine(lr, steps).warmup(steps / 20);
        let (train, radii) = (&self.world.train, &self.world.radii);
        let mut order = DataOrder::new(train.len(), self.scale.batch, seed)?;
        let mut held_out = DataOrder::new(radii.len(), self.scale.batch, seed)?;
        for step in 0..steps {
            if self.stop.before_step() {
                bail!(Stopped);
            }
            optimizer.set_learning_rate(schedule.lr(step));
            let batch = train.batch(&next_positions(&mut order))?;
            optimizer.backward_step(&cross_entropy(&net.logits(&batch)?, &batch.labels)?)?;
            if learns_radii {
                let batch = radii.batch(&next_positions(&mut held_out))?;
                optimizer.tpgm()?.update(|| cross_entropy(&net.logits(&batch)?, &batch.labels))?;
            }
        }
        Ok(())
    }
}

/// The share of a set that is told rightly, in `[0, 1]`.
fn judge(set: &Set, logits: impl Fn(&Batch) -> candle_core::Result<Tensor>) -> Result<f64> {
    let positions: Vec<_> = (0..set.len()).collect();
    let parts = positions.chunks(AT_ONCE).map(|part| Ok(logits(&set.batch(part)?)?.detach()));
    let scores = Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
    Ok(share_of_right(&scores, &set.labels())?)
}
