//! One training run: from a checkpoint to fine-tuned weights, with any constraint.

use std::fmt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use serde::{Deserialize, Serialize};
use tpgm_candle::core::{Constraint, Group, Projection};
use tpgm_candle::nn::{DropoutRng, DropoutState};
use tpgm_candle::{
    Checkpointer, DataOrder, JsonlWriter, Params, RobustOptimizer, Schedule, Telemetry, TensorBoardWriter,
    TrainState,
};

use super::{Batch, Head, Mode, Pool, Recipe, Task};
use crate::loader::Loader;
use crate::progress::Progress;
use crate::stop::Stop;
use crate::timing::{Part, StepTimes};

/// Steps between two entries of telemetry.
const LOG_EVERY: u64 = 10;

/// What is trained, from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A new head on a frozen rest.
    Probe,
    /// The whole, with the checkpoint as its anchor; the head is where the recipe says.
    Pretrained,
    /// The whole, with the checkpoint as its anchor, and all of it is there.
    Whole,
    /// As [`Start::Whole`], without a constraint of the head.
    Probed,
}

/// Weights, and the model that reads them.
pub struct Net<M> {
    /// The weights.
    pub params: Params,
    /// The model.
    pub model: M,
    dropout: DropoutRng,
}

impl<M> Net<M> {
    /// Loads a checkpoint for a run, onto a device. `seed` makes a new head and what is dropped out.
    ///
    /// # Errors
    ///
    /// The checkpoint cannot be read or is not of this model.
    pub fn open<T: Task<Model = M>>(
        task: &T,
        recipe: &Recipe,
        checkpoint: &Path,
        start: Start,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let head = format!("{}.*", task.head());
        let mut params = Params::open(checkpoint, device)?.seed(seed).dtype(recipe.precision.dtype());
        params = match start {
            Start::Probe => params.head(&head).freeze("*"),
            Start::Pretrained if recipe.head != Head::InCheckpoint => params.head(&head),
            Start::Pretrained | Start::Whole | Start::Probed => params,
        };
        for pattern in task.frozen() {
            params = params.freeze(*pattern);
        }
        let mut group = Group::new(&head);
        if let Some(lr) = recipe.head_lr {
            group = group.lr(lr);
        }
        if start == Start::Probed {
            group = group.excluded();
        }
        if group != Group::new(&head) {
            params = params.group(group);
        }
        let dropout = DropoutRng::new(seed);
        let model = task
            .model(params.var_builder(), &dropout)
            .with_context(|| format!("{} does not fit the model", checkpoint.display()))?;
        Ok(Self { params, model, dropout })
    }
}

/// A training run.
pub(super) struct Run<'a, T> {
    pub(super) task: &'a T,
    pub(super) recipe: &'a Recipe,
    /// Where the model lives.
    pub(super) device: &'a Device,
    pub(super) title: String,
    pub(super) start: Start,
    /// What it is trained on.
    pub(super) pool: Pool,
    /// The weights to start from, which are the anchors.
    pub(super) checkpoint: &'a Path,
    /// Where its checkpoints and logs go.
    pub(super) folder: PathBuf,
    pub(super) constraint: Constraint,
    /// Learning rate of all but the head.
    pub(super) lr: f64,
    /// Of the head's initial weights, the order of the samples, and what is dropped out.
    pub(super) seed: u64,
}

/// A loss or a gradient that is no number: the run has derailed.
#[derive(Debug)]
pub(super) struct NotFinite(String);

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFinite {}

/// How a run ended.
pub(super) enum Ended<M> {
    /// It took all its steps.
    Done(Net<M>, StepTimes),
    /// It was stopped and saved.
    Stopped,
}

/// What goes into a checkpoint besides weights and optimizer.
#[derive(Serialize, Deserialize)]
struct Position {
    train: DataOrder,
    radii: DataOrder,
    dropout: DropoutState,
    times: StepTimes,
}

