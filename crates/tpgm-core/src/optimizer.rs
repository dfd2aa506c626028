//! The optimizer: a rule and a constraint over a set of tensors.

use crate::backend::{Backend, Slot, StepReport, TensorIo};
use crate::constraint::{Constraint, PullWeights};
use crate::cpu::{self, Cpu};
use crate::element::Buffer;
use crate::engine::{Engine, EngineOptions, Needs};
use crate::error::{Error, Result};
use crate::params::ParamSet;
use crate::projector::Projector;
use crate::rule::Rule;
use crate::scalars::TensorScalars;
use crate::state::StateDict;
use crate::step::{StepOptions, StepSums};

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

    /// Runs `work` and takes back what it did to state: see [`Projector::preview`].
    ///
    /// ```
    /// # use tpgm_core::{AdamW, Constraint, Cpu, DType, Optimizer, ParamSet, StepOptions, TensorIo};
    /// # let set = ParamSet::builder().tensor("w", [2], DType::F32).build()?;
    /// # let mut optimizer = Optimizer::new(Cpu::new(), &set, AdamW::default(), Constraint::None)?;
    /// let (before, grad) = ([1.0f32, 2.0], [0.5f32, -0.5]);
    /// let (mut trial, mut weight) = (before, before);
    /// let options = StepOptions::default();
    /// optimizer.preview(|opt| opt.step(&mut [TensorIo::new(&mut trial[..]).grad(&grad[..])], &options))?;
    /// assert_eq!(optimizer.scalars()?[0].step, 0.0);
    /// optimizer.step(&mut [TensorIo::new(&mut weight[..]).grad(&grad[..])], &options)?;
    /// assert_eq!(weight, trial);
    /// # Ok::<(), tpgm_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `work`, or there is no memory.
    pub fn preview<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let saved = self.projector.engine.snapshot()?;
        let outcome = work(self);
        self.projector.engine.put_back(saved)?;
        outcome
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

    /// Takes the importance of every [`Pull`](crate::Pull) that keeps one from the gradients in `io`: of any loss, for example of a second
    /// backward pass. A tensor without a gradient keeps the importance that it has, and weights and anchors are not looked at. An
    /// importance does not depend on the scale of its gradient.
    ///
    /// Bytes per parameter (f32): 4 read to find the mean; 8 read and 4 written.
    ///
    /// # Errors
    ///
    /// [`Error::NoImportances`] if no tensor keeps one, wrong operands, or
    /// [`Error::NonFiniteGradient`]; nothing was changed then.
    pub fn update_importance(&mut self, io: &mut [TensorIo<'_, B>]) -> Result<()> {
        let engine = &mut self.projector.engine;
        if !engine.settings.iter().any(|settings| settings.constraint.importance().is_some()) {
            return Err(Error::NoImportances);
        }
        let (backend, job) = engine.job(io, Needs::Weights)?;
        backend.update_importance(job)
    }

    /// Sets the importance of a tensor: one value per element, finite and at least 0; gates are 0 or 1.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensor`], [`Error::NoImportance`], [`Error::LengthMismatch`], [`Error::InvalidImportance`], or the device
    /// fails. Nothing was changed then.
    pub fn set_importance(&mut self, tensor: &str, values: &[f64]) -> Result<()> {
        let (t, weights) = self.importance_of(tensor)?;
        let engine = &mut self.projector.engine;
        let spec = &engine.set.tensors()[t];
        let (expected, got) = (spec.numel(), values.len());
        if got != expected {
            let tensor = spec.name.clone();
            return Err(Error::LengthMismatch { tensor, what: "importance", expected, got });
        }
        type Holds = fn(f64) -> bool;
        let (requirement, holds): (&'static str, Holds) = match weights {
            PullWeights::Gate { .. } => ("0 or 1", |x| x == 0.0 || x == 1.0),
            _ => ("a finite number of at least 0", |x| x.is_finite() && x >= 0.0),
        };
        if let Some((index, &value)) = values.iter().enumerate().find(|(_, x)| !holds(**x)) {
            let tensor = spec.name.clone();
            return Err(Error::InvalidImportance { tensor, index, value, requirement });
        }
        let buffer = engine.backend.upload(&Buffer::from_f64(spec.dtype.compute(), values))?;
        let mut scalars = engine.scalars()?;
        scalars[t].initialized = 1.0;
        engine.scalars = engine.backend.upload_scalars(&scalars)?;
        engine.slots[t].put(Slot::Importance, buffer);
        Ok(())
    }

    /// The importance of a tensor, one value per element; zeros before it is given.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensor`], [`Error::NoImportance`], or the device fails.
    pub fn importance(&self, tensor: &str) -> Result<Vec<f64>> {
        let (t, _) = self.importance_of(tensor)?;
        let engine = &self.projector.engine;
        let slot = engine.slots[t].get(Slot::Importance).expect("laid out with the constraint");
        Ok(engine.backend.download(slot)?.to_f64())
    }

    /// Where a tensor is, and what kind of importance it keeps.
    fn importance_of(&self, tensor: &str) -> Result<(usize, PullWeights)> {
        let engine = &self.projector.engine;
        let t = engine.set.position(tensor)?;
        let constraint = &engine.settings[t].constraint;
        let missing = || Error::NoImportance { tensor: tensor.to_owned(), constraint: constraint.name() };
        Ok((t, constraint.importance().ok_or_else(missing)?))
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

    /// Sets what [`Optimizer::scalars`] returns, one per tensor.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`], or the device fails.
    pub fn put_scalars(&mut self, scalars: &[TensorScalars]) -> Result<()> {
        let engine = &mut self.projector.engine;
        let (expected, got) = (engine.set.len(), scalars.len());
        if got != expected {
            return Err(Error::CountMismatch { what: "scalars", expected, got });
        }
        engine.scalars = engine.backend.upload_scalars(scalars)?;
        Ok(())
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

impl Optimizer<Cpu> {
    /// The sum of the squares of every gradient in `io`, before [`StepOptions::grad_scale`], in set order; 0 for a tensor
    /// without one. Added up over the tensors of all [parts](ParamSet::part) of a set, in the order of that set, they give
    /// the bits of the global norm of a step on the whole: `sqrt(sum) * grad_scale`.
    ///
    /// Bytes read per parameter: the first column of the table in [`cpu`]. Nothing is written.
    ///
    /// # Errors
    ///
    /// Those of a step whose gradients are not finite, or wrong operands.
    pub fn grad_squares(&mut self, io: &mut [TensorIo<'_, Cpu>]) -> Result<Vec<f64>> {
        self.projector.idle("Optimizer::grad_squares")?;
        let (cpu, job) = self.projector.engine.job(io, Needs::Anchors)?;
        cpu.run(|| cpu::step::grad_squares(cpu, job))
    }

    /// What a step adds up over the gradients in `io` before it moves anything, before [`StepOptions::grad_scale`]: of every
    /// tensor, piece after piece; zeros without a gradient. Squares are always among them, products where the tensor's constraint
    /// asks for them. For tensors that are [rows](ParamSet::pieces) of larger ones: put
    /// together in their order, these are the pieces of the larger one if it was cut where a piece of its
    /// [`Plan`](crate::plan::Plan) ends.
    ///
    /// Bytes read per parameter: the first column of the table in [`cpu`]. Nothing is written.
    ///
    /// # Errors
    ///
    /// Those of a step whose gradients are not finite, or wrong operands.
    pub fn step_sums(&mut self, io: &mut [TensorIo<'_, Cpu>]) -> Result<Vec<Vec<StepSums>>> {
        self.projector.idle("Optimizer::step_sums")?;
        let (cpu, job) = self.projector.engine.job(io, Needs::Anchors)?;
        cpu.run(|| cpu::step::sums(cpu, job))
    }

    /// As [`Optimizer::step`], with sums of the tensors that have some: rows of a larger tensor, of which these are the
    /// [total](StepSums::total). Its rows then move as in a step of the whole under any constraint that looks at rows or elements
    /// alone once it has them: none, L2-SP, DiGraP, a fixed radius or FTP with MARS norms. Afterwards the larger tensor's
    /// [`Optimizer::scalars`] have the largest radius and norm, the smallest ratio, and the share of all rows that were pulled back; give
    /// them to [`Optimizer::put_scalars`]. Clipping by a global norm is the caller's, by [`StepOptions::grad_scale`].
    ///
    /// # Errors
    ///
    /// As [`Optimizer::step`]; [`Error::CountMismatch`] without an entry of `sums` per tensor;
    /// [`Error::InvalidOption`] for [`StepOptions::max_grad_norm`] where sums are given; [`Error::NonFiniteValue`] if their products
    /// are not finite. Nothing was changed then.
    pub fn step_with_sums(
        &mut self,
        io: &mut [TensorIo<'_, Cpu>],
        options: &StepOptions,
        sums: &[Option<StepSums>],
    ) -> Result<StepReport> {
        options.validate()?;
        self.projector.idle("Optimizer::step_with_sums")?;
        self.check_sums(options, sums)?;
        let (cpu, job) = self.projector.engine.job(io, Needs::Anchors)?;
        cpu.run(|| cpu::step::step(cpu, job, &self.rule, options, sums))
    }

    fn check_sums(&self, options: &StepOptions, sums: &[Option<StepSums>]) -> Result<()> {
        let tensors = self.set().tensors();
        let (expected, got) = (tensors.len(), sums.len());
        if got != expected {
            return Err(Error::CountMismatch { what: "sums", expected, got });
        }
        let given = || tensors.iter().zip(sums).filter_map(|(spec, sums)| Some((spec, sums.as_ref()?)));
        if let (Some(value), Some(_)) = (options.max_grad_norm, given().next()) {
            let (option, requirement) = ("StepOptions::max_grad_norm", "None with sums of larger tensors");
            return Err(Error::InvalidOption { option, value, requirement });
        }
        match given().find(|(_, sums)| !sums.products_are_finite()) {
            Some((spec, _)) => {
                let (tensor, what) = (spec.name.clone(), "product of gradient and displacement");
                Err(Error::NonFiniteValue { tensor, what })
            }
            None => Ok(()),
        }
    }
}
