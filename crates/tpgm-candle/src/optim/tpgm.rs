//! TPGM's trainer: radii learned on held-out data, for any optimizer.

use std::sync::Arc;

use candle_core::Tensor;
use tpgm_core::{ParamSet, Sgd, StateDict, TensorScalars, Tpgm as TpgmConfig};

#[cfg(doc)]
use super::RobustOptimizer;
use super::divided::{Engine, Parts, RadiusSteps, WholeRadii};
use super::error::{Error, Result};
use super::radii::Radii;
use crate::distributed::{Communicator, equalize, or_refuse};
use crate::engine::{Operands, Place, RadiusEngine, named};
use crate::params::{Param, Params};

/// Learns one radius per tensor on held-out data and projects (TPGM, arXiv 2303.10720), beside any optimizer.
///
/// A projection update works on the live weights: they are projected in place, the held-out loss and its gradient are
/// computed there, the radii take an Adam step, and at the end the projection of the remembered weights is written for
/// good. The weights before projection are remembered once (their size); there is no copy of the model and no second
/// graph.
///
/// The closure computes the loss with the model as it is. **Evaluation mode is its business**: dropout off, running
/// statistics of batch norm used and not updated.
///
/// ```
/// use candle_core::{Device, Var};
/// use candle_nn::{AdamW, Optimizer};
/// use tpgm_candle::{Every, Param, Params, Tpgm, TpgmConfig};
///
/// let weight = Var::new(&[[1.0f32, -2.0], [0.5, 0.25]], &Device::Cpu)?;
/// let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
/// let mut opt = AdamW::new_lr(vec![weight.clone()], 0.1)?;
/// let mut tpgm = Tpgm::new(&params, TpgmConfig::default())?;
/// let projection = Every::new(5);
/// for step in 0..10 {
///     opt.backward_step(&weight.sqr()?.sum_all()?)?;
///     if projection.is_due(step) {
///         let held_out_loss = tpgm.update(|| (weight.as_tensor() - 1.0)?.sqr()?.sum_all())?;
///         assert!(held_out_loss.is_finite());
///     }
/// }
/// assert!(tpgm.scalars()?[0].1.radius > 0.0);
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
///
/// # With `RobustOptimizer`
///
/// Constrain its tensors by [`TpgmConfig`] and take the trainer from it: [`RobustOptimizer::tpgm`]. Then steps between two
/// updates project with the same radii in the same pass, and half-precision weights share their masters. Beside a
/// `RobustOptimizer` without the constraint this type works as with any other optimizer, but **not for half-precision
/// weights with masters**: its projection does not reach the masters, and the next step would undo it.
pub struct Tpgm {
    set: ParamSet,
    operands: Operands,
    engine: Engine<dyn RadiusEngine>,
    config: TpgmConfig,
    params: Vec<Param>,
    communicator: Option<Arc<dyn Communicator>>,
}

impl Tpgm {
    /// Binds TPGM to `params`. Groups may change the norm and the radius learning rate, exclude tensors, or give them
    /// another constraint, which is then left alone here.
    ///
    /// # Errors
    ///
    /// An option outside its range; a pattern that matches nothing; two parameters that share memory
    /// ([`Error::SharedStorage`](crate::engine::Error::SharedStorage)); a device that projections cannot run on ([`Error::Device`](crate::engine::Error::Device)), or several devices
    /// ([`Error::Devices`](crate::engine::Error::Devices)).
    pub fn new(params: &Params, config: TpgmConfig) -> Result<Self> {
        let set = params.set()?;
        let params = params.all();
        let settings = set.settings(&Sgd::default().into(), &config.into())?;
        let operands = Operands::new(&params)?.with_anchors(&params, &settings)?;
        let engine = Engine::Whole(Place::of(&params, None)?.projector(&set, config)?);
        Ok(Self { set, operands, engine, config, params, communicator: None })
    }

    /// As [`Tpgm::new`], one of several trainers of the same model, which divide radii and remembered weights between them:
    /// see [`OptimizerBuilder::divide_state`](super::OptimizerBuilder::divide_state). Held-out gradients become their means
    /// over all ranks, on the rank that needs them, and the variables become those of rank 0. While an update runs, each rank
    /// keeps a copy of the other ranks' weights.
    ///
    /// # Errors
    ///
    /// As [`Tpgm::new`] and [`Tpgm::communicator`].
    pub fn divided(params: &Params, config: TpgmConfig, communicator: Arc<dyn Communicator>) -> Result<Self> {
        let prepare = || {
            let set = params.set()?;
            let params = params.all();
            let settings = set.settings(&Sgd::default().into(), &config.into())?;
            let (operands, place) = (Operands::new(&params)?, Place::of(&params, None)?);
            let engine = |part: &ParamSet, _: &Operands| Ok(place.clone().projector(part, config)?);
            let parts = Parts::new(communicator.clone(), &params, &set, &settings, None, engine)?;
            Ok::<_, Error>((
                params,
                Self {
                    set,
                    operands,
                    engine: Engine::Divided(Box::new(parts)),
                    config,
                    params: vec![],
                    communicator: None,
                },
            ))
        };
        let (params, this) = or_refuse(Some(&*communicator), prepare())?;
        equalize(&*communicator, &params, ("configuration of TPGM", &config))?;
        Ok(this)
    }