impl<T: Task> Run<'_, T> {
    /// Trains, from the newest checkpoint in the folder if there is one.
    ///
    /// # Errors
    ///
    /// A loss or gradient that is not finite (the error says at which step and learning rate), a full disk, a damaged
    /// checkpoint.
    pub(super) fn train(&self, progress: &Progress, stop: &Stop) -> Result<Ended<T::Model>> {
        let Recipe { steps, batch, radii_batch, warmup, lr_every, save_every, threads, .. } = *self.recipe;
        let net = Net::open(self.task, self.recipe, self.checkpoint, self.start, self.seed, self.device)?;
        let mut builder = RobustOptimizer::builder(&net.params)
            .rule((self.recipe.rule)(self.lr))
            .constraint(self.constraint)
            .loss_scale(self.recipe.precision.loss_scale())
            .threads(threads);
        if let Some(norm) = self.recipe.max_grad_norm {
            builder = builder.max_grad_norm(norm);
        }
        let mut optimizer = builder.build()?;
        let learns_radii = matches!(self.constraint, Constraint::Tpgm(_));
        if learns_radii {
            optimizer.set_projection(Projection::Defer); // every step is followed by an update, which projects
        }
        let schedule = Schedule::cosine(self.lr, steps).warmup(warmup);
        let order = |pool, batch| DataOrder::new(self.task.samples(pool), batch, self.seed);
        let mut position = Position {
            train: order(self.pool, batch)?,
            radii: order(Pool::Radii, radii_batch)?,
            dropout: net.dropout.state(),
            times: StepTimes::default(),
        };

        let checkpointer = Checkpointer::new(self.folder.join("checkpoints")).keep(1);
        if let Some(found) = checkpointer.latest_valid()? {
            let saved = found.checkpoint;
            saved.restore(&net.params)?;
            optimizer.load_state(&saved.state("optimizer")?)?;
            let found: Position = saved.value("position")?;
            // Checked: with another number of samples, the order would name some that are not there.
            position.train.load_state(&found.train)?;
            position.radii.load_state(&found.radii)?;
            position = Position { train: position.train, radii: position.radii, ..found };
            net.dropout.load_state(position.dropout);
        }
        let Position { train, radii, mut times, .. } = position;
        let first = optimizer.steps();
        let mut log = (
            JsonlWriter::resume(self.folder.join("log.jsonl"), first + 1)?,
            TensorBoardWriter::resume(self.folder.join("tensorboard"), first + 1)?,
        );

        let bar = progress.bar(&self.title, steps);
        bar.set_position(first);
        thread::scope(|scope| {
            let loader = |pool, order| {
                let make = move |samples: &[usize], epoch| self.task.batch(pool, samples, epoch);
                Loader::new(scope, order, self.task.ahead(), make)
            };
            let mut batches = Batches {
                train: loader(self.pool, train),
                radii: learns_radii.then(|| loader(Pool::Radii, radii.clone())),
            };
            let save = |optimizer: &RobustOptimizer, batches: &Batches<'_, T::Batch>, times: StepTimes| {
                let position = Position {
                    train: batches.train.order().clone(),
                    radii: batches.radii.as_ref().map_or(&radii, |radii| radii.order()).clone(),
                    dropout: net.dropout.state(),
                    times,
                };
                let state = TrainState::new(optimizer.steps())
                    .weights(net.params.values())?
                    .state("optimizer", optimizer.state()?)?
                    .value("position", &position)?;
                checkpointer.save(&state)?;
                anyhow::Ok(())
            };
            for step in first..steps {
                if stop.before_step() {
                    save(&optimizer, &batches, times)?;
                    bar.abandon_with_message("stopped");
                    return Ok(false);
                }
                let lr = schedule.lr(step - step % lr_every);
                optimizer.set_learning_rate(lr);
                let taken = self.step(&net.model, &mut optimizer, &mut batches, &mut times);
                let loss = taken
                    .with_context(|| format!("{}: step {step} at learning rate {lr:.2e}", self.title))?;
                let done = step + 1;
                if done % LOG_EVERY == 0 || done == steps {
                    log.scalar("loss", done, loss)?;
                    log.scalar("lr", done, lr)?;
                    log.tensors(done, &optimizer.scalars()?)?;
                    bar.set_message(format!("loss {loss:.3}"));
                }
                if save_every > 0 && done % save_every == 0 {
                    save(&optimizer, &batches, times)?;
                }
                bar.inc(1);
            }
            Ok::<_, anyhow::Error>(true)
        })
        .and_then(|done| {
            log.flush()?;
            if !done {
                return Ok(Ended::Stopped);
            }
            bar.finish_and_clear();
            Ok(Ended::Done(net, times))
        })
    }

    /// One step on a training batch and, for TPGM, one update of the radii on a held-out batch. Returns the loss.
    fn step(
        &self,
        model: &T::Model,
        optimizer: &mut RobustOptimizer,
        batches: &mut Batches<'_, T::Batch>,
        times: &mut StepTimes,
    ) -> Result<f64> {
        let on_device = |batch: T::Batch| anyhow::Ok(batch.to_device(self.device)?);
        let batch = times.time(Part::Data, || batches.train.next_batch().and_then(on_device))?;
        let (loss, value) = times.time(Part::Forward, || {
            let loss = self.task.loss(model, &batch, Mode::Train)?;
            let value = loss.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
            ensure!(value.is_finite(), NotFinite(format!("the loss is {value}")));
            Ok((loss, value))
        })?;
        // A GPU works by itself: it is waited for, so that its work counts for the part that has asked for it.
        let grads = times.time(Part::Backward, || {
            let grads = self.recipe.precision.scaled(&loss)?.backward()?;
            self.device.synchronize()?;
            anyhow::Ok(grads)
        })?;
        times.time(Part::Step, || {
            optimizer.step(&grads).map_err(|error| match tpgm_candle::Error::from(error) {
                tpgm_candle::Error::Core(error @ tpgm_candle::core::Error::NonFiniteGradient { .. }) => {
                    NotFinite(error.to_string()).into()
                }
                other => anyhow::Error::from(other),
            })?;
            self.device.synchronize()?;
            anyhow::Ok(())
        })?;
        if let Some(radii) = &mut batches.radii {
            let batch = times.time(Part::Data, || radii.next_batch().and_then(on_device))?;
            times.time(Part::Projection, || {
                optimizer.tpgm()?.update(|| self.task.loss(model, &batch, Mode::Evaluate))?;
                self.device.synchronize()?;
                anyhow::Ok(())
            })?;
        }
        times.count_step();
        Ok(value)
    }
}

/// Where the samples come from.
struct Batches<'scope, B> {
    train: Loader<'scope, B>,
    /// Held-out ones; only where radii are learned from them.
    radii: Option<Loader<'scope, B>>,
}
