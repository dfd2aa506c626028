//! In place of candle-nn's optimizers.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::error::Error;
use super::position::Positions;
use super::{OptimizerConfig, RobustOptimizer};
use crate::params::{self, Param, Params};

/// A drop-in for candle-nn's optimizers. Parameters are named by their position (`0000`, `0001`, ...) and anchored where
/// they are now.
///
/// # Resuming
///
/// Prefer [`RobustOptimizer::builder`] over [`Params`] (from a checkpoint, or
/// [`Params::from_var_map`]): it knows names, and anchors that are not where the weights happen to be.
///
/// `VarMap::all_vars` has another order in every process, so positions mean nothing to the next one. The state of an optimizer
/// made here therefore holds a shape and a digest of every weight and anchor, and [`RobustOptimizer::load_state`] finds its
/// variables by these, in whatever order they are given. To resume: make the optimizer while the variables hold the
/// *pre-trained* weights, put the saved weights into them, then load the state. Where weights do not match, or are twins
/// whose state differs, that is [`Error::Position`].
impl candle_nn::Optimizer for RobustOptimizer {
    type Config = OptimizerConfig;

    fn new(vars: Vec<Var>, config: OptimizerConfig) -> candle_core::Result<Self> {
        let param = |(i, var)| Param::anchored_here(format!("{i:04}"), var);
        let params = vars.into_iter().enumerate().map(param).collect::<params::Result<Vec<_>>>()?;
        let mut this = Self::builder(&Params::from_params(params)?).config(config).build()?;
        let settings = this.set.settings(&this.config.rule, &this.config.constraint).map_err(Error::from)?;
        this.positions = Some(Positions::new(&this.operands, settings)?);
        Ok(this)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        RobustOptimizer::step(self, grads)?;
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn backward_step(&mut self, loss: &Tensor) -> candle_core::Result<()> {
        RobustOptimizer::backward_step(self, loss)?;
        Ok(())
    }
}
