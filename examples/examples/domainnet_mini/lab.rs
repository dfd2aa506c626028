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
use tpgm_examples::files;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

use crate::evaluate::accuracy;
use crate::method::Method;
use crate::train::{Ended, HEAD_LR, Net, Run, Start, next};
use crate::world::{Scale, World};

/// One setting of a method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) method: Method,
    /// Learning rate of the backbone; zero for a linear probe.
    pub(crate) lr: f64,
    /// See [`Method::strength_name`].
    pub(crate) strength: Option<f64>,
    /// Of the head's initial weights and the order of the images.
    pub(crate) seed: u64,
}

impl Setting {
    /// Name of its folder.
    fn folder(&self) -> String {
        let name = self.method.name().replace(' ', "-");
        let strength = self.strength.map(|strength| format!("_{strength}")).unwrap_or_default();
        format!("{name}_lr{}{strength}_seed{}", self.lr, self.seed)
    }
}

/// What a setting led to. Accuracies are shares in `[0, 1]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) setting: Setting,
    /// On the real images for choosing.
    pub(crate) choice: f64,
    /// On the test images of each domain, in the order of [`crate::data::Domain::ALL`].
    pub(crate) domains: Vec<f64>,
    /// Time to get there, with the runs that it builds on.
    pub(crate) seconds: f64,
}

impl Outcome {
    /// Accuracy in the domain of fine-tuning.
    pub(crate) fn id(&self) -> f64 {
        self.domains[0]
    }

    /// Mean accuracy in the other domains.
    pub(crate) fn ood(&self) -> f64 {
        self.domains[1..].iter().sum::<f64>() / (self.domains.len() - 1) as f64
    }
}

/// Where methods are run.
pub(crate) struct Lab<'a> {
    pub(crate) world: &'a World,
    pub(crate) scale: Scale,
    /// The pre-trained checkpoint.
    pub(crate) checkpoint: PathBuf,
    /// The folder of the runs.
    pub(crate) runs: PathBuf,
    /// Steps between two checkpoints; 0 saves only when stopped.
    pub(crate) save_every: u64,
    pub(crate) progress: &'a Progress,
    pub(crate) stop: &'a Stop,
}

