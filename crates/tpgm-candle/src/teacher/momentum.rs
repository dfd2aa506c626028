//! How much of itself a teacher keeps.

use serde::{Deserialize, Serialize};
use tpgm_core::Error as CoreError;

/// The momentum of a moving average over the steps of training, from 0: the share of itself that the teacher keeps. It rises
/// along a line and stays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Momentum {
    from: f64,
    to: f64,
    steps: f64,
}

impl Momentum {
    /// Always the same, in `[0, 1]`.
    pub fn constant(momentum: f64) -> Self {
        Self { from: momentum, to: momentum, steps: 0.0 }
    }

    /// `from + (to - from) * step / steps` before step `steps`, then `to`. `steps` may be a share of a length, such as 0.2 times
    /// the number of steps: it need not be an integer.
    pub fn ramp(from: f64, to: f64, steps: f64) -> Self {
        Self { from, to, steps }
    }

    /// CaRot's (arXiv 2311.01723, published code): from 0.05 to 0.9 within the first fifth of `steps` steps.
    pub fn carot(steps: u64) -> Self {
        Self::ramp(0.05, 0.9, 0.2 * steps as f64)
    }

    /// The momentum at a step.
    pub fn at(&self, step: u64) -> f64 {
        let step = step as f64;
        if step < self.steps { self.from + (self.to - self.from) * step / self.steps } else { self.to }
    }

    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](tpgm_core::Error::InvalidOption): a momentum outside `[0, 1]`, or a length that is negative or not
    /// finite.
    pub fn validate(&self) -> tpgm_core::Result<()> {
        for (option, value) in [("momentum at first", self.from), ("momentum at last", self.to)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(CoreError::InvalidOption { option, value, requirement: "in [0, 1]" });
            }
        }
        if !(self.steps >= 0.0 && self.steps.is_finite()) {
            let (option, requirement) = ("momentum steps", "finite and at least 0");
            return Err(CoreError::InvalidOption { option, value: self.steps, requirement });
        }
        Ok(())
    }
}
