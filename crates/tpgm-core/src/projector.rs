//! TPGM's learned radii, for any optimizer.

use crate::backend::{Backend, TensorIo, Write};
use crate::constraint::Tpgm;
use crate::engine::{Engine, EngineOptions, Needs};
use crate::error::{Error, Result};
use crate::params::ParamSet;
use crate::rule::{Rule, Sgd};
use crate::scalars::TensorScalars;
use crate::state::StateDict;

/// Learns one radius per tensor on held-out data and projects (TPGM, arXiv 2303.10720, section 3.3).
///
/// Works beside any optimizer, and after training between two checkpoints. One projection update is
///
/// 1. [`begin`](Projector::begin): remember the weights, measure their displacement;
/// 2. [`apply`](Projector::apply): write the projected weights; the caller computes the gradient of the held-out loss at
///    them (evaluation mode: running statistics, no dropout);
/// 3. [`update`](Projector::update): gradient of every radius, one Adam step; repeat 2 and 3 as often as wanted;
/// 4. [`finish`](Projector::finish): write the projection for good, or [`abort`](Projector::abort): write the remembered
///    weights back.
///
/// No copy of the model and no second graph: the radius gradient is one reduction over the held-out gradient and the
/// remembered displacement, `sum over rows with 0 < ratio < 1 of <g, D> / (norm + 1e-8)`.
///
/// The weights must not be changed by others between `begin` and `finish`.
///
/// ```
/// use tpgm_core::{Cpu, DType, ParamSet, Projector, TensorIo, Tpgm};
///
/// let set = ParamSet::builder().tensor("w", [2, 2], DType::F32).build()?;
/// let anchor = vec![1.0f32, 2.0, 3.0, 4.0];
/// let mut weight = vec![1.3f32, 1.9, 3.2, 4.6];
/// let held_out_grad = vec![1.0f32, -2.0, 0.5, -1.5];
///
/// let mut projector = Projector::new(Cpu::new(), &set, Tpgm::default())?;
/// projector.begin(&mut [TensorIo::new(&mut weight).anchor(&anchor)])?;
/// for _ in 0..2 {
///     projector.apply(&mut [TensorIo::new(&mut weight).anchor(&anchor)])?;
///     projector.update(&mut [TensorIo::new(&mut weight).anchor(&anchor).grad(&held_out_grad)])?;
/// }
/// projector.finish(&mut [TensorIo::new(&mut weight).anchor(&anchor)])?;
/// assert!((weight[0] - 1.135).abs() < 1e-6);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub struct Projector<B: Backend> {
    pub(crate) engine: Engine<B>,
    session: Session,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    Idle,
    Begun,
    Applied,
}

impl<B: Backend> Projector<B> {
    /// Binds TPGM to a set. Groups may change the norm and the radius learning rate, exclude tensors, or give them another
    /// constraint, which the projector then leaves alone.
    ///
    /// # Errors
    ///
    /// An option outside its range, or no memory on the device.
    pub fn new(backend: B, set: &ParamSet, tpgm: Tpgm) -> Result<Self> {
        Self::with_options(backend, set, tpgm, EngineOptions::default())
    }

    /// As [`Projector::new`], with choices about memory.
    ///
    /// # Errors
    ///
    /// As [`Projector::new`].
    pub fn with_options(backend: B, set: &ParamSet, tpgm: Tpgm, options: EngineOptions) -> Result<Self> {
        // No rule ever runs here; one is named only because groups may relate to its learning rate.
        let settings = set.settings(&Rule::Sgd(Sgd::default()), &tpgm.into())?;
        Ok(Self::from_engine(Engine::new(backend, set, None, settings, options)?))
    }

    pub(crate) fn from_engine(engine: Engine<B>) -> Self {
        Self { engine, session: Session::Idle }
    }

