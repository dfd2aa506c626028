//! Projections and the updates of radii, of one engine or of divided state.

use candle_core::Tensor;
use tpgm_core::{ParamSet, TensorScalars};

use super::steps::own_finite;
use super::{Part, Parts, Result};
use crate::distributed::{Communicator, average, or_refuse};
use crate::engine::{Operands, Projects, RadiusEngine, StepEngine, named};

/// What a projection update is made of.
pub(in crate::optim) trait RadiusSteps {
    fn project(&mut self, operands: &Operands) -> Result<()>;
    fn begin(&mut self, operands: &Operands) -> Result<()>;
    fn apply(&mut self, operands: &Operands) -> Result<()>;
    /// Takes the gradients of this rank's held-out loss, makes them means over all ranks, and learns from them.
    fn learn(&mut self, operands: &Operands, grads: Vec<Option<Tensor>>) -> Result<()>;
    fn finish(&mut self, operands: &Operands) -> Result<()>;
    fn abort(&mut self, operands: &Operands) -> Result<()>;
    /// Of all tensors whose state is here.
    fn scalars(&self) -> Result<Vec<(String, TensorScalars)>>;
    /// Ranks that learn together.
    fn communicator(&self) -> Option<&dyn Communicator>;
}

/// An engine over all tensors.
pub(in crate::optim) struct WholeRadii<'a> {
    pub(in crate::optim) set: &'a ParamSet,
    pub(in crate::optim) engine: &'a mut dyn RadiusEngine,
    pub(in crate::optim) communicator: Option<&'a dyn Communicator>,
}

impl RadiusSteps for WholeRadii<'_> {
    fn project(&mut self, operands: &Operands) -> Result<()> {
        Ok(self.engine.project(operands)?)
    }

    fn begin(&mut self, operands: &Operands) -> Result<()> {
        Ok(self.engine.begin(operands)?)
    }

    fn apply(&mut self, operands: &Operands) -> Result<()> {
        Ok(self.engine.apply(operands)?)
    }

    fn learn(&mut self, operands: &Operands, mut grads: Vec<Option<Tensor>>) -> Result<()> {
        if let Some(communicator) = self.communicator {
            grads = average(communicator, operands, grads)?;
        }
        Ok(self.engine.update(operands, &grads)?)
    }

    fn finish(&mut self, operands: &Operands) -> Result<()> {
        Ok(self.engine.finish(operands)?)
    }

    fn abort(&mut self, operands: &Operands) -> Result<()> {
        Ok(self.engine.abort(operands)?)
    }

    fn scalars(&self) -> Result<Vec<(String, TensorScalars)>> {
        Ok(named(self.set, self.engine.scalars()?))
    }

    fn communicator(&self) -> Option<&dyn Communicator> {
        self.communicator
    }
}

/// An engine that may have radii.
pub(in crate::optim) trait HasRadii {
    fn radii(&mut self) -> Option<&mut dyn RadiusEngine>;
    fn scalars(&self) -> crate::engine::Result<Vec<TensorScalars>>;
}

impl HasRadii for dyn StepEngine {
    fn radii(&mut self) -> Option<&mut dyn RadiusEngine> {
        StepEngine::radii(self)
    }

    fn scalars(&self) -> crate::engine::Result<Vec<TensorScalars>> {
        StepEngine::scalars(self)
    }
}

impl HasRadii for dyn RadiusEngine {
    fn radii(&mut self) -> Option<&mut dyn RadiusEngine> {
        Some(self)
    }

    fn scalars(&self) -> crate::engine::Result<Vec<TensorScalars>> {
        RadiusEngine::scalars(self)
    }
}

impl<E: HasRadii + ?Sized> Part<E> {
    /// Makes a call if a radius of the part is learned.
    fn with_radii(
        &mut self,
        call: impl FnOnce(&mut dyn RadiusEngine, &Operands) -> crate::engine::Result<()>,
    ) -> Result<()> {
        match self.engine.radii() {
            Some(radii) => Ok(call(radii, &self.operands)?),
            None => Ok(()),
        }
    }
}

