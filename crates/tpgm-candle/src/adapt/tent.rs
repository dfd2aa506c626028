//! Entropy on norms.

use candle_core::Tensor;
use tpgm_core::{Constraint, Rule};
use tpgm_nn::losses::entropy;

use super::error::Result;
use super::norms::norms;
use crate::optim::RobustOptimizer;
use crate::params::Params;

/// Test-time adaptation by entropy (Tent, Wang et al., ICLR 2021, arXiv 2006.10726): for each batch of the stream a step on the
/// mean entropy of the predictions, over the weights and biases of the norms. Under a constraint, they stay near their anchors.
pub struct Tent {
    optimizer: RobustOptimizer,
}

impl Tent {
    /// Over [`norms`] of `params`.
    ///
    /// # Errors
    ///
    /// As [`norms`], and as [`RobustOptimizer::new`].
    pub fn new(params: &Params, rule: impl Into<Rule>, constraint: impl Into<Constraint>) -> Result<Self> {
        Self::over(&norms(params)?, rule, constraint)
    }

    /// Over all of `params`, for example those that [`select`](super::select) chose.
    ///
    /// # Errors
    ///
    /// As [`RobustOptimizer::new`].
    pub fn over(params: &Params, rule: impl Into<Rule>, constraint: impl Into<Constraint>) -> Result<Self> {
        Ok(Self { optimizer: RobustOptimizer::new(params, rule, constraint)? })
    }

    /// Takes a step on the mean entropy of logits of shape (..., classes), and returns it, in nats. The predictions are those of
    /// `logits`, as published: the step is for what comes next.
    ///
    /// # Errors
    ///
    /// As [`RobustOptimizer::backward_step`]; nothing was changed then.
    pub fn step(&mut self, logits: &Tensor) -> Result<f64> {
        let info = self.optimizer.backward_step(&entropy(logits)?)?;
        Ok(info.loss.unwrap_or(f64::NAN))
    }

    /// The optimizer, to save its state or to change its learning rate.
    pub fn optimizer(&mut self) -> &mut RobustOptimizer {
        &mut self.optimizer
    }
}
