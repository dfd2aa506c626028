//! The optimizer: a rule and a constraint over a set of tensors.

use crate::backend::{Backend, StepReport, TensorIo};
use crate::constraint::Constraint;
use crate::engine::{Engine, EngineOptions, Needs};
use crate::error::Result;
use crate::params::ParamSet;
use crate::projector::Projector;
use crate::rule::Rule;
use crate::scalars::TensorScalars;
use crate::state::StateDict;
use crate::step::StepOptions;

/// A rule and a constraint over a set of tensors, with all their state.
///
/// Weights, gradients and anchors stay the caller's: they are borrowed for the time of a step, in set order. A tensor
/// without a gradient is skipped, and takes up its own step count when it gets one.
///
/// ```
/// use tpgm_core::{AdamW, Cpu, DType, Ftp, Optimizer, ParamSet, StepOptions, TensorIo};
///
/// let set = ParamSet::builder().tensor("w", [2, 2], DType::F32).tensor("b", [2], DType::F32).build()?;
/// let anchors = [vec![1.0f32, -2.0, 0.5, 0.25], vec![0.1, -0.2]];
/// let mut weights = anchors.clone();
/// let mut optimizer = Optimizer::new(Cpu::new(), &set, AdamW::default().lr(1e-2), Ftp::default())?;
/// for _ in 0..3 {
///     let grads = weights.clone(); // of the loss |W|^2 / 2
///     let mut io: Vec<_> = weights
///         .iter_mut()
///         .zip(&grads)
///         .zip(&anchors)
///         .map(|((w, g), a)| TensorIo::new(w).grad(g).anchor(a))
///         .collect();
///     optimizer.step(&mut io, &StepOptions::default())?;
/// }
/// assert!(optimizer.scalars()?[0].radius > 0.0);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub struct Optimizer<B: Backend> {
    rule: Rule,
    // The projector owns the engine, so that its radii and the step's are the same ones.
    projector: Projector<B>,
}

impl<B: Backend> Optimizer<B> {
    /// Binds a rule and a constraint to a set. State starts at zero.
    ///
    /// # Errors
    ///
    /// An option outside its range, or no memory on the device.
    pub fn new(
        backend: B,
        set: &ParamSet,
        rule: impl Into<Rule>,
        constraint: impl Into<Constraint>,
    ) -> Result<Self> {
        Self::with_options(backend, set, rule, constraint, EngineOptions::default())
    }

    /// As [`Optimizer::new`], with choices about memory.
    ///
    /// # Errors
    ///
    /// As [`Optimizer::new`].
    pub fn with_options(
        backend: B,
        set: &ParamSet,
        rule: impl Into<Rule>,
        constraint: impl Into<Constraint>,
        options: EngineOptions,
    ) -> Result<Self> {
        let rule = rule.into();
        let settings = set.settings(&rule, &constraint.into())?;
        let engine = Engine::new(backend, set, Some(&rule), settings, options)?;
        Ok(Self { rule, projector: Projector::from_engine(engine) })
    }

    /// Takes one step. `io` has one entry per tensor, in set order.
    ///
    /// Bytes per parameter (f32 weights): see [`cpu`](crate::cpu) for each method.
    ///
    /// # Errors
    ///
    /// Wrong number, length or type of operands, a missing anchor, an option outside its range, or
    /// [`Error::NonFiniteGradient`](crate::Error::NonFiniteGradient). Weights and state are then untouched.
    pub fn step(&mut self, io: &mut [TensorIo<'_, B>], options: &StepOptions) -> Result<StepReport> {
        options.validate()?;
        self.projector.idle("Optimizer::step")?;
        let (backend, job) = self.projector.engine.job(io, Needs::Anchors)?;
        backend.step(job, &self.rule, options)
    }

    /// Brings operands and options of a step to the device without taking it. A step that was captured in a CUDA graph
    /// replays with what was prepared last: call this between replays to change the learning rate or the gradients.
    /// Does nothing on the CPU.
    ///
    /// # Errors
    ///
    /// As [`Optimizer::step`], but for the gradients, which nobody looks at.
    pub fn prepare_step(&mut self, io: &mut [TensorIo<'_, B>], options: &StepOptions) -> Result<()> {
        options.validate()?;
        self.projector.idle("Optimizer::prepare_step")?;
        let (backend, job) = self.projector.engine.job(io, Needs::Anchors)?;
        backend.prepare_step(job, &self.rule, options)
    }

    /// Waits for all steps taken so far and says what became of the last one: for backends that report late, and for steps that
    /// were captured in a CUDA graph, whose replays nobody is told of otherwise. Asked again, it gives the same answer. Of
    /// several replays in a row only the last one is known; a refused one does not advance the step counts in
    /// [`Optimizer::scalars`]. Backends that report at once (the CPU) have nothing to say.
    ///
    /// # Errors
    ///
    /// That of the last step, as [`Optimizer::step`] would have returned it; before, those of earlier steps that no call has
    /// returned yet, one each time. Or the device fails.
    pub fn outcome(&mut self) -> Result<StepReport> {
        let engine = &mut self.projector.engine;
        engine.backend.outcome(&engine.set, &mut engine.workspace)
    }

    /// The rule.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The set.
    pub fn set(&self) -> &ParamSet {
        &self.projector.engine.set
    }

    /// The projector that shares this optimizer's radii and masters, if TPGM constrains any tensor.
    pub fn projector_mut(&mut self) -> Option<&mut Projector<B>> {
        let mut settings = self.projector.engine.settings.iter();
        settings
            .any(|settings| matches!(settings.constraint, Constraint::Tpgm(_)))
            .then_some(&mut self.projector)
    }

    /// Radii and telemetry of every tensor, in set order.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn scalars(&self) -> Result<Vec<TensorScalars>> {
        self.projector.engine.scalars()
    }

    /// Norms of the displacement that the last step measured before pulling back: one per row (MARS) or one (L2); zeros
    /// if the tensor's constraint measures none.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensor`](crate::Error::UnknownTensor), or the device fails.
    pub fn norms(&self, tensor: &str) -> Result<Vec<f64>> {
        self.projector.norms(tensor)
    }

    /// Copies all state out.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfOrder`](crate::Error::OutOfOrder) during a projection update, or the device fails.
    pub fn state(&self) -> Result<StateDict> {
        self.projector.state()
    }

    /// Puts state back that [`Optimizer::state`] copied out.
    ///
    /// # Errors
    ///
    /// A missing, unexpected or misshapen slot; the optimizer is then unchanged.
    pub fn load_state(&mut self, state: &StateDict) -> Result<()> {
        self.projector.load_state(state)
    }
}
