//! The one place where a device is chosen.
//!
//! `tpgm-core`'s optimizer, projector and average are generic over the backend. Here they become objects that know
//! candle's tensors and no backend any more. Another device takes a [`Bind`] and a variant of [`Place`].

use candle_core::{Device, Tensor};
use tpgm_core::{
    Backend, Constraint, Cpu, EngineOptions, ParamSet, Projector, Rule, SliceMut, StateDict, StepOptions,
    StepReport, TensorIo, TensorScalars, Tpgm,
};

use super::ema::EmaEngine;
use super::operands::Operands;
use crate::error::{Error, Result};
use crate::params::Param;

/// A device that steps can run on.
pub(crate) enum Place {
    /// The host.
    Cpu(Cpu),
}

impl Place {
    /// The device that all of `params` are on; `threads` limits the host's.
    pub(crate) fn of(params: &[Param], threads: Option<usize>) -> Result<Self> {
        match params.iter().find(|param| !matches!(param.var().device(), Device::Cpu)) {
            Some(param) => {
                let (tensor, device) = (param.name().to_owned(), param.var().device().location());
                Err(Error::Device { tensor, device })
            }
            None => Ok(Place::Cpu(threads.map_or_else(|| Ok(Cpu::new()), Cpu::with_threads)?)),
        }
    }

    pub(crate) fn optimizer(
        self,
        set: &ParamSet,
        rule: Rule,
        constraint: Constraint,
        options: EngineOptions,
    ) -> Result<Box<dyn StepEngine>> {
        match self {
            Place::Cpu(cpu) => {
                Ok(Box::new(tpgm_core::Optimizer::with_options(cpu, set, rule, constraint, options)?))
            }
        }
    }

    pub(crate) fn projector(self, set: &ParamSet, tpgm: Tpgm) -> Result<Box<dyn RadiusEngine>> {
        match self {
            Place::Cpu(cpu) => Ok(Box::new(Projector::new(cpu, set, tpgm)?)),
        }
    }

    /// An average that starts at what the variables hold.
    pub(super) fn ema(self, set: &ParamSet, operands: &Operands) -> Result<Box<dyn EmaEngine>> {
        match self {
            Place::Cpu(cpu) => {
                let ema = operands.with_weights(|weights| {
                    let weights: Vec<_> = weights.iter().map(SliceMut::as_slice).collect();
                    tpgm_core::Ema::new(cpu, set, &weights)
                })?;
                Ok(Box::new(ema))
            }
        }
    }
}

/// A backend that can work on candle's memory.
pub(crate) trait Bind: Backend + Send + 'static {
    /// Binds all operands and runs `work` on them. `grads` has one entry per variable, or none at all.
    fn bind<R: Send>(
        operands: &Operands,
        grads: &[Option<Tensor>],
        work: impl FnOnce(&mut [TensorIo<'_, Self>]) -> tpgm_core::Result<R> + Send,
    ) -> Result<R>;
}

impl Bind for Cpu {
    fn bind<R: Send>(
        operands: &Operands,
        grads: &[Option<Tensor>],
        work: impl FnOnce(&mut [TensorIo<'_, Self>]) -> tpgm_core::Result<R> + Send,
    ) -> Result<R> {
        operands.with_cpu(grads, work)
    }
}

/// [`tpgm_core::Optimizer`] on some device.
pub(crate) trait StepEngine: Send {
    fn step(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
    ) -> Result<StepReport>;
    fn radii(&mut self) -> Option<&mut dyn RadiusEngine>;
    fn scalars(&self) -> Result<Vec<TensorScalars>>;
    fn norms(&self, tensor: &str) -> Result<Vec<f64>>;
    fn state(&self) -> Result<StateDict>;
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

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        Ok(self.load_state(state)?)
    }
}

/// [`Projector`] on some device.
pub(crate) trait RadiusEngine: Send {
    fn project(&mut self, operands: &Operands) -> Result<()>;
    fn begin(&mut self, operands: &Operands) -> Result<()>;
    fn apply(&mut self, operands: &Operands) -> Result<()>;
    fn update(&mut self, operands: &Operands, grads: &[Option<Tensor>]) -> Result<()>;
    fn finish(&mut self, operands: &Operands) -> Result<()>;
    fn abort(&mut self, operands: &Operands) -> Result<()>;
    fn scalars(&self) -> Result<Vec<TensorScalars>>;
    fn state(&self) -> Result<StateDict>;
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

    fn scalars(&self) -> Result<Vec<TensorScalars>> {
        Ok(self.scalars()?)
    }

    fn state(&self) -> Result<StateDict> {
        Ok(self.state()?)
    }

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        Ok(self.load_state(state)?)
    }
}
