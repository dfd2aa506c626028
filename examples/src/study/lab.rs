//! Runs methods and keeps what came out: every result is a file, so that an interrupted run goes on where it was.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tpgm_candle::core::{Constraint, Norm, RadiusAdam};
use tpgm_candle::weight_space::Interpolation;
use tpgm_candle::{DataOrder, Tpgm, TpgmConfig};

use super::run::{Ended, Net, NotFinite, Run, Start};
use super::{Batch, Head, Method, Mode, Pool, Recipe, Records, Scores, Task};
use crate::files;
use crate::loader::Loader;
use crate::progress::Progress;
use crate::stop::Stop;
use crate::timing::StepTimes;

/// One setting of a method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// What constrains it.
    pub method: Method,
    /// Learning rate of all but the head; zero for a linear probe.
    pub lr: f64,
    /// See [`Method::strength_name`].
    pub strength: Option<f64>,
    /// Of the head's initial weights and the order of the samples.
    pub seed: u64,
}

impl Setting {
    /// Name of its folder.
    fn folder(&self) -> String {
        let name = self.method.name().replace(' ', "-");
        let strength = self.strength.map(|strength| format!("_{strength}")).unwrap_or_default();
        format!("{name}_lr{}{strength}_seed{}", self.lr, self.seed)
    }
}

/// What a setting led to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// What was run.
    pub setting: Setting,
    /// How good the model is.
    #[serde(flatten)]
    pub scores: Scores,
    /// Seconds of training to get there, with the runs that it builds on.
    pub seconds: f64,
    /// Where the time of a training step went.
    #[serde(default)]
    pub times: StepTimes,
    /// Why training ended early, with no sample right: a loss or gradient that is not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derailed: Option<String>,
}

/// What a call needs of a run that may have ended earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// How good its model is.
    Outcome,
    /// Its weights: a run of which only the outcome was kept is made again.
    Weights,
}

/// Runs that build on each other, for one seed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// Learning rates of linear probes; see [`Recipe::probe_rates`].
    pub probes: Vec<f64>,
    /// What is wanted of LP-FT, or fine-tuning from a head that is there, of WiSE-FT and of TPGM post hoc.
    pub settings: Vec<Setting>,
}

/// Where methods are run.
pub struct Lab<'a, T> {
    /// What is fine-tuned.
    pub task: &'a T,
    /// How.
    pub recipe: &'a Recipe,
    /// The pre-trained checkpoint, a safetensors file.
    pub checkpoint: PathBuf,
    /// A checkpoint that was fine-tuned elsewhere: fine-tuning then only evaluates it.
    pub tuned: Option<PathBuf>,
    /// The folder of the runs.
    pub runs: PathBuf,
    /// Outcomes of earlier runs, also of others than in `runs`.
    pub records: Option<&'a Records>,
    /// Where models live.
    pub device: &'a Device,
    /// Where bars go.
    pub progress: &'a Progress,
    /// Asks for an early end.
    pub stop: &'a Stop,
}