impl Lab<'_> {
    /// Trains with a constraint and evaluates. `None` if stopped.
    ///
    /// # Errors
    ///
    /// See [`Run::train`].
    pub(crate) fn train(&self, setting: Setting) -> Result<Option<Outcome>> {
        let constraint =
            setting.strength.map_or(Constraint::None, |strength| setting.method.constraint(strength));
        let start = if setting.method == Method::LinearProbe { Start::Probe } else { Start::NewHead };
        self.trained(setting, start, &self.checkpoint, constraint, 0.0)
    }

    /// The linear probe, LP-FT from it for each learning rate, and what can be made of the two afterwards: WiSE-FT with
    /// each of `shares`, TPGM post hoc with each number of updates. `None` if stopped.
    ///
    /// # Errors
    ///
    /// See [`Run::train`].
    pub(crate) fn probe_and_after(
        &self,
        seed: u64,
        lrs: &[f64],
        shares: &[f64],
        updates: &[f64],
    ) -> Result<Option<Vec<Outcome>>> {
        let probe = Setting { method: Method::LinearProbe, lr: 0.0, strength: None, seed };
        let Some(outcome) = self.train(probe)? else { return Ok(None) };
        let probe = self.model(&probe);
        let mut outcomes = vec![outcome];
        for lr in lrs {
            let tuned = Setting { method: Method::LpFt, lr: *lr, strength: None, seed };
            let trained = self.trained(tuned, Start::Whole, &probe, Constraint::None, outcomes[0].seconds)?;
            let Some(outcome) = trained else { return Ok(None) };
            let seconds = outcome.seconds;
            outcomes.push(outcome);
            let settings = |method, strengths: &[f64]| {
                let setting = |strength: &f64| Setting { method, lr: *lr, strength: Some(*strength), seed };
                strengths.iter().map(setting).collect::<Vec<_>>()
            };
            for setting in [settings(Method::WiseFt, shares), settings(Method::TpgmPostHoc, updates)].concat()
            {
                if self.stop.requested() {
                    return Ok(None);
                }
                outcomes.push(self.between(setting, &probe, &self.model(&tuned), seconds)?);
            }
        }
        Ok(Some(outcomes))
    }

    fn trained(
        &self,
        setting: Setting,
        start: Start,
        checkpoint: &Path,
        constraint: Constraint,
        seconds_before: f64,
    ) -> Result<Option<Outcome>> {
        if let Some(outcome) = self.known(&setting)? {
            return Ok(Some(outcome));
        }
        let Scale { steps, batch, .. } = self.scale;
        let run = Run {
            title: setting.method.name().to_owned(),
            start,
            checkpoint,
            folder: self.runs.join(setting.folder()),
            constraint,
            lr: if setting.method == Method::LinearProbe { HEAD_LR } else { setting.lr },
            seed: setting.seed,
            steps,
            batch,
            save_every: self.save_every,
        };
        match run.train(self.world, self.progress, self.stop)? {
            Ended::Stopped => Ok(None),
            Ended::Done(trained) => {
                self.keep_model(&setting, checkpoint, &trained.net)?;
                self.finish(setting, &trained.net, seconds_before + trained.seconds).map(Some)
            }
        }
    }

    /// WiSE-FT and TPGM post hoc: a model between two checkpoints.
    fn between(&self, setting: Setting, from: &Path, to: &Path, seconds_before: f64) -> Result<Outcome> {
        if let Some(outcome) = self.known(&setting)? {
            return Ok(outcome);
        }
        let begun = Instant::now();
        let net = Net::open(from, Start::Whole, self.world.train.classes(), setting.seed)?;
        let tuned = candle_core::safetensors::load(to, &Device::Cpu)?;
        for param in net.params.all() {
            let value = tuned
                .get(param.name())
                .with_context(|| format!("{} lacks {}", to.display(), param.name()))?;
            param.var().set(value)?;
        }
        let strength = setting.strength.context("a method between two models has a strength")?;
        if setting.method == Method::WiseFt {
            let mut interpolation = Interpolation::new(&net.params)?;
            interpolation.set(strength)?;
            interpolation.keep();
        } else {
            let world = self.world;
            let mut order = DataOrder::new(world.radii.len(), self.scale.batch, setting.seed)?;
            let config = TpgmConfig { norm: Norm::L2, adam: RadiusAdam::default() };
            Tpgm::post_hoc(&net.params, config, strength as usize, |_| {
                net.loss(&world.radii, &next(&mut order))
            })?;
        }
        let seconds = seconds_before + begun.elapsed().as_secs_f64();
        self.finish(setting, &net, seconds)
    }

    fn finish(&self, setting: Setting, net: &Net, seconds: f64) -> Result<Outcome> {
        let share = |images| accuracy(images, |windows| net.model.forward(windows));
        let domains = self.world.test.iter().map(share).collect::<Result<_>>()?;
        let outcome = Outcome { setting, choice: share(&self.world.choice)?, domains, seconds };
        files::write_json(&self.outcome(&setting), &outcome)?;
        Ok(outcome)
    }

    /// The outcome of an earlier call.
    fn known(&self, setting: &Setting) -> Result<Option<Outcome>> {
        files::read_json(&self.outcome(setting))
    }

    /// Writes all weights of a trained model, those that were frozen too.
    fn keep_model(&self, setting: &Setting, checkpoint: &Path, net: &Net) -> Result<()> {
        let mut tensors: HashMap<String, Tensor> = candle_core::safetensors::load(checkpoint, &Device::Cpu)?;
        tensors.extend(net.params.tensors());
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
    pub(crate) fn model(&self, setting: &Setting) -> PathBuf {
        self.runs.join(setting.folder()).join("model.safetensors")
    }

    /// The log of a run.
    pub(crate) fn log(&self, setting: &Setting) -> PathBuf {
        self.runs.join(setting.folder()).join("log.jsonl")
    }
}
