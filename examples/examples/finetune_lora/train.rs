//! One training run on the factors: the part to read first.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tpgm_candle::core::{Constraint, Ftp, Spd};
use tpgm_candle::models::llama::Llama;
use tpgm_candle::{
    AdamW, Checkpointer, DataOrder, JsonlWriter, Params, RobustOptimizer, Schedule, Telemetry, TrainState,
};
use tpgm_examples::loader::next_positions;
use tpgm_examples::precision::Precision;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;
use tpgm_examples::timing::{Part, StepTimes};

use crate::text::Windows;

/// What bounds the factors around zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Bound {
    /// Nothing
    None,
    /// Selective projection decay
    Spd,
    /// Fast trainable projection
    Ftp,
}

impl Bound {
    /// The constraint; `strength` is SPD's, or FTP's `k`.
    pub(crate) fn constraint(self, strength: f64) -> Constraint {
        match self {
            Bound::None => Constraint::None,
            Bound::Spd => Spd { strength }.into(),
            Bound::Ftp => Ftp { k: strength, ..Ftp::default() }.into(),
        }
    }
}

/// Steps between two lines of the log.
const LOG_EVERY: u64 = 10;

/// Options of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Training {
    pub(crate) bound: Bound,
    pub(crate) strength: f64,
    pub(crate) lr: f64,
    pub(crate) steps: u64,
    pub(crate) batch: usize,
    pub(crate) seed: u64,
    /// Steps between two checkpoints; 0 saves only when stopped.
    pub(crate) save_every: u64,
    /// The element type of the frozen weights and of activations.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub(crate) precision: Precision,
}

/// How a run ended.
pub(crate) enum Ended {
    /// It took all its steps; times include those before an interruption.
    Done(StepTimes),
    /// It was stopped and saved.
    Stopped,
}

/// What goes into a checkpoint besides factors and optimizer.
#[derive(Serialize, Deserialize)]
struct Position {
    order: DataOrder,
    times: StepTimes,
}

impl Training {
    /// Trains, from the newest checkpoint in the folder if there is one, and writes `log.jsonl` there.
    ///
    /// # Errors
    ///
    /// A loss or gradient that is not finite (the error says at which step and learning rate), a full disk, a damaged
    /// checkpoint.
    pub(crate) fn train(
        &self,
        params: &Params,
        model: &Llama,
        windows: &Windows,
        folder: &Path,
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Ended> {
        let mut optimizer = RobustOptimizer::builder(params)
            .rule(AdamW::default().lr(self.lr))
            .constraint(self.bound.constraint(self.strength))
            .loss_scale(self.precision.loss_scale())
            .build()?;
        let schedule = Schedule::cosine(self.lr, self.steps).warmup(self.steps / 20);
        let order = DataOrder::new(windows.len(), self.batch, self.seed)?;
        let mut position = Position { order, times: StepTimes::default() };
        let checkpointer = Checkpointer::new(folder).keep(1);
        if let Some(found) = checkpointer.latest_valid()? {
            let saved = found.checkpoint;
            saved.restore(params)?;
            optimizer.resume(&saved.value("config")?, &saved.state("optimizer")?)?;
            let found: Position = saved.value("position")?;
            // Checked: with another number of windows, the order would name some that are not there.
            position.order.load_state(&found.order)?;
            position.times = found.times;
        }
        let save = |optimizer: &RobustOptimizer, position: &Position| -> Result<()> {
            let state = TrainState::new(optimizer.steps())
                .weights(params.tensors())?
                .state("optimizer", optimizer.state()?)?
                .value("config", optimizer.config())?
                .value("position", position)?;
            checkpointer.save(&state)?;
            Ok(())
        };

        let mut log = JsonlWriter::resume(folder.join("log.jsonl"), optimizer.steps() + 1)?;
        let bar = progress.bar("fine-tuning", self.steps);
        bar.set_position(optimizer.steps());
        for step in optimizer.steps()..self.steps {
            if stop.before_step() {
                save(&optimizer, &position)?;
                log.flush()?;
                bar.abandon_with_message("stopped");
                return Ok(Ended::Stopped);
            }
            let lr = schedule.lr(step);
            optimizer.set_learning_rate(lr);
            let loss = step_on(model, windows, &mut optimizer, &mut position, self.precision)
                .with_context(|| format!("step {} at learning rate {lr:.2e}", step + 1))?;
            bar.set_message(format!("loss {loss:.3}"));
            bar.inc(1);
            let done = step + 1;
            if done % LOG_EVERY == 0 || done == self.steps {
                log.scalar("loss", done, loss)?;
                log.scalar("lr", done, lr)?;
                log.tensors(done, &optimizer.scalars()?)?;
            }
            if self.save_every > 0 && done % self.save_every == 0 && done < self.steps {
                save(&optimizer, &position)?;
            }
        }
        save(&optimizer, &position)?;
        log.flush()?;
        bar.finish_and_clear();
        Ok(Ended::Done(position.times))
    }
}

/// One step, timed in its parts. Returns the loss.
fn step_on(
    model: &Llama,
    windows: &Windows,
    optimizer: &mut RobustOptimizer,
    position: &mut Position,
    precision: Precision,
) -> Result<f64> {
    let Position { order, times } = position;
    let batch = times.time(Part::Data, || windows.batch(&next_positions(order)))?;
    let (loss, value) = times.time(Part::Forward, || {
        let loss = model.loss(&batch.ids, &batch.counted, true)?;
        let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        anyhow::Ok((loss, value))
    })?;
    ensure!(value.is_finite(), "the loss is {value}");
    // A GPU works by itself: it is waited for, so that its work counts for the part that has asked for it.
    let grads = times.time(Part::Backward, || {
        let grads = precision.scaled(&loss)?.backward()?;
        windows.device().synchronize()?;
        anyhow::Ok(grads)
    })?;
    times.time(Part::Step, || {
        optimizer.step(&grads)?;
        windows.device().synchronize()?;
        anyhow::Ok(())
    })?;
    times.count_step();
    Ok(value)
}
