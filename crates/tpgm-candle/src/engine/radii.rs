//! Projections and the updates of radii on some device.

use candle_core::Tensor;
use tpgm_core::{Projector, StateDict, TensorScalars};

use super::error::Result;
use super::{Bind, Operands};

/// The calls of a [`RadiusEngine`] that write weights.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Projects {
    InPlace,
    OnTrial,
    ForGood,
}

/// [`Projector`] on some device.
pub(crate) trait RadiusEngine: Send {
    fn project(&mut self, operands: &Operands) -> Result<()>;
    fn begin(&mut self, operands: &Operands) -> Result<()>;
    fn apply(&mut self, operands: &Operands) -> Result<()>;
    fn update(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<()>;
    fn finish(&mut self, operands: &Operands) -> Result<()>;
    fn abort(&mut self, operands: &Operands) -> Result<()>;
    /// Makes a call and takes back what it does to state. Weights are changed.
    fn preview(&mut self, operands: &Operands, call: Projects) -> Result<()>;
    fn scalars(&self) -> Result<Vec<TensorScalars>>;
    fn state(&self) -> Result<StateDict>;
    /// Says what [`RadiusEngine::load_state`] would say, and changes nothing.
    fn check_state(&mut self, state: &StateDict) -> Result<()>;
    fn load_state(&mut self, state: &StateDict) -> Result<()>;
}

impl<B: Bind> RadiusEngine for Projector<B> {
    fn project(&mut self, operands: &Operands) -> Result<()> {
        B::bind(operands, &[], |io| self.project(io))
    }

    fn begin(&mut self, operands: &Operands) -> Result<()> {
        B::bind(operands, &[], |io| self.begin(io))
    }

    fn apply(&mut self, operands: &Operands) -> Result<()> {
        B::bind(operands, &[], |io| self.apply(io))
    }

    fn update(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<()> {
        B::bind(operands, grads, |io| self.update(io))
    }

    fn finish(&mut self, operands: &Operands) -> Result<()> {
        B::bind(operands, &[], |io| self.finish(io))
    }

    fn abort(&mut self, operands: &Operands) -> Result<()> {
        B::bind(operands, &[], |io| self.abort(io))
    }

    fn preview(&mut self, operands: &Operands, call: Projects) -> Result<()> {
        B::bind(operands, &[], |io| {
            self.preview(|this| match call {
                Projects::InPlace => this.project(io),
                Projects::OnTrial => this.apply(io),
                Projects::ForGood => this.finish(io),
            })
        })
    }

    fn scalars(&self) -> Result<Vec<TensorScalars>> {
        Ok(self.scalars()?)
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
