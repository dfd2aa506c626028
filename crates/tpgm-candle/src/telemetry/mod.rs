//! Numbers of a run, written to files while it goes on.
//!
//! You need this to see what the radii do: which tensors are pulled back, how far, how often. Feed a [`Telemetry`] after
//! a step, with named scalars and with the scalars of the optimizer or the TPGM trainer.
//!
//! ```no_run
//! use tpgm_candle::{JsonlWriter, Telemetry, TensorBoardWriter};
//! # fn example(scalars: Vec<(String, tpgm_candle::core::TensorScalars)>) -> tpgm_candle::Result<()> {
//! let mut log = (JsonlWriter::create("run/log.jsonl")?, TensorBoardWriter::create("run/tensorboard")?);
//! log.scalar("loss", 1, 0.693)?;
//! log.scalar("lr", 1, 1e-4)?;
//! log.tensors(1, &scalars)?; // optimizer.scalars()?
//! log.flush()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Going on
//!
//! A run that goes on from a checkpoint of step 500 takes step 501 again, and may have logged more before it was stopped.
//! Both writers have `resume(path, 501)`: what was logged for that step and later ones is taken back, so that every step
//! is there once.

mod error;
mod jsonl;
mod tensorboard;

use tpgm_core::TensorScalars;

pub use self::error::{Error, Result};
pub use self::jsonl::JsonlWriter;
pub use self::tensorboard::TensorBoardWriter;

/// Where the numbers of a run go.
///
/// Values may be infinite or NaN: that is what one wants to see in a log.
pub trait Telemetry {
    /// Logs one number, for example `loss` or `accuracy/sketch`.
    ///
    /// # Errors
    ///
    /// [`Error::Files`] with the file.
    fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()>;

    /// Logs norm, radius, ratio and fire rate of each named tensor (see [`TensorScalars`]).
    ///
    /// # Errors
    ///
    /// [`Error::Files`] with the file.
    fn tensors(&mut self, step: u64, tensors: &[(String, TensorScalars)]) -> Result<()>;

    /// Hands what was logged to the system, so that others see it and a killed process does not lose it.
    ///
    /// # Errors
    ///
    /// [`Error::Files`] with the file.
    fn flush(&mut self) -> Result<()>;
}

/// What is logged of a tensor.
fn fields(scalars: &TensorScalars) -> [(&'static str, f64); 4] {
    [
        ("norm", scalars.norm),
        ("radius", scalars.radius),
        ("ratio", scalars.ratio),
        ("fire_rate", scalars.fire_rate),
    ]
}

/// Logs to both.
impl<A: Telemetry, B: Telemetry> Telemetry for (A, B) {
    fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        self.0.scalar(tag, step, value)?;
        self.1.scalar(tag, step, value)
    }

    fn tensors(&mut self, step: u64, tensors: &[(String, TensorScalars)]) -> Result<()> {
        self.0.tensors(step, tensors)?;
        self.1.tensors(step, tensors)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()?;
        self.1.flush()
    }
}

/// Logs, or does not.
impl<T: Telemetry> Telemetry for Option<T> {
    fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        self.as_mut().map_or(Ok(()), |log| log.scalar(tag, step, value))
    }

    fn tensors(&mut self, step: u64, tensors: &[(String, TensorScalars)]) -> Result<()> {
        self.as_mut().map_or(Ok(()), |log| log.tensors(step, tensors))
    }

    fn flush(&mut self) -> Result<()> {
        self.as_mut().map_or(Ok(()), Telemetry::flush)
    }
}