impl<E: HasRadii + ?Sized> Parts<E> {
    /// Whether TPGM constrains a tensor, of this rank or another.
    pub(in crate::optim) fn learns(&self) -> bool {
        self.learned.contains(&true)
    }

    /// A call that writes weights, on all ranks or none.
    fn project_by(&mut self, call: Projects) -> Result<()> {
        let learned = self.learned.clone();
        self.exchange(
            Vec::new(),
            &learned,
            |part| {
                part.with_radii(|radii, operands| radii.preview(operands, call))?;
                Ok(Vec::new())
            },
            |_, _| Ok(()),
            |part| {
                part.with_radii(|radii, operands| match call {
                    Projects::InPlace => radii.project(operands),
                    Projects::OnTrial => radii.apply(operands),
                    Projects::ForGood => radii.finish(operands),
                })
            },
        )
    }

    /// Begins on all parts of this rank, or on none.
    fn begin_own(&mut self) -> Result<()> {
        for number in 0..self.parts.len() {
            if let Err(error) = self.parts[number].with_radii(|radii, operands| radii.begin(operands)) {
                self.abort_own(number)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends what the first `parts` began.
    fn abort_own(&mut self, parts: usize) -> Result<()> {
        let mut parts = self.parts[..parts].iter_mut();
        parts.try_for_each(|part| part.with_radii(|radii, operands| radii.abort(operands)))
    }
}

impl<E: HasRadii + ?Sized> RadiusSteps for Parts<E> {
    fn project(&mut self, _: &Operands) -> Result<()> {
        self.project_by(Projects::InPlace)
    }

    fn begin(&mut self, _: &Operands) -> Result<()> {
        let begun = self.begin_own();
        or_refuse(Some(&*self.communicator), begun)?;
        let rank = self.communicator.rank();
        // What TPGM learns is whole, and so are these variables.
        let others = self.operands.vars().zip(&self.learned).zip(self.division.owners());
        let others = others.filter(|((_, learned), owner)| **learned && **owner != rank);
        let live = others.map(|(((_, var), _), _)| Ok((var.clone(), var.as_tensor().copy()?)));
        let live = live.collect::<candle_core::Result<Vec<_>>>();
        match self.agreed(live.map_err(Into::into)) {
            Ok(live) => {
                self.live = live;
                Ok(())
            }
            Err(error) => {
                self.abort_own(self.parts.len())?;
                Err(error)
            }
        }
    }

    fn apply(&mut self, _: &Operands) -> Result<()> {
        self.project_by(Projects::OnTrial)
    }

    fn learn(&mut self, operands: &Operands, grads: Vec<Option<Tensor>>) -> Result<()> {
        let mut means = self.reduce(operands, grads)?;
        let learned = means.own.iter_mut().zip(&self.learned);
        learned.filter(|(_, learned)| !**learned).for_each(|(grad, _)| *grad = None);
        let missing = (0..self.blocks.list.len()).find(|&i| self.learned[i] && !means.present[i]);
        let looked_at = match missing {
            None => own_finite(&self.operands, &means.own),
            Some(i) => {
                let tensor = self.blocks.set.tensors()[i].name.clone();
                Err(tpgm_core::Error::MissingGradient { tensor }.into())
            }
        };
        self.agreed(looked_at)?;
        self.parts.iter_mut().try_for_each(|part| {
            let grads = part.select(&means.own);
            part.with_radii(|radii, operands| radii.update(operands, &grads))
        })
    }

    fn finish(&mut self, _: &Operands) -> Result<()> {
        self.project_by(Projects::ForGood)?;
        self.live.clear();
        Ok(())
    }

    fn abort(&mut self, _: &Operands) -> Result<()> {
        let live = std::mem::take(&mut self.live);
        live.iter().try_for_each(|(var, weight)| var.set(weight))?;
        self.abort_own(self.parts.len())
    }

    fn scalars(&self) -> Result<Vec<(String, TensorScalars)>> {
        self.named(|engine| Ok(engine.scalars()?))
    }

    fn communicator(&self) -> Option<&dyn Communicator> {
        Some(&*self.communicator)
    }
}
