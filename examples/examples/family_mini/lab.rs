//! Trains and judges: what the rows are made over.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use tpgm_candle::core::StateDict;
use tpgm_candle::nn::losses::zero_shot_head;
use tpgm_candle::nn::matmul_transposed;
use tpgm_candle::{AdamW, Constraint, DataOrder, Params, RobustOptimizer, Schedule};
use tpgm_examples::files;
use tpgm_examples::loader::next_positions;
use tpgm_examples::metrics::share_of_right;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::{Stop, Stopped};
use tpgm_examples::study::{Ran, Recorded, Records};

use crate::method::Setting;
use crate::net::{HEAD, Pair, WIDTH};
use crate::world::{Batch, Scale, Set, World};

/// Images that are predicted at once.
const AT_ONCE: usize = 180;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trained {
    /// The head.
    Head,
    /// Image tower and head.
    Image,
    /// Both towers and the head.
    All,
    /// Both towers; classes are told by their texts.
    Pair,
    /// The same and the scale of the logits.
    PairAndScale,
}

impl Trained {
    /// Patterns of what is not.
    fn frozen(self) -> &'static [&'static str] {
        match self {
            Trained::Head => &["vision_model.*", "visual_projection.*", "text*", "logit_scale"],
            Trained::Image => &["text*", "logit_scale"],
            Trained::All | Trained::Pair => &["logit_scale"],
            Trained::PairAndScale => &[],
        }
    }
}

/// A model with its parameters.
pub(crate) struct Net {
    pub(crate) params: Params,
    pub(crate) pair: Pair,
    /// Directions of classes, of shape (classes, features): where there is a head.
    head: Option<Tensor>,
}

impl Net {
    /// Logits of a trained head from directions of images, the scale of the pair.
    pub(crate) fn classify(&self, directions: &Tensor) -> candle_core::Result<Tensor> {
        let Some(head) = &self.head else { candle_core::bail!("this net tells classes by their texts") };
        matmul_transposed(directions, head)?.broadcast_mul(&self.pair.scale()?.detach())
    }

    /// Logits of a trained head.
    pub(crate) fn logits(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        self.classify(&self.pair.images(images)?)
    }

    /// A zero-shot head of the texts that the text tower reads now: `count` of each class one after the other.
    pub(crate) fn text_head(&self, ids: &Tensor, classes: usize) -> candle_core::Result<Tensor> {
        let texts = self.pair.texts(ids)?.detach();
        zero_shot_head(&texts.reshape((classes, (), WIDTH))?, &self.pair.scale()?.detach())
    }
}

/// How a model is trained.
pub(crate) struct Course {
    pub(crate) lr: f64,
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) weight_decay: f64,
    pub(crate) constraint: Constraint,
}

/// What a model took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    /// Seconds of training, with the runs that it builds on.
    pub(crate) seconds: f64,
    /// Bytes that are kept beside weights and gradients: moments, importance, averaged teachers, the student's weights while a
    /// teacher is asked, new parameters, other pairs.
    pub(crate) kept: usize,
}

/// What a setting led to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) setting: Setting,
    /// Accuracy on the real images for choosing, in `[0, 1]`.
    pub(crate) choice: f64,
    /// Accuracy in each of the reported domains.
    pub(crate) accuracy: Vec<f64>,
    /// See [`Spent`].
    pub(crate) seconds: f64,
    /// See [`Spent`].
    pub(crate) kept: usize,
    /// Milliseconds to predict an image.
    pub(crate) milliseconds: f64,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
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
pub(crate) struct Lab<'a> {
    pub(crate) world: &'a World,
    pub(crate) scale: Scale,
    /// The pre-trained pair.
    pub(crate) checkpoint: PathBuf,
    /// The zero-shot head, under [`HEAD`]: so that a trained head has an anchor.
    pub(crate) head: PathBuf,
    /// Where outcomes go.
    pub(crate) runs: PathBuf,
    /// Outcomes of earlier runs, also of others than in `runs`.
    pub(crate) records: Option<&'a Records<Outcome>>,
    /// Where AutoFT's trials are written down.
    pub(crate) journal: PathBuf,
    /// The first seed.
    pub(crate) seed: u64,
    pub(crate) progress: &'a Progress,
    pub(crate) stop: &'a Stop,
}

