//! Updates of learned radii on the live weights.

use candle_core::{Tensor, Var};
use tpgm_core::TensorScalars;

#[cfg(doc)]
use super::RobustOptimizer;
#[cfg(doc)]
use super::Tpgm;
use super::divided::{RadiusSteps, WholeRadii};
use super::error::{Error, Result};
use crate::audit::loss_value;
use crate::distributed::or_refuse;
use crate::engine::Operands;

/// TPGM's radii, of a [`Tpgm`] or of a [`RobustOptimizer`] that is constrained by it.
pub struct Radii<'a> {
    operands: &'a Operands,
    steps: Steps<'a>,
}

/// Who does the work.
enum Steps<'a> {
    Whole(WholeRadii<'a>),
    Divided(&'a mut dyn RadiusSteps),
}

impl<'a> Steps<'a> {
    fn get(&mut self) -> &mut (dyn RadiusSteps + 'a) {
        match self {
            Self::Whole(whole) => whole,
            Self::Divided(parts) => *parts,
        }
    }
}

impl<'a> Radii<'a> {
    pub(super) fn whole(operands: &'a Operands, whole: WholeRadii<'a>) -> Self {
        Self { operands, steps: Steps::Whole(whole) }
    }

    pub(super) fn divided(operands: &'a Operands, parts: &'a mut dyn RadiusSteps) -> Self {
        Self { operands, steps: Steps::Divided(parts) }
    }

    /// One projection update of one iteration; `loss` computes the held-out loss, of one batch or the mean of several.
    /// Returns the loss (with several ranks, that of this one).
    ///
    /// # Errors
    ///
    /// As [`Radii::update_n`].
    pub fn update(&mut self, loss: impl FnOnce() -> candle_core::Result<Tensor>) -> Result<f64> {
        let mut update = Update::begin(self)?;
        let value = update.iterate(loss)?;
        update.finish()?;
        Ok(value)
    }

    /// One projection update of several iterations: `loss(i)` computes the held-out loss of iteration `i` (from 0), and
    /// the radii take an Adam step after each. Returns the losses. Without iterations the weights are only projected.
    ///
    /// # Errors
    ///
    /// The closure fails, its loss is not one finite number, a tensor whose radius is learned gets no gradient (tensors
    /// without elements excepted) or a non-finite one, or one of these happens on another rank ([`Error::Ranks`](crate::distributed::Error::Ranks)). The
    /// weights are then the same bits as before the call, whatever the iteration; radii keep what earlier iterations taught
    /// them. The same holds if the closure panics.
    pub fn update_n(
        &mut self,
        iterations: usize,
        mut loss: impl FnMut(usize) -> candle_core::Result<Tensor>,
    ) -> Result<Vec<f64>> {
        let mut update = Update::begin(self)?;
        let losses = (0..iterations).map(|i| update.iterate(|| loss(i))).collect::<Result<Vec<_>>>()?;
        update.finish()?;
        Ok(losses)
    }

    /// Projects the weights with the current radii, in place. The first projection of a tensor, here or in an update,
    /// sets its radius to half of its smallest norm.
    ///
    /// # Errors
    ///
    /// When the device fails, or a displacement is not finite.
    pub fn project(&mut self) -> Result<()> {
        self.steps.get().project(self.operands)
    }

    /// Radii and telemetry of every parameter, sorted by name; of divided state those that this rank keeps.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn scalars(&self) -> Result<Vec<(String, TensorScalars)>> {
        match &self.steps {
            Steps::Whole(whole) => whole.scalars(),
            Steps::Divided(parts) => parts.scalars(),
        }
    }
}

/// A running projection update. Dropped before its end, by an error or a panic, it writes the weights back.
struct Update<'u, 'a> {
    radii: &'u mut Radii<'a>,
    running: bool,
}

impl<'u, 'a> Update<'u, 'a> {
    fn begin(radii: &'u mut Radii<'a>) -> Result<Self> {
        radii.steps.get().begin(radii.operands)?;
        Ok(Self { radii, running: true })
    }

    fn iterate(&mut self, loss: impl FnOnce() -> candle_core::Result<Tensor>) -> Result<f64> {
        let Radii { operands, steps } = &mut *self.radii;
        let steps = steps.get();
        steps.apply(operands)?;
        let held_out =
            loss().map_err(Error::from).and_then(|loss| Ok((loss_value(&loss)?, loss.backward()?)));
        let (value, grads) = or_refuse(steps.communicator(), held_out)?;
        let gradient = |(_, var): (_, &Var)| match grads.get(var) {
            // There is nothing to learn, and no loss reaches such a tensor on every device.
            None if var.elem_count() == 0 => Some(var.as_detached_tensor()),
            grad => grad.cloned(),
        };
        let grads = operands.vars().map(gradient).collect();
        steps.learn(operands, grads)?;
        Ok(value)
    }

    fn finish(mut self) -> Result<()> {
        self.radii.steps.get().finish(self.radii.operands)?;
        self.running = false;
        Ok(())
    }
}

impl Drop for Update<'_, '_> {
    fn drop(&mut self) {
        if self.running {
            // The error that brought us here is the one to report; this one needs a failing device.
            let _ = self.radii.steps.get().abort(self.radii.operands);
        }
    }
}
