//! Fast weights: steps on what several gradients have in common.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use tpgm_core::gradient::concordant;
use tpgm_core::{AdamW, Constraint};
use tpgm_nn::losses::entropy;

use super::error::{Error, Result};
use crate::memory::cast;
use crate::optim::RobustOptimizer;
use crate::params::{Param, Params};

/// The least variance that a direction is divided by (FSTTA's code).
const VARIANCE_FLOOR: f64 = 1e-6;

/// Options of [`FastWeights`]. The defaults are FSTTA's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FastOptions {
    /// Gradients per step, at least 2.
    pub every: usize,
    /// Learning rate.
    pub lr: f64,
    /// Share of itself that the mean variance keeps, in `[0, 1]`.
    pub momentum: f64,
    /// The learning rate is multiplied by `1 + threshold - |variance - mean variance|`.
    pub threshold: f64,
    /// That factor's smallest value.
    pub low: f64,
    /// That factor's largest value.
    pub high: f64,
    /// Decay of AdamW's mean of gradients.
    pub beta1: f64,
    /// Decay of AdamW's mean of squares.
    pub beta2: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
}

impl Default for FastOptions {
    fn default() -> Self {
        Self {
            every: 3,
            lr: 6e-4,
            momentum: 0.9,
            threshold: 0.5,
            low: 0.5,
            high: 1.5,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.01,
        }
    }
}

/// What [`FastWeights::step`] did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FastInfo {
    /// The mean entropy of the predictions, in nats.
    pub entropy: f64,
    /// The learning rate of the step; none while gradients are collected.
    pub lr: Option<f64>,
}

/// The fast half of fast-slow test-time adaptation (FSTTA, Gao et al., ICML 2024, arXiv 2311.13209): gradients of the entropy are
/// collected for [`FastOptions::every`] samples; then each tensor takes the direction that they have in common
/// ([`concordant`](tpgm_core::gradient::concordant)), with a rate that falls where their variance is unusual:
///
/// `lr (1 + threshold - |s - m|)`, the factor within `low` and `high`,
///
/// with `s` the mean over the tensors of the variances, and `m` its moving average, which begins at the first `s`.
pub struct FastWeights {
    params: Vec<Param>,
    optimizer: RobustOptimizer,
    options: FastOptions,
    /// Of each parameter, the gradients since the last step.
    collected: Vec<Vec<Vec<f64>>>,
    variance: Option<f64>,
}

impl FastWeights {
    /// Over all of `params`: [`norms`](super::norms), usually.
    ///
    /// # Errors
    ///
    /// An option outside its range, or as [`RobustOptimizer::new`].
    pub fn new(params: &Params, options: FastOptions, constraint: impl Into<Constraint>) -> Result<Self> {
        check(&options)?;
        let &FastOptions { lr, beta1, beta2, weight_decay, .. } = &options;
        let rule = AdamW { beta1, beta2, weight_decay, ..AdamW::default().lr(lr) };
        let all = params.all();
        Ok(Self {
            optimizer: RobustOptimizer::new(params, rule, constraint)?,
            collected: vec![Vec::new(); all.len()],
            params: all,
            options,
            variance: None,
        })
    }

    /// Takes in the predictions for a sample or a batch: logits of shape (..., classes).
    ///
    /// # Errors
    ///
    /// [`Error::NoGradient`], or as [`RobustOptimizer::step`]. The weights
    /// are as they were then; the gradients of a step that was refused are forgotten.
    pub fn step(&mut self, logits: &Tensor) -> Result<FastInfo> {
        let loss = entropy(logits)?;
        let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let mut grads = loss.backward()?;
        let mut fresh = Vec::with_capacity(self.params.len());
        for param in &self.params {
            let no_gradient = || Error::NoGradient { tensor: param.name().to_owned() };
            let grad = grads.get(param.var()).ok_or_else(no_gradient)?;
            fresh.push(grad.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
        }
        self.collected.iter_mut().zip(fresh).for_each(|(collected, grad)| collected.push(grad));
        if self.collected.first().is_some_and(|collected| collected.len() < self.options.every) {
            return Ok(FastInfo { entropy: value, lr: None });
        }
        let mut total = 0.0;
        for (param, collected) in self.params.iter().zip(&mut self.collected) {
            let collected = std::mem::take(collected);
            let var = param.var();
            let slices: Vec<_> = collected.iter().map(|grad| grad.as_slice().into()).collect();
            let mut gradient = vec![0.0; var.elem_count()];
            total += concordant(&slices, VARIANCE_FLOOR, gradient.as_mut_slice().into())?;
            let gradient = Tensor::from_vec(gradient, var.shape(), &candle_core::Device::Cpu)?;
            grads.insert(var, cast(&gradient, var.dtype())?.to_device(var.device())?);
        }
        let variance = total / self.params.len() as f64;
        let FastOptions { lr, momentum, threshold, low, high, .. } = self.options;
        let mean = self.variance.map_or(variance, |mean| momentum * mean + (1.0 - momentum) * variance);
        let lr = lr * (1.0 + threshold - (variance - mean).abs()).clamp(low, high);
        self.optimizer.set_learning_rate(lr);
        self.optimizer.step(&grads)?;
        self.variance = Some(mean);
        Ok(FastInfo { entropy: value, lr: Some(lr) })
    }

    /// The moving average of the variance, once there was a step.
    pub fn variance(&self) -> Option<f64> {
        self.variance
    }
}

fn check(options: &FastOptions) -> Result<()> {
    let invalid = |option, value, requirement| {
        Err(tpgm_core::Error::InvalidOption { option, value, requirement }.into())
    };
    if options.every < 2 {
        return invalid("FastOptions::every", options.every as f64, "at least 2");
    }
    if !(0.0..=1.0).contains(&options.momentum) {
        return invalid("FastOptions::momentum", options.momentum, "in [0, 1]");
    }
    if !(options.threshold >= 0.0 && options.threshold.is_finite()) {
        return invalid("FastOptions::threshold", options.threshold, "finite and at least 0");
    }
    if !(options.low >= 0.0 && options.low <= options.high && options.high.is_finite()) {
        return invalid("FastOptions::low", options.low, "at least 0, and at most `high`, which is finite");
    }
    Ok(())
}