    /// Makes this trainer one of several of the same model: see [`distributed`](crate::distributed). Held-out gradients
    /// become their means over all ranks, so that all learn the same radii. The variables become those of rank 0.
    ///
    /// # Errors
    ///
    /// [`Error::Ranks`](crate::distributed::Error::Ranks), also if the anchors of two ranks differ; or this trainer is of
    /// [`Tpgm::divided`], which has a communicator.
    pub fn communicator(mut self, communicator: Arc<dyn Communicator>) -> Result<Self> {
        if matches!(self.engine, Engine::Divided(_)) {
            return Err(Error::Divided { call: "Tpgm::communicator" });
        }
        equalize(&*communicator, &self.params, ("configuration of TPGM", &self.config))?;
        self.communicator = Some(communicator);
        Ok(self)
    }

    /// Learns radii after training: `params` hold the fine-tuned weights, their anchors the pre-trained ones. Takes
    /// `iterations` updates of the radii, with the held-out loss that `loss` computes in iteration `i` (from 0), and
    /// leaves the weights projected.
    ///
    /// # Errors
    ///
    /// As [`Tpgm::new`] and [`Tpgm::update_n`].
    pub fn post_hoc(
        params: &Params,
        config: TpgmConfig,
        iterations: usize,
        loss: impl FnMut(usize) -> candle_core::Result<Tensor>,
    ) -> Result<PostHoc> {
        let mut tpgm = Self::new(params, config)?;
        let losses = tpgm.update_n(iterations, loss)?;
        Ok(PostHoc { losses, scalars: tpgm.scalars()? })
    }

    /// One projection update: see [`Radii::update`].
    ///
    /// # Errors
    ///
    /// As [`Radii::update_n`].
    pub fn update(&mut self, loss: impl FnOnce() -> candle_core::Result<Tensor>) -> Result<f64> {
        self.radii().update(loss)
    }

    /// A projection update of several iterations: see [`Radii::update_n`].
    ///
    /// # Errors
    ///
    /// As [`Radii::update_n`].
    pub fn update_n(
        &mut self,
        iterations: usize,
        loss: impl FnMut(usize) -> candle_core::Result<Tensor>,
    ) -> Result<Vec<f64>> {
        self.radii().update_n(iterations, loss)
    }

    /// Projects with the current radii: see [`Radii::project`].
    ///
    /// # Errors
    ///
    /// As [`Radii::project`].
    pub fn project(&mut self) -> Result<()> {
        self.radii().project()
    }

    /// Radii and telemetry of every parameter, sorted by name; of [`Tpgm::divided`] those that this rank keeps.
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

    /// What the trainer was made with.
    pub fn config(&self) -> &TpgmConfig {
        &self.config
    }

    /// Copies the radii and their Adam state out. Keys are `tensor/slot`. Of [`Tpgm::divided`], this rank's part.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn state(&self) -> Result<StateDict> {
        match &self.engine {
            Engine::Whole(engine) => Ok(engine.state()?),
            Engine::Divided(parts) => parts.state(),
        }
    }

    /// Puts state back that [`Tpgm::state`] copied out. [`Tpgm::divided`] takes its part of that of all tensors.
    ///
    /// # Errors
    ///
    /// A missing, unexpected or misshapen slot; the trainer is then unchanged.
    pub fn load_state(&mut self, state: &StateDict) -> Result<()> {
        match &mut self.engine {
            Engine::Whole(engine) => Ok(engine.load_state(state)?),
            Engine::Divided(parts) => parts.load_state(state),
        }
    }

    fn radii(&mut self) -> Radii<'_> {
        let (set, communicator) = (&self.set, self.communicator.as_deref());
        match &mut self.engine {
            Engine::Whole(engine) => {
                Radii::whole(&self.operands, WholeRadii { set, engine: &mut **engine, communicator })
            }
            Engine::Divided(parts) => Radii::divided(&self.operands, &mut **parts),
        }
    }
}

/// Radii and losses of [`Tpgm::post_hoc`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PostHoc {
    /// Held-out loss at the projected weights, one per iteration.
    pub losses: Vec<f64>,
    /// Radius, norm, ratio and more of every parameter, sorted by name.
    pub scalars: Vec<(String, TensorScalars)>,
}

/// Every `n`-th step, for projection updates, evaluations or checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Every(u64);

impl Every {
    /// Every `n`-th; 0 is never.
    pub fn new(n: u64) -> Self {
        Self(n)
    }

    /// True at step `n - 1`, `2 n - 1`, ... of steps counted from 0: after every `n`-th step.
    pub fn is_due(self, step: u64) -> bool {
        self.0 > 0 && (step + 1).is_multiple_of(self.0)
    }
}
