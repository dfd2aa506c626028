//! The optimizer: every rule and constraint of `tpgm-core` on candle's variables.

mod accumulate;
mod audit;
mod builder;
mod config;
mod divided;
mod drop_in;
mod ema;
mod error;
mod importance;
mod position;
mod radii;
mod schedule;
mod sparse;
mod state;
mod tpgm;
mod transform;

use std::sync::Arc;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use tpgm_core::{Constraint, ParamSet, Projection, Rule, StepOptions, TensorScalars};

use self::accumulate::Accumulator;
use self::audit::GradientAudit;
use self::divided::{Engine, Means, WholeRadii};
use self::position::Positions;
use crate::audit::loss_value;
use crate::distributed::{Communicator, average, or_refuse};
use crate::engine::{Operands, StepEngine, named};
use crate::params::Params;

pub use self::audit::AuditPolicy;
pub use self::builder::OptimizerBuilder;
pub use self::config::OptimizerConfig;
pub use self::ema::{Averaged, Ema};
pub use self::error::{Error, Result};
pub use self::position::PositionProblem;
pub use self::radii::Radii;
pub use self::schedule::{Anneal, Schedule};
pub use self::sparse::{SaftOptimizer, SaftSelection, selekt};
pub use self::tpgm::{Every, PostHoc, Tpgm};

/// What a call of [`RobustOptimizer::step`] or [`RobustOptimizer::backward_step`] did.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StepInfo {
    /// The loss as it was given, of this rank and before the loss scale; `None` from [`RobustOptimizer::step`].
    pub loss: Option<f64>,
    /// False while gradients are only being accumulated.
    pub taken: bool,
    /// Global norm of the (unscaled) gradients before clipping; measured only when a step is taken with clipping on, and on
    /// a GPU only if the host waits for it.
    pub grad_norm: Option<f64>,
}

/// A rule ([`AdamW`](crate::AdamW), [`Sgd`](crate::Sgd)) under a constraint ([`Ftp`](crate::Ftp),
/// [`TpgmConfig`](crate::TpgmConfig), ...) over the parameters of a model.
///
/// Weights are changed in place and in one pass over all tensors; neither they nor gradients are copied, and anchors are
/// read where they are. Steps happen whole or not at all: a NaN loss, a missing or non-finite gradient or a wrong shape is
/// an error that names the tensor, and has changed nothing.
///
/// On a GPU a step is queued, and the error of one that was refused is returned by a later call, unless the optimizer is
/// made otherwise.
///
/// On candle's default CUDA device (`Device::new_cuda`) every thread queues its work on a stream of its own, and one stream
/// does not wait for another. There, make the model and the optimizer, run backward passes and take steps on one thread; a
/// step on another thread than the one that made the optimizer is an error. `Device::new_cuda_with_stream` has one stream for
/// all threads, and cudarc keeps events with its tensors for other streams that a program may make: a step then tells the
/// driver five times per variable and twice per gradient to wait or to be waited for, which takes the host time. candle's own
/// operations do the same for their operands.
///
/// Nothing else may use the model while a step runs: a thread that evaluates it meanwhile can wait for the step forever,
/// and the step for it.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use tpgm_candle::{AdamW, Ftp, Param, Params, RobustOptimizer};
///
/// let weight = Var::new(&[[1.0f32, -2.0], [0.5, 0.25]], &Device::Cpu)?;
/// let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
/// let mut opt = RobustOptimizer::new(&params, AdamW::default().lr(1e-2), Ftp::default())?;
/// for _ in 0..3 {
///     opt.backward_step(&weight.sqr()?.sum_all()?)?;
/// }
/// let (name, scalars) = &opt.scalars()?[0];
/// assert_eq!(name, "weight");
/// assert!(scalars.radius > 0.0);
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
///
/// # Accumulation
///
/// With [`OptimizerBuilder::accumulate`]`(n)` only every `n`-th call takes a step, with the mean of the `n` gradients; the
/// others add theirs to memory of their own (f32; 4 bytes per parameter). A call that fails adds nothing. State saved
/// between two steps includes the sums.
pub struct RobustOptimizer {
    set: ParamSet,
    operands: Operands,
    engine: Engine<dyn StepEngine>,
    config: OptimizerConfig,
    lr: f64,
    projection: Projection,
    accumulator: Accumulator,
    audit: GradientAudit,
    communicator: Option<Arc<dyn Communicator>>,
    /// Of an optimizer that does not know the names of its variables.
    positions: Option<Positions>,
    /// Steps taken since the start of training, those before a resume included.
    steps: u64,
}

