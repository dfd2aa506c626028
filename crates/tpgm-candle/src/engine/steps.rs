//! Steps of rules and constraints on some device.

use candle_core::Tensor;
use tpgm_core::{StateDict, StepOptions, StepReport, StepSums, TensorScalars};

use super::error::Result;
use super::radii::RadiusEngine;
use super::{Bind, Operands};

/// [`tpgm_core::Optimizer`] on some device.
pub(crate) trait StepEngine: Send {
    /// `sums` are those of tensors that the set has some rows of, one entry per tensor; there are none at all if all are whole.
    fn step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
        sums: &[Option<StepSums>],
    ) -> Result<StepReport>;
    /// As `step`, but takes back what it does to state, and says what the scalars were then. Weights are changed.
    fn preview_step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
        sums: &[Option<StepSums>],
    ) -> Result<Vec<TensorScalars>>;
    /// What a step adds up over every gradient, piece by piece.
    fn step_sums(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<Vec<Vec<StepSums>>>;
    /// The sum of the squares of every gradient, 0 where there is none.
    fn squares(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<Vec<f64>>;
    fn update_importance(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<()>;
    fn set_importance(&mut self, tensor: &str, values: &[f64]) -> Result<()>;
    fn importance(&self, tensor: &str) -> Result<Vec<f64>>;
    fn radii(&mut self) -> Option<&mut dyn RadiusEngine>;
    fn scalars(&self) -> Result<Vec<TensorScalars>>;
    fn put_scalars(&mut self, scalars: &[TensorScalars]) -> Result<()>;
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
        sums: &[Option<StepSums>],
    ) -> Result<StepReport> {
        B::step_with(self, operands, grads, options, sums)
    }

    fn preview_step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
        sums: &[Option<StepSums>],
    ) -> Result<Vec<TensorScalars>> {
        self.preview(|this| {
            Ok(B::step_with(this, operands, grads, options, sums).and_then(|_| Ok(this.scalars()?)))
        })?
    }

    fn step_sums(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<Vec<Vec<StepSums>>> {
        B::step_sums(self, operands, grads)
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

    fn put_scalars(&mut self, scalars: &[TensorScalars]) -> Result<()> {
        Ok(self.put_scalars(scalars)?)
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