impl Lab<'_> {
    /// Writes the zero-shot head.
    pub(crate) fn write_head(&self) -> Result<()> {
        let net = self.net(Trained::Pair, 0)?;
        let head = net.text_head(&self.world.templates, self.world.classes())?;
        let head = head.broadcast_div(&net.pair.scale()?)?;
        if let Some(folder) = self.head.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Ok(candle_core::safetensors::save(
            &std::collections::HashMap::from([(HEAD.to_owned(), head)]),
            &self.head,
        )?)
    }

    /// The pre-trained pair.
    pub(crate) fn net(&self, trained: Trained, seed: u64) -> Result<Net> {
        self.net_with(trained, seed, |params| params)
    }

    /// The pre-trained pair with parameters that are new.
    pub(crate) fn net_with(
        &self,
        trained: Trained,
        seed: u64,
        more: impl FnOnce(Params) -> Params,
    ) -> Result<Net> {
        let has_head = !matches!(trained, Trained::Pair | Trained::PairAndScale);
        let files = if has_head { vec![&self.checkpoint, &self.head] } else { vec![&self.checkpoint] };
        let mut params = more(Params::open_all(files, &Device::Cpu)?.seed(seed));
        for pattern in trained.frozen() {
            params = params.freeze(*pattern);
        }
        let vb = params.var_builder();
        let pair = Pair::new(vb.clone())?;
        let head = has_head.then(|| vb.get((self.world.classes(), WIDTH), HEAD)).transpose()?;
        Ok(Net { params, pair, head })
    }

    /// The usual course of a setting, without a constraint.
    pub(crate) fn course(&self, setting: &Setting) -> Course {
        let Setting { lr, seed, .. } = *setting;
        Course { lr, seed, steps: self.scale.steps, weight_decay: 0.0, constraint: Constraint::None }
    }

    /// Trains on the real images: AdamW, a short warm-up and half a cosine wave. `step` gets the optimizer and a batch, and takes a
    /// step of its loss.
    ///
    /// # Errors
    ///
    /// [`Stopped`], or what `step` returns.
    pub(crate) fn train(
        &self,
        params: &Params,
        course: Course,
        mut step: impl FnMut(&mut RobustOptimizer, &Batch) -> Result<()>,
    ) -> Result<Spent> {
        let begun = Instant::now();
        let Course { lr, seed, steps, weight_decay, constraint } = course;
        let rule = AdamW::default().lr(lr).weight_decay(weight_decay);
        let mut optimizer =
            RobustOptimizer::builder(params).rule(rule).constraint(constraint).threads(1).build()?;
        let schedule = Schedule::cosine(lr, steps).warmup(steps / 20);
        let mut order = DataOrder::new(self.world.train.len(), self.scale.batch, seed)?;
        for number in 0..steps {
            if self.stop.before_step() {
                bail!(Stopped);
            }
            optimizer.set_learning_rate(schedule.lr(number));
            let batch = self.world.train.batch(&next_positions(&mut order), number)?;
            step(&mut optimizer, &batch)?;
        }
        Ok(Spent { seconds: begun.elapsed().as_secs_f64(), kept: bytes(&optimizer.state()?) })
    }

    /// Batches of the images for learning radii.
    pub(crate) fn radii(&self, seed: u64) -> Result<impl FnMut() -> candle_core::Result<Batch>> {
        let mut order = DataOrder::new(self.world.radii.len(), self.scale.batch, seed)?;
        Ok(move || self.world.radii.batch(&next_positions(&mut order), 0))
    }

    /// Judges predictions and writes the outcome. `predict` gets all images of a set and returns scores of shape (images, classes):
    /// logits or probabilities.
    ///
    /// # Errors
    ///
    /// [`Stopped`], what `predict` returns, or the outcome cannot be written.
    pub(crate) fn judge(
        &self,
        setting: &Setting,
        spent: Spent,
        notes: Vec<String>,
        mut predict: impl FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Outcome> {
        let World { choice, test, .. } = self.world;
        let begun = Instant::now();
        let mut accuracy = Vec::new();
        let chosen = share_of_right(&predict(&choice.images)?, &choice.labels)?;
        for set in test {
            if self.stop.requested() {
                bail!(Stopped);
            }
            accuracy.push(share_of_right(&predict(&set.images)?, &set.labels)?);
        }
        let images = choice.len() + test.iter().map(Set::len).sum::<usize>();
        let milliseconds = 1e3 * begun.elapsed().as_secs_f64() / images as f64;
        let Spent { seconds, kept } = spent;
        let outcome =
            Outcome { setting: *setting, choice: chosen, accuracy, seconds, kept, milliseconds, notes };
        files::write_json(&self.runs.join(setting.file()), &outcome)?;
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

    /// The outcome of an earlier run, or of a record.
    pub(crate) fn known(&self, setting: &Setting) -> Result<Option<Outcome>> {
        let outcome = files::read_json(&self.runs.join(setting.file()))?;
        Ok(outcome.or_else(|| self.records.and_then(|records| records.find(setting))))
    }
}

/// Runs a model over some images, some at once.
pub(crate) fn in_parts(
    images: &Tensor,
    mut forward: impl FnMut(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Tensor> {
    let count = images.dim(0)?;
    let parts: candle_core::Result<Vec<_>> = (0..count)
        .step_by(AT_ONCE)
        .map(|from| Ok(forward(&images.narrow(0, from, AT_ONCE.min(count - from))?)?.detach()))
        .collect();
    Ok(Tensor::cat(&parts?, 0)?)
}

/// The size of a saved state.
pub(crate) fn bytes(state: &StateDict) -> usize {
    state.values().map(|buffer| buffer.len() * buffer.dtype().size()).sum()
}

/// The size of what is trained: what a copy of it takes.
pub(crate) fn bytes_of_all(params: &Params) -> usize {
    params.tensors().values().map(bytes_of).sum()
}

/// The size of a tensor.
pub(crate) fn bytes_of(tensor: &Tensor) -> usize {
    tensor.elem_count() * DType::size_in_bytes(&tensor.dtype())
}
