//! The importance that a [`Pull`](crate::Pull) is weighted by.

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use super::divided::Engine;
use super::{Error, Result, RobustOptimizer};
use crate::audit::loss_value;
use crate::distributed::or_refuse;
use crate::memory::to_buffer;

impl RobustOptimizer {
    /// Takes the importance of every [`Pull`](crate::Pull) that keeps one (see [`PullWeights`](crate::core::PullWeights)) from
    /// gradients of any loss: those of a second backward pass for GIFT, of the finished task for gates. A variable without a gradient
    /// keeps the importance that it has; the scale of the gradients does not matter. With a communicator, all ranks call
    /// this, and take it from the mean of their gradients.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use tpgm_candle::core::PullWeights;
    /// use tpgm_candle::{AdamW, Param, Params, Pull, RobustOptimizer};
    ///
    /// let weight = Var::new(&[1.0f32, -3.0], &Device::Cpu)?;
    /// let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
    /// let pull = Pull { anchor_l2: 2.0, weights: PullWeights::Fisher, ..Pull::default() };
    /// let mut opt = RobustOptimizer::new(&params, AdamW::default(), pull)?;
    /// opt.update_importance(&weight.sqr()?.sum_all()?.backward()?)?;
    /// assert_eq!(opt.importance("weight")?, [0.2f32, 1.8].map(f64::from)); // 1 : 9, with mean 1
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If no variable keeps an importance, for a gradient of another shape, type or device, and for one that is not finite; nothing
    /// was changed then.
    pub fn update_importance(&mut self, grads: &GradStore) -> Result<()> {
        let means = self.means(grads)?;
        match &mut self.engine {
            Engine::Whole(engine) => Ok(engine.update_importance(&self.operands, &means.own)?),
            Engine::Divided(parts) => parts.update_importance(&means.own),
        }
    }

    /// Runs the backward pass of `loss` and takes the importance from it, as [`RobustOptimizer::update_importance`].
    ///
    /// # Errors
    ///
    /// As [`RobustOptimizer::update_importance`]; for a loss that is no finite scalar; or the backward pass fails.
    pub fn backward_importance(&mut self, loss: &Tensor) -> Result<()> {
        let backward = || {
            loss_value(loss)?;
            Ok::<_, Error>(loss.backward()?)
        };
        let grads = or_refuse(self.communicator(), backward())?;
        self.update_importance(&grads)
    }

    /// Sets the importance of a parameter: a tensor of its shape with finite values of at least 0; gates are 0 or 1. With
    /// divided state all ranks call this, and the one that keeps it takes it.
    ///
    /// # Errors
    ///
    /// An unknown name, a parameter whose constraint keeps no importance, another number of elements, or a value outside its range.
    /// Nothing was changed then.
    pub fn set_importance(&mut self, name: &str, importance: &Tensor) -> Result<()> {
        let values = to_buffer(name, importance)?.to_f64();
        match &mut self.engine {
            Engine::Whole(engine) => Ok(engine.set_importance(name, &values)?),
            Engine::Divided(parts) => parts.set_importance(name, &values),
        }
    }

    /// The importance of a parameter, one value per element; zeros before it is given.
    ///
    /// # Errors
    ///
    /// An unknown name, a parameter whose constraint keeps no importance, one whose state another rank keeps, or the device fails.
    pub fn importance(&self, name: &str) -> Result<Vec<f64>> {
        match &self.engine {
            Engine::Whole(engine) => Ok(engine.importance(name)?),
            Engine::Divided(parts) => parts.importance(name),
        }
    }
}
