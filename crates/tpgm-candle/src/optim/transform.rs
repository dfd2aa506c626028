//! Changes of gradients between the backward pass and the step.

use candle_core::backprop::GradStore;
use tpgm_core::gradient::{Follow, GradientTransform};
use tpgm_core::{Buffer, SliceMut};

use super::divided::{Engine, Means};
use super::{Result, RobustOptimizer, StepInfo};
use crate::distributed::average;
use crate::memory::{to_buffer, to_tensor};

impl RobustOptimizer {
    /// Takes a step with gradients that `transform` has changed, or none if it only took note of them (then
    /// [`StepInfo::taken`] is false); with a communicator it sees the means over all ranks. See
    /// [`tpgm_core::gradient`](crate::core::gradient) for what there is.
    ///
    /// Gradients are copied to the host and back: 8 bytes per f32 parameter while this runs.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use tpgm_candle::core::gradient::KernelProjection;
    /// use tpgm_candle::core::Slice;
    /// use tpgm_candle::{Constraint, Param, Params, RobustOptimizer, Sgd};
    ///
    /// let weight = Var::new(&[1.0f32, 2.0], &Device::Cpu)?;
    /// let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
    /// let mut opt = RobustOptimizer::new(&params, Sgd::default().lr(0.1), Constraint::None)?;
    /// let mut transform = KernelProjection::new(opt.set());
    /// let kept = opt.host_gradients(&weight.sum_all()?.backward()?)?; // of an output that is to stay
    /// transform.keep(&kept.iter().map(|grad| grad.as_ref().map(|grad| grad.as_slice())).collect::<Vec<Option<Slice>>>())?;
    /// opt.step_with_transform(&weight.sqr()?.sum_all()?.backward()?, &mut transform)?;
    /// assert!((weight.sum_all()?.to_scalar::<f32>()? - 3.0).abs() < 1e-6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the transform refuses, or as [`RobustOptimizer::step`]. Weights and state were not changed then.
    pub fn step_with_transform(
        &mut self,
        grads: &GradStore,
        transform: &mut dyn GradientTransform,
    ) -> Result<StepInfo> {
        let grads = self.of_vars(grads);
        let grads = match self.communicator() {
            Some(communicator) => average(communicator, &self.operands, grads)?,
            None => grads,
        };
        let mut buffers = self.buffers(&grads)?;
        let mut slices: Vec<Option<SliceMut<'_>>> =
            buffers.iter_mut().map(|buffer| buffer.as_mut().map(Buffer::as_mut)).collect();
        let follow = transform.apply(&mut slices)?;
        let there: Vec<bool> = slices.iter().map(Option::is_some).collect();
        drop(slices);
        if follow == Follow::Wait {
            return Ok(StepInfo { loss: None, taken: false, grad_norm: None });
        }
        let changed = grads.iter().zip(&buffers).zip(there);
        let changed = changed.map(|((grad, buffer), there)| match (grad, buffer) {
            (Some(grad), Some(buffer)) if there => {
                Ok(Some(to_tensor(buffer.as_slice(), grad.shape(), grad.device())?))
            }
            _ => Ok(None),
        });
        let changed = changed.collect::<Result<_>>()?;
        let means = match &self.engine {
            Engine::Whole(_) => Means::new(changed),
            Engine::Divided(parts) => parts.means(changed)?,
        };
        self.step_with(means)
    }

    /// Gradients as a [`GradientTransform`] takes them: copies on the host, one per parameter in the order of
    /// [`RobustOptimizer::set`], `None` where there is no gradient.
    ///
    /// # Errors
    ///
    /// A gradient of another shape, type or device.
    pub fn host_gradients(&self, grads: &GradStore) -> Result<Vec<Option<Buffer>>> {
        self.buffers(&self.of_vars(grads))
    }

    fn buffers(&self, grads: &[Option<candle_core::Tensor>]) -> Result<Vec<Option<Buffer>>> {
        let grads = self.operands.gradients(grads)?;
        let copies = self.operands.vars().zip(&grads).map(|((name, _), grad)| match grad {
            Some(grad) => Ok(Some(to_buffer(name, grad)?)),
            None => Ok(None),
        });
        copies.collect()
    }
}
