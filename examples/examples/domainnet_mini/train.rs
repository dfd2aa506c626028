//! One training run: from a checkpoint to fine-tuned weights, with any constraint.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tpgm_candle::core::{AdamW, Constraint, Group, Projection};
use tpgm_candle::nn::cross_entropy;
use tpgm_candle::{
    Checkpointer, DataOrder, JsonlWriter, Params, RobustOptimizer, Schedule, Telemetry, TensorBoardWriter,
    TrainState,
};

use crate::backbone::{Backbone, HEAD, labels, windows};
use crate::data::Images;
use crate::world::World;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

/// Learning rate of a new head: it has further to go than the backbone.
pub(crate) const HEAD_LR: f64 = 1e-2;

/// Weight decay of AdamW (decoupled, towards zero).
const WEIGHT_DECAY: f64 = 1e-2;

/// Steps between two entries of telemetry.
const LOG_EVERY: u64 = 10;

/// What is trained, from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// A new head on a frozen backbone.
    Probe,
    /// A new head, and the backbone with the checkpoint as its anchor.
    NewHead,
    /// Head and backbone, both with the checkpoint as their anchor.
    Whole,
}

/// A training run.
pub(crate) struct Run<'a> {
    pub(crate) title: String,
    pub(crate) start: Start,
    /// The weights to start from, which are the anchors.
    pub(crate) checkpoint: &'a Path,
    /// Where its checkpoints and logs go.
    pub(crate) folder: PathBuf,
    pub(crate) constraint: Constraint,
    /// Learning rate of the backbone.
    pub(crate) lr: f64,
    /// Of the head's initial weights and the order of the images.
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) batch: usize,
    /// Steps between two checkpoints; 0 saves only when stopped.
    pub(crate) save_every: u64,
}

/// Weights, and the model that reads them.
pub(crate) struct Net {
    pub(crate) params: Params,
    pub(crate) model: Backbone,
}

impl Net {
    /// Loads a checkpoint for a run.
    ///
    /// # Errors
    ///
    /// The checkpoint cannot be read or is not of this backbone.
    pub(crate) fn open(checkpoint: &Path, start: Start, classes: usize, seed: u64) -> Result<Self> {
        let head = format!("{HEAD}.*");
        let mut params = Params::open(checkpoint, &Device::Cpu)?.seed(seed);
        params = match start {
            Start::Probe => params.head(&head).freeze("*"),
            Start::NewHead => params.head(&head),
            Start::Whole => params,
        };
        // The head's learning rate is its own.
        params = params.group(Group::new(&head).lr(HEAD_LR));
        let model = Backbone::new(classes, params.var_builder())
            .with_context(|| format!("{} does not fit the backbone", checkpoint.display()))?;
        Ok(Self { params, model })
    }

    /// Mean cross-entropy of a batch.
    pub(crate) fn loss(&self, images: &Images, batch: &[usize]) -> candle_core::Result<Tensor> {
        let scores = self.model.forward(&windows(images, batch)?)?;
        cross_entropy(&scores, &labels(images, batch)?)
    }
}

/// How a run ended.
pub(crate) enum Ended {
    /// It took all its steps.
    Done(Trained),
    /// It was stopped and saved.
    Stopped,
}

/// A finished run.
pub(crate) struct Trained {
    pub(crate) net: Net,
    /// Training time, with that before an interruption.
    pub(crate) seconds: f64,
}

/// What goes into a checkpoint besides weights and optimizer.
#[derive(Clone, Serialize, Deserialize)]
struct Position {
    train: DataOrder,
    radii: DataOrder,
    seconds: f64,
}