impl RobustOptimizer {
    /// A rule under a constraint over all of `params`, with default options. State starts at zero.
    ///
    /// # Errors
    ///
    /// As [`OptimizerBuilder::build`].
    pub fn new(params: &Params, rule: impl Into<Rule>, constraint: impl Into<Constraint>) -> Result<Self> {
        Self::builder(params).rule(rule).constraint(constraint).build()
    }

    /// Starts an optimizer with options.
    pub fn builder(params: &Params) -> OptimizerBuilder {
        OptimizerBuilder::new(params)
    }

    /// Runs the backward pass of `loss` and takes a step, or accumulates.
    ///
    /// # Errors
    ///
    /// [`Error::LossShape`](crate::audit::Error::LossShape), [`Error::NonFiniteLoss`](crate::audit::Error::NonFiniteLoss), the backward pass fails, or as [`RobustOptimizer::step`]. Nothing
    /// was changed then.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<StepInfo> {
        let (value, grads) = or_refuse(self.communicator(), self.backward(loss))?;
        let info = self.step(&grads)?;
        Ok(StepInfo { loss: Some(value), ..info })
    }

    fn backward(&self, loss: &Tensor) -> Result<(f64, GradStore)> {
        let value = loss_value(loss)?;
        let grads = match self.config.loss_scale {
            1.0 => loss.backward()?,
            scale => (loss * scale)?.backward()?,
        };
        Ok((value, grads))
    }

    /// Takes a step with gradients of a loss (multiplied by the loss scale, if there is one), or accumulates them.
    ///
    /// A variable without a gradient is an error at the first step (see [`AuditPolicy`]); later it is left alone, and its
    /// own step count with it. With a communicator, the gradients in `grads` become their means over all ranks; with divided
    /// state those of other ranks' tensors may hold anything afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::NoGradient`](crate::audit::Error::NoGradient); a gradient of another shape, type or device; a non-finite gradient; a learning rate outside
    /// its range; [`Error::Ranks`](crate::distributed::Error::Ranks). Nothing was changed then. If only the sum of accumulated gradients is not finite, the batches since the
    /// last step are forgotten.
    pub fn step(&mut self, grads: &GradStore) -> Result<StepInfo> {
        let means = self.means(grads)?;
        self.step_with(means)
    }

    /// Gradients of all variables; with a communicator their means over all ranks, where they are needed.
    fn means(&self, grads: &GradStore) -> Result<Means> {
        let grads = self.of_vars(grads);
        match (&self.engine, self.communicator()) {
            (Engine::Divided(parts), _) => parts.reduce(&self.operands, grads),
            (Engine::Whole(_), Some(communicator)) => {
                Ok(Means::new(average(communicator, &self.operands, grads)?))
            }
            (Engine::Whole(_), None) => Ok(Means::new(grads)),
        }
    }

    fn of_vars(&self, grads: &GradStore) -> Vec<Option<Tensor>> {
        self.operands.vars().map(|(_, var)| grads.get(var).cloned()).collect()
    }

    fn communicator(&self) -> Option<&dyn Communicator> {
        self.communicator.as_deref()
    }

    fn step_with(&mut self, means: Means) -> Result<StepInfo> {
        let Means { own, present, spare } = means;
        let of = self.config.accumulate;
        let due = self.accumulator.batches() + 1 >= of;
        if due && self.steps == 0 {
            let earlier = self.accumulator.filled();
            let got = present.iter().zip(earlier).map(|(present, earlier)| earlier || *present);
            let got = self.engine.by_tensor(got.collect());
            self.audit.check(&self.operands, got.into_iter())?;
        }
        if of == 1 {
            return self.take(&own, &present, spare);
        }
        let units = self.engine.units(&self.operands);
        let grads = units.gradients(&own)?;
        if self.config.gradients == tpgm_core::Gradients::Check {
            self.engine.agreed(accumulate::check_finite(units, &grads))?;
        }
        self.accumulator.add(units, &grads, &present)?;
        if !due {
            return Ok(StepInfo { loss: None, taken: false, grad_norm: None });
        }
        drop(grads);
        let sums = self.accumulator.sums();
        // Which other ranks' tensors got a gradient before this batch is not known after a resume.
        let info = self.take(&sums, &vec![true; present.len()], spare);
        self.accumulator.clear();
        info
    }

    /// A step of the whole set, or of this rank's part of it, with a gradient per unit. `moved` and `spare` are for other ranks'
    /// blocks: whether a step changes them, and memory for their weights.
    fn take(
        &mut self,
        grads: &[Option<Tensor>],
        moved: &[bool],
        spare: Vec<Option<Tensor>>,
    ) -> Result<StepInfo> {
        let options = StepOptions {
            lr: Some(self.lr),
            grad_scale: 1.0 / (self.config.loss_scale * self.config.accumulate as f64),
            max_grad_norm: self.config.max_grad_norm,
            projection: self.projection,
            gradients: self.config.gradients,
        };
        let report = match &mut self.engine {
            Engine::Whole(engine) => engine.step(&self.operands, grads, &options, &[])?,
            Engine::Divided(parts) => parts.step(grads, moved, spare, &options)?,
        };
        self.steps += 1;
        Ok(StepInfo { loss: None, taken: true, grad_norm: report.grad_norm })
    }

    /// Learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.lr
    }

    /// Sets the learning rate of the steps that follow; groups with their own are scaled along. A step refuses a value
    /// that is negative or not finite.
    pub fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// Whether the steps that follow end with TPGM's projection. [`Projection::Defer`] before a step after which the
    /// radii are updated: the update then sees the weights as the rule left them, and projects.
    pub fn set_projection(&mut self, projection: Projection) {
        self.projection = projection;
    }

    /// TPGM's trainer over the radii and masters of this optimizer. Typical use, when an update is due:
    ///
    /// ```no_run
    /// # use tpgm_candle::{Projection, RobustOptimizer};
    /// # fn example(opt: &mut RobustOptimizer, loss: &candle_core::Tensor, held_out_loss: impl Fn() -> candle_core::Result<candle_core::Tensor>) -> tpgm_candle::Result<()> {
    /// opt.set_projection(Projection::Defer); // the update projects
    /// opt.backward_step(loss)?;
    /// opt.tpgm()?.update(held_out_loss)?;
    /// opt.set_projection(Projection::Apply); // steps in between do
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoRadii`] if TPGM constrains no tensor.
    pub fn tpgm(&mut self) -> Result<Radii<'_>> {
        let (set, communicator) = (&self.set, self.communicator.as_deref());
        match &mut self.engine {
            Engine::Whole(engine) => {
                let engine = engine.radii().ok_or(Error::NoRadii)?;
                Ok(Radii::whole(&self.operands, WholeRadii { set, engine, communicator }))
            }
            Engine::Divided(parts) if parts.learns() => Ok(Radii::divided(&self.operands, &mut **parts)),
            Engine::Divided(_) => Err(Error::NoRadii),
        }
    }

    /// Steps taken, those before a resume included. Accumulated batches count only with their step.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Batches accumulated since the last step.
    pub fn pending_batches(&self) -> usize {
        self.accumulator.batches()
    }

    /// Names, shapes and groups of the parameters.
    pub fn set(&self) -> &ParamSet {
        &self.set
    }

    /// What this optimizer was made with.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Whether this rank keeps the state of a parameter: with [`OptimizerBuilder::divide_state`] one rank does, or, of one that is
    /// cut by rows, every rank that keeps some of them; without it all.
    ///
    /// # Errors
    ///
    /// An unknown name.
    pub fn holds(&self, name: &str) -> Result<bool> {
        Ok(self.engine.holds_some_of(self.set.position(name)?))
    }

    /// Radii and telemetry of every parameter whose state is here ([`RobustOptimizer::holds`]), sorted by name.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn scalars(&self) -> Result<Vec<(String, TensorScalars)>> {
        match &self.engine {
            Engine::Whole(engine) => Ok(named(&self.set, engine.scalars()?)),
            Engine::Divided(parts) => parts.scalars(),
        }
    }

    /// Norms of the displacement that the last step measured before pulling back: one per row (MARS) or one (L2); zeros
    /// if the parameter's constraint measures none. Of a parameter that is cut by rows, those of the rows that are here.
    ///
    /// # Errors
    ///
    /// An unknown name, one whose state another rank keeps, or the device fails.
    pub fn norms(&self, name: &str) -> Result<Vec<f64>> {
        match &self.engine {
            Engine::Whole(engine) => Ok(engine.norms(name)?),
            Engine::Divided(parts) => parts.norms(name),
        }
    }
}
