//! Steps of rules and constraints on some device.

use candle_core::Tensor;
use tpgm_core::{StateDict, StepOptions, StepReport, TensorScalars};

use super::error::Result;
use super::radii::RadiusEngine;
use super::{Bind, Operands};

/// [`tpgm_core::Optimizer`] on some device.
pub(crate) trait StepEngine: Send {
    fn step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
    ) -> Result<StepReport>;
    /// As `step`, but takes back what it does to state. Weights are changed.
    fn preview_step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
    ) -> Result<()>;
    /// The sum of the squares of every gradient, 0 where there is none.
    fn squares(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<Vec<f64>>;
    fn update_importance(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<()>;
    fn set_importance(&mut self, tensor: &str, values: &[f64]) -> Result<()>;
    fn importance(&self, tensor: &str) -> Result<Vec<f64>>;
    fn radii(&mut self) -> Option<&mut dyn RadiusEngine>;
    fn scalars(&self) -> Result<Vec<TensorScalars>>;
    fn norms(&self, tensor: &str) -> Result<Vec<f64>>;
    fn state(&self) -> Result<StateDict>;
    /// Says what [`StepEngine::load_state`] would say, and changes nothing.
    fn check_state(&mut self, state: &StateDict) -> Result<()>;
    fn load_state(&mut self, state: &StateDict) -> Result<()>;
}

impl<B: Bind> StepEngine for tpgm_core::Optimizer<B> {
    fn step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
    ) -> Result<StepReport> {
        B::bind(operands, grads, |io| self.step(io, options))
    }

    fn preview_step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
    ) -> Result<()> {
        B::bind(operands, grads, |io| self.preview(|this| this.step(io, options)))?;
        Ok(())
    }

    fn squares(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<Vec<f64>> {
        B::squares(self, operands, grads)
    }

    fn update_importance(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<()> {
        B::bind(operands, grads, |io| self.update_importance(io))
    }

    fn set_importance(&mut self, tensor: &str, values: &[f64]) -> Result<()> {
        Ok(self.set_importance(tensor, values)?)
    }

    fn importance(&self, tensor: &str) -> Result<Vec<f64>> {
        Ok(self.importance(tensor)?)
    }

    fn radii(&mut self) -> Option<&mut dyn RadiusEngine> {
        self.projector_mut().map(|projector| projector as &mut dyn RadiusEngine)
    }

    fn scalars(&self) -> Result<Vec<TensorScalars>> {
        Ok(self.scalars()?)
    }

    fn norms(&self, tensor: &str) -> Result<Vec<f64>> {
        Ok(self.norms(tensor)?)
    }

    fn state(&self) -> Result<StateDict> {
        Ok(self.state()?)
    }

    fn check_state(&mut self, state: &StateDict) -> Result<()> {
        Ok(self.preview(|this| this.load_state(state))?)
    }

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        Ok(self.load_state(state)?)
    }
}