impl Run<'_> {
    /// Trains, from the newest checkpoint in the folder if there is one.
    ///
    /// # Errors
    ///
    /// A loss or gradient that is not finite (the error says at which step and learning rate), a full disk, a damaged
    /// checkpoint.
    pub(crate) fn train(&self, world: &World, progress: &Progress, stop: &Stop) -> Result<Ended> {
        let net = Net::open(self.checkpoint, self.start, world.train.classes(), self.seed)?;
        let rule = AdamW::default().lr(self.lr).weight_decay(WEIGHT_DECAY);
        let mut optimizer = RobustOptimizer::builder(&net.params)
            .rule(rule)
            .constraint(self.constraint)
            .threads(1)
            .build()?;
        let learns_radii = matches!(self.constraint, Constraint::Tpgm(_));
        if learns_radii {
            optimizer.set_projection(Projection::Defer); // every step is followed by an update, which projects
        }
        let schedule = Schedule::cosine(self.lr, self.steps).warmup(self.steps / 20);
        let mut position = Position {
            train: DataOrder::new(world.train.len(), self.batch, self.seed)?,
            radii: DataOrder::new(world.radii.len(), self.batch, self.seed)?,
            seconds: 0.0,
        };

        let checkpointer = Checkpointer::new(self.folder.join("checkpoints")).keep(1);
        if let Some(found) = checkpointer.latest_valid()? {
            let saved = found.checkpoint;
            saved.restore(&net.params)?;
            optimizer.load_state(&saved.state("optimizer")?)?;
            position = saved.value("position")?;
        }
        let first = optimizer.steps();
        let mut log = (
            JsonlWriter::resume(self.folder.join("log.jsonl"), first + 1)?,
            TensorBoardWriter::resume(self.folder.join("tensorboard"), first + 1)?,
        );
        let save = |net: &Net, optimizer: &RobustOptimizer, position: &Position| -> Result<()> {
            let state = TrainState::new(optimizer.steps())
                .weights(net.params.tensors())?
                .state("optimizer", optimizer.state()?)?
                .value("position", position)?;
            checkpointer.save(&state)?;
            Ok(())
        };

        let bar = progress.bar(&self.title, self.steps);
        bar.set_position(first);
        let begun = Instant::now();
        let before = position.seconds;
        for step in first..self.steps {
            position.seconds = before + begun.elapsed().as_secs_f64();
            if stop.before_step() {
                save(&net, &optimizer, &position)?;
                bar.abandon_with_message("stopped");
                return Ok(Ended::Stopped);
            }
            let lr = schedule.lr(step);
            optimizer.set_learning_rate(lr);
            let taken = self.step(&net, &mut optimizer, &mut position, world, learns_radii);
            let loss =
                taken.with_context(|| format!("{}: step {step} at learning rate {lr:.2e}", self.title))?;
            let done = step + 1;
            if done % LOG_EVERY == 0 || done == self.steps {
                log.scalar("loss", done, loss)?;
                log.scalar("lr", done, lr)?;
                log.tensors(done, &optimizer.scalars()?)?;
                bar.set_message(format!("loss {loss:.3}"));
            }
            if self.save_every > 0 && done % self.save_every == 0 {
                save(&net, &optimizer, &position)?;
            }
            bar.inc(1);
        }
        log.flush()?;
        bar.finish_and_clear();
        Ok(Ended::Done(Trained { net, seconds: before + begun.elapsed().as_secs_f64() }))
    }

    /// One step on a training batch and, for TPGM, one update of the radii on a held-out batch. Returns the loss.
    fn step(
        &self,
        net: &Net,
        optimizer: &mut RobustOptimizer,
        position: &mut Position,
        world: &World,
        learns_radii: bool,
    ) -> Result<f64> {
        let loss = net.loss(&world.train, &next(&mut position.train))?;
        let info = optimizer.backward_step(&loss)?;
        if learns_radii {
            let batch = next(&mut position.radii);
            optimizer.tpgm()?.update(|| net.loss(&world.radii, &batch))?;
        }
        info.loss.context("`backward_step` gives the loss")
    }
}

/// The next batch, of the next epoch if this one is over.
pub(crate) fn next(order: &mut DataOrder) -> Vec<usize> {
    loop {
        if let Some(batch) = order.next_batch() {
            return batch.to_vec();
        }
    }
}