impl<T: Task> Lab<'_, T> {
    /// Says what became of the checkpoint, and checks that every trainable tensor of the model gets a gradient.
    ///
    /// # Errors
    ///
    /// The checkpoint does not fit, or a tensor gets no gradient.
    pub fn audit(&self, seed: u64) -> Result<()> {
        let net = Net::open(self.task, self.recipe, &self.checkpoint, Start::Pretrained, seed, self.device)?;
        self.progress.line(net.params.report()?.to_string().trim_end());
        let samples: Vec<_> = (0..self.recipe.batch.min(self.task.samples(Pool::Train))).collect();
        let batch =
            self.task.batch(Pool::Train, &samples, 0)?.context("none of the first samples can be read")?;
        let batch = batch.to_device(self.device)?;
        net.params.audit(|| self.task.loss(&net.model, &batch, Mode::Train))?;
        let tensors = net.params.all();
        let numbers: usize = tensors.iter().map(|param| param.var().elem_count()).sum();
        self.progress.line(format!(
            "audit: all {} trainable tensors ({numbers} parameters) get a gradient",
            tensors.len()
        ));
        Ok(())
    }

    /// Trains with a constraint and evaluates. From a linear probe ([`Head::Probed`]), that of [`Lab::probe`] must have run.
    /// `None` if stopped.
    ///
    /// # Errors
    ///
    /// A loss or gradient that is not finite (the error says at which step and learning rate), or files that cannot be read or
    /// written.
    pub fn train(&self, setting: Setting, probe: Option<&Setting>) -> Result<Option<Outcome>> {
        let constraint =
            setting.strength.map_or(Constraint::None, |strength| setting.method.constraint(strength));
        let (start, checkpoint) = match (setting.method, probe) {
            (Method::LinearProbe, _) => (Start::Probe, self.checkpoint.clone()),
            (_, Some(probe)) => (Start::Probed, self.model(probe)),
            (_, None) => (Start::Pretrained, self.checkpoint.clone()),
        };
        self.trained(setting, start, &checkpoint, constraint, 0.0, Wanted::Outcome)
    }

    /// Linear probes with each of `rates`, or the one learning rate of the recipe: all outcomes, and the setting that held-out
    /// samples choose, the earlier one of equals. `None` if stopped.
    ///
    /// # Errors
    ///
    /// As [`Lab::train`].
    pub fn probe(&self, seed: u64, rates: &[f64], wanted: Wanted) -> Result<Option<(Setting, Vec<Outcome>)>> {
        let setting = |lr| Setting { method: Method::LinearProbe, lr, strength: None, seed };
        let rates = if rates.is_empty() { &[0.0][..] } else { rates };
        let mut outcomes = Vec::new();
        for lr in rates {
            let Some(outcome) = self.train(setting(*lr), None)? else { return Ok(None) };
            outcomes.push(outcome);
        }
        let best = outcomes.iter().reduce(|a, b| if b.scores.choice > a.scores.choice { b } else { a });
        let best = best.context("there is a rate")?.setting;
        if wanted == Wanted::Weights {
            let again = self.trained(best, Start::Probe, &self.checkpoint, Constraint::None, 0.0, wanted)?;
            if again.is_none() {
                return Ok(None);
            }
        }
        Ok(Some((best, outcomes)))
    }

    /// Whether all outcomes are known.
    pub(super) fn all_known(&self, settings: &[Setting]) -> Result<bool> {
        for setting in settings {
            if self.known(setting)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The row of runs that build on each other: a linear probe (or the zero-shot model) and, for each learning rate of the
    /// settings, LP-FT from it (or fine-tuning), and what is to be made of the two afterwards: WiSE-FT, TPGM post hoc. `None` if
    /// stopped.
    ///
    /// # Errors
    ///
    /// As [`Lab::train`].
    pub fn row(&self, seed: u64, row: &Row) -> Result<Option<Vec<Outcome>>> {
        let setting = |method, lr| Setting { method, lr, strength: None, seed };
        let method = if self.recipe.head == Head::InCheckpoint { Method::FineTuning } else { Method::LpFt };
        let mut lrs: Vec<f64> = Vec::new();
        for setting in &row.settings {
            if !lrs.contains(&setting.lr) {
                lrs.push(setting.lr);
            }
        }
        let between = |lr: f64| {
            let made = row.settings.iter().filter(|setting| setting.lr == lr && setting.strength.is_some());
            made.copied().collect::<Vec<_>>()
        };
        // An outcome that is known is enough, unless something is to be made of its weights.
        let mut base_wanted = Wanted::Outcome;
        for lr in &lrs {
            if !self.all_known(&[between(*lr), vec![setting(method, *lr)]].concat())? {
                base_wanted = Wanted::Weights;
            }
        }
        let (base, mut outcomes) = if self.recipe.head == Head::InCheckpoint {
            let outcome = self.evaluated(setting(Method::ZeroShot, 0.0), &self.checkpoint)?;
            (self.checkpoint.clone(), vec![outcome])
        } else {
            let Some((chosen, outcomes)) = self.probe(seed, &row.probes, base_wanted)? else {
                return Ok(None);
            };
            (self.model(&chosen), outcomes)
        };
        let seconds = outcomes.iter().map(|outcome| outcome.seconds).sum();
        for lr in &lrs {
            let (tuned, between) = (setting(method, *lr), between(*lr));
            let wanted = if self.all_known(&between)? { Wanted::Outcome } else { Wanted::Weights };
            let trained = match &self.tuned {
                Some(file) if method == Method::FineTuning => Some(self.evaluated(tuned, file)?),
                _ => self.trained(tuned, Start::Whole, &base, Constraint::None, seconds, wanted)?,
            };
            let Some(outcome) = trained else { return Ok(None) };
            let (seconds, derailed) = (outcome.seconds, outcome.derailed.clone());
            outcomes.push(outcome);
            let file = match &self.tuned {
                Some(file) if method == Method::FineTuning => file.clone(),
                _ => self.model(&tuned),
            };
            for between in between {
                if self.stop.requested() {
                    return Ok(None);
                }
                outcomes.push(match &derailed {
                    // There is nothing to go to.
                    Some(why) => self.derailed(between, why.clone(), seconds)?,
                    None => self.between(between, &base, &file, seconds)?,
                });
            }
        }
        Ok(Some(outcomes))
    }

    /// A model that is trained already.
    fn evaluated(&self, setting: Setting, file: &Path) -> Result<Outcome> {
        match self.known(&setting)? {
            Some(outcome) => Ok(outcome),
            None => self.finish(setting, &self.open(file, setting.seed)?, 0.0, StepTimes::default()),
        }
    }

    fn trained(
        &self,
        setting: Setting,
        start: Start,
        checkpoint: &Path,
        constraint: Constraint,
        seconds_before: f64,
        wanted: Wanted,
    ) -> Result<Option<Outcome>> {
        if let Some(outcome) = self.known(&setting)? {
            let there = wanted == Wanted::Outcome || outcome.derailed.is_some();
            if there || self.model(&setting).exists() {
                return Ok(Some(outcome));
            }
        }
        let mut recipe = self.recipe.clone();
        if setting.method == Method::LinearProbe && setting.lr > 0.0 {
            recipe.head_lr = Some(setting.lr);
        }
        let run = Run {
            task: self.task,
            recipe: &recipe,
            device: self.device,
            title: setting.method.name().to_owned(),
            start,
            checkpoint,
            folder: self.runs.join(setting.folder()),
            constraint,
            pool: if setting.method == Method::FineTuningMore { Pool::Both } else { Pool::Train },
            lr: match (setting.method, recipe.head_lr) {
                (Method::LinearProbe, Some(lr)) => lr,
                (Method::LinearProbe, None) => recipe.rate,
                _ => setting.lr,
            },
            seed: setting.seed,
        };
        let ended = match run.train(self.progress, self.stop) {
            Err(error) if recipe.count_derailed && error.chain().any(|cause| cause.is::<NotFinite>()) => {
                return self.derailed(setting, format!("{error:#}"), seconds_before).map(Some);
            }
            other => other?,
        };
        match ended {
            Ended::Stopped => Ok(None),
            Ended::Done(net, times) => {
                self.keep_model(&setting, checkpoint, &net)?;
                self.finish(setting, &net, seconds_before + times.total(), times).map(Some)
            }
        }
    }

    /// WiSE-FT and TPGM post hoc: a model between two checkpoints.
    fn between(&self, setting: Setting, from: &Path, to: &Path, seconds_before: f64) -> Result<Outcome> {
        if let Some(outcome) = self.known(&setting)? {
            return Ok(outcome);
        }
        let begun = Instant::now();
        let net = self.open(from, setting.seed)?;
        let tuned = self.open(to, setting.seed)?;
        for param in net.params.all() {
            param.var().set(tuned.params.get(param.name())?.var())?;
        }
        let strength = setting.strength.context("a method between two models has a strength")?;
        if setting.method == Method::WiseFt {
            let mut interpolation = Interpolation::new(&net.params)?;
            interpolation.set(strength)?;
            interpolation.keep();
        } else {
            self.learn_radii(&net, strength as usize, setting.seed)?;
        }
        let seconds = seconds_before + begun.elapsed().as_secs_f64();
        self.finish(setting, &net, seconds, StepTimes::default())
    }

    /// TPGM post hoc: leaves the weights projected.
    fn learn_radii(&self, net: &Net<T::Model>, updates: usize, seed: u64) -> Result<()> {
        let order = DataOrder::new(self.task.samples(Pool::Radii), self.recipe.radii_batch, seed)?;
        std::thread::scope(|scope| {
            let make = |samples: &[usize], epoch| self.task.batch(Pool::Radii, samples, epoch);
            let mut batches = Loader::new(scope, order, self.task.ahead(), make);
            let config = TpgmConfig { norm: Norm::L2, adam: RadiusAdam::default() };
            let loss = |_| {
                let batch = batches.next_batch().map_err(candle_core::Error::wrap)?.to_device(self.device)?;
                self.task.loss(&net.model, &batch, Mode::Evaluate)
            };
            Tpgm::post_hoc(&net.params, config, updates, loss)?;
            Ok(())
        })
    }

    /// A model whose weights are all in a checkpoint.
    fn open(&self, checkpoint: &Path, seed: u64) -> Result<Net<T::Model>> {
        Net::open(self.task, self.recipe, checkpoint, Start::Whole, seed, self.device)
    }

    fn finish(
        &self,
        setting: Setting,
        net: &Net<T::Model>,
        seconds: f64,
        times: StepTimes,
    ) -> Result<Outcome> {
        let scores = self.task.scores(&net.model, self.device)?;
        self.keep(Outcome { setting, scores, seconds, times, derailed: None })
    }

    /// A run without a model: none of its answers would be right.
    fn derailed(&self, setting: Setting, why: String, seconds: f64) -> Result<Outcome> {
        self.progress.line(format!("{}: derailed: {why}", setting.folder()));
        let none = vec![0.0; self.task.domains().len()];
        let scores = Scores { accuracy: none.clone(), macro_f1: none, ..Scores::default() };
        self.keep(Outcome { setting, scores, seconds, times: StepTimes::default(), derailed: Some(why) })
    }

    fn keep(&self, outcome: Outcome) -> Result<Outcome> {
        files::write_json(&self.outcome(&outcome.setting), &outcome)?;
        self.records.map_or(Ok(()), |records| records.add(&outcome))?;
        Ok(outcome)
    }

    /// The outcome of an earlier call, or of a record.
    fn known(&self, setting: &Setting) -> Result<Option<Outcome>> {
        let outcome = files::read_json(&self.outcome(setting))?;
        match (outcome, self.records) {
            (Some(outcome), Some(records)) => {
                records.add(&outcome)?;
                Ok(Some(outcome))
            }
            (None, Some(records)) => Ok(records.find(setting)),
            (outcome, None) => Ok(outcome),
        }
    }

    /// Writes all weights of a trained model, those that were frozen too.
    fn keep_model(&self, setting: &Setting, checkpoint: &Path, net: &Net<T::Model>) -> Result<()> {
        let mut tensors: HashMap<String, Tensor> = candle_core::safetensors::load(checkpoint, &Device::Cpu)?;
        tensors.extend(net.params.values());
        let path = self.model(setting);
        let beside = path.with_extension("part");
        candle_core::safetensors::save(&tensors, &beside)
            .with_context(|| format!("cannot write {}", beside.display()))?;
        std::fs::rename(&beside, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn outcome(&self, setting: &Setting) -> PathBuf {
        self.runs.join(setting.folder()).join("outcome.json")
    }

    /// The weights of a finished run.
    pub fn model(&self, setting: &Setting) -> PathBuf {
        self.runs.join(setting.folder()).join("model.safetensors")
    }

    /// The log of a run.
    pub fn log(&self, setting: &Setting) -> PathBuf {
        self.runs.join(setting.folder()).join("log.jsonl")
    }
}