    /// Projects the weights with the current radii, in place. The first projection of a tensor, here or in
    /// [`begin`](Projector::begin), sets its radius to half of its smallest norm.
    ///
    /// # Errors
    ///
    /// Wrong operands, or called during a projection update.
    pub fn project(&mut self, io: &mut [TensorIo<'_, B>]) -> Result<()> {
        self.idle("Projector::project")?;
        let (backend, job) = self.engine.job(io, Needs::Anchors)?;
        backend.project(job)
    }

    /// Starts a projection update: remembers the weights and measures their displacement.
    ///
    /// # Errors
    ///
    /// Wrong operands, or an update is running already.
    pub fn begin(&mut self, io: &mut [TensorIo<'_, B>]) -> Result<()> {
        self.idle("Projector::begin")?;
        let (backend, job) = self.engine.job(io, Needs::Anchors)?;
        backend.remember(job)?;
        self.session = Session::Begun;
        Ok(())
    }

    /// Clips the radii to `[1e-8, largest norm]` and writes the projection of the remembered weights.
    ///
    /// # Errors
    ///
    /// Wrong operands, or no update is running.
    pub fn apply(&mut self, io: &mut [TensorIo<'_, B>]) -> Result<()> {
        self.running("Projector::apply")?;
        let (backend, job) = self.engine.job(io, Needs::Anchors)?;
        backend.write(job, Write::Trial)?;
        self.session = Session::Applied;
        Ok(())
    }

    /// One Adam step on every radius, from the gradients in `io`: of the held-out loss, at the weights that
    /// [`apply`](Projector::apply) wrote. Further calls without another `apply` in between are refused.
    ///
    /// # Errors
    ///
    /// Wrong operands, a missing gradient, `apply` was not called, or
    /// [`Error::NonFiniteGradient`]; no radius has changed then.
    pub fn update(&mut self, io: &mut [TensorIo<'_, B>]) -> Result<()> {
        if self.session != Session::Applied {
            return Err(Error::OutOfOrder {
                call: "Projector::update",
                problem: "without `apply` before it",
            });
        }
        let (backend, job) = self.engine.job(io, Needs::Gradients)?;
        backend.update_radii(job)?;
        self.session = Session::Begun;
        Ok(())
    }

    /// Ends the projection update: clips the radii and writes the projection of the remembered weights for good.
    ///
    /// # Errors
    ///
    /// Wrong operands, or no update is running.
    pub fn finish(&mut self, io: &mut [TensorIo<'_, B>]) -> Result<()> {
        self.end(io, "Projector::finish", Write::Projection)
    }

    /// Ends the projection update by writing the remembered weights back. Radii keep what they learned.
    ///
    /// # Errors
    ///
    /// Wrong operands, or no update is running.
    pub fn abort(&mut self, io: &mut [TensorIo<'_, B>]) -> Result<()> {
        self.end(io, "Projector::abort", Write::Remembered)
    }

    fn end(&mut self, io: &mut [TensorIo<'_, B>], call: &'static str, write: Write) -> Result<()> {
        self.running(call)?;
        let (backend, job) = self.engine.job(io, Needs::Anchors)?;
        backend.write(job, write)?;
        self.session = Session::Idle;
        Ok(())
    }

    /// Runs `work` and takes back what it did to state. Weights stay as it left them: put the earlier ones back, and the
    /// same calls give the same bits. For those who must know what a call will write before they let it happen.
    ///
    /// Takes memory for a copy of all state while it runs.
    ///
    /// # Errors
    ///
    /// Those of `work`, or there is no memory.
    pub fn preview<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let (saved, session) = (self.engine.snapshot()?, self.session);
        let outcome = work(self);
        self.session = session;
        self.engine.put_back(saved)?;
        outcome
    }

    /// The set.
    pub fn set(&self) -> &ParamSet {
        &self.engine.set
    }

    /// Radii and telemetry of every tensor, in set order.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn scalars(&self) -> Result<Vec<TensorScalars>> {
        self.engine.scalars()
    }

    /// Norms of the displacement that was measured last: one per row (MARS) or one (L2).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTensor`], or the device fails.
    pub fn norms(&self, tensor: &str) -> Result<Vec<f64>> {
        self.engine.norms(self.engine.set.position(tensor)?)
    }

    /// Copies all state out.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfOrder`] during a projection update: finish or abort it first. Or the device fails.
    pub fn state(&self) -> Result<StateDict> {
        self.idle("state")?;
        self.engine.state()
    }

    /// Puts state back that [`Projector::state`] copied out.
    ///
    /// # Errors
    ///
    /// A missing, unexpected or misshapen slot, or an update is running; the projector is then unchanged.
    pub fn load_state(&mut self, state: &StateDict) -> Result<()> {
        self.idle("load_state")?;
        self.engine.load_state(state)
    }

    pub(crate) fn idle(&self, call: &'static str) -> Result<()> {
        match self.session {
            Session::Idle => Ok(()),
            _ => Err(Error::OutOfOrder {
                call,
                problem: "during a projection update; `finish` or `abort` it first",
            }),
        }
    }

    fn running(&self, call: &'static str) -> Result<()> {
        match self.session {
            Session::Idle => Err(Error::OutOfOrder { call, problem: "without `begin` before it" }),
            _ => Ok(()),
        }
    }
}
