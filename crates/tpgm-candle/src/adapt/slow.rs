//! Slow weights: they follow where the fast ones have gone.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use tpgm_core::gradient::{SlowDirection, slow_gradient};
use tpgm_core::{AdamW, Constraint};

use super::error::Result;
use crate::memory::cast;
use crate::optim::RobustOptimizer;
use crate::params::{Param, Params};

/// Options of [`SlowWeights`]. The defaults are FSTTA's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlowOptions {
    /// Samples per step, at least 1.
    pub window: usize,
    /// What an earlier sample counts, as a share of the next one; above 0.
    pub decay: f64,
    /// Learning rate of AdamW.
    pub lr: f64,
    /// How long directions are.
    pub direction: SlowDirection,
}

impl Default for SlowOptions {
    fn default() -> Self {
        Self { window: 4, decay: 0.1, lr: 1e-3, direction: SlowDirection::Normalized }
    }
}

/// The slow half of fast-slow test-time adaptation (FSTTA, ICML 2024, arXiv 2311.13209). After each sample the weights of the
/// model, which are fast, are remembered; after [`SlowOptions::window`] samples the slow weights take a step of AdamW along
/// [`slow_gradient`](tpgm_core::gradient::slow_gradient), and the model goes on from them.
pub struct SlowWeights {
    params: Vec<Param>,
    optimizer: RobustOptimizer,
    options: SlowOptions,
    slow: Vec<Tensor>,
    states: Vec<Vec<f64>>,
}

impl SlowWeights {
    /// Starts at what `params` hold now: those that the fast half changes.
    ///
    /// # Errors
    ///
    /// An option outside its range, or as [`RobustOptimizer::new`].
    pub fn new(params: &Params, options: SlowOptions, constraint: impl Into<Constraint>) -> Result<Self> {
        let invalid = |option, value, requirement| {
            Err(tpgm_core::Error::InvalidOption { option, value, requirement }.into())
        };
        if options.window == 0 {
            return invalid("SlowOptions::window", 0.0, "at least 1");
        }
        if !(options.decay > 0.0 && options.decay.is_finite()) {
            return invalid("SlowOptions::decay", options.decay, "finite and above 0");
        }
        let all = params.all();
        Ok(Self {
            optimizer: RobustOptimizer::new(params, AdamW::default().lr(options.lr), constraint)?,
            slow: snapshot(&all)?,
            params: all,
            options,
            states: Vec::new(),
        })
    }

    /// Ends a sample. True if the slow weights have taken a step, and the model has them now.
    ///
    /// # Errors
    ///
    /// As [`RobustOptimizer::step`], for example for a direction that is not finite; the model has its fast weights then, and the
    /// window begins anew.
    pub fn end_sample(&mut self) -> Result<bool> {
        let fast = snapshot(&self.params)?;
        self.states.push(flat(&fast)?);
        if self.states.len() < self.options.window {
            return Ok(false);
        }
        let states = std::mem::take(&mut self.states);
        let SlowOptions { decay, direction, .. } = self.options;
        let gradient = slow_gradient(&flat(&self.slow)?, &states, decay, direction)?;
        if let Err(error) = self.step(&gradient) {
            put(&self.params, &fast)?;
            return Err(error);
        }
        self.slow = snapshot(&self.params)?;
        Ok(true)
    }

    fn step(&mut self, gradient: &[f64]) -> Result<()> {
        put(&self.params, &self.slow)?;
        // A store of gradients comes only from a backward pass.
        let mut grads = Tensor::zeros((), DType::F32, &candle_core::Device::Cpu)?.backward()?;
        let mut rest = gradient;
        for param in &self.params {
            let var = param.var();
            let (own, others) = rest.split_at(var.elem_count());
            rest = others;
            let own = Tensor::from_slice(own, var.shape(), &candle_core::Device::Cpu)?;
            grads.insert(var, cast(&own, var.dtype())?.to_device(var.device())?);
        }
        self.optimizer.step(&grads)?;
        Ok(())
    }
}

fn snapshot(params: &[Param]) -> Result<Vec<Tensor>> {
    Ok(params.iter().map(|param| param.var().detach().copy()).collect::<candle_core::Result<_>>()?)
}

fn put(params: &[Param], values: &[Tensor]) -> Result<()> {
    params.iter().zip(values).try_for_each(|(param, value)| Ok(param.var().set(value)?))
}

fn flat(tensors: &[Tensor]) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for tensor in tensors {
        all.extend(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
    }
    Ok(all)
}
