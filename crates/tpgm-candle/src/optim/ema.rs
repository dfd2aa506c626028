//! A moving average of the live weights.

use std::sync::Arc;

use candle_core::Tensor;
use tpgm_core::{AdamW, Constraint, ParamSet, StateDict};

use super::builder::check;
use super::divided::{Engine, Parts};
use super::error::{Error, Result};
use crate::distributed::{Communicator, or_refuse};
use crate::engine::{EmaEngine, Operands, Place};
use crate::params::Params;

/// Name of an average in saved state, after the tensor's name and a slash.
const SLOT: &str = "ema";

/// An exponential moving average of a model's parameters: `average = decay * average + (1 - decay) * weight`, kept in f32
/// (f64 for f64 parameters).
///
/// ```
/// use candle_core::{Device, Var};
/// use tpgm_candle::{Ema, Param, Params};
///
/// let weight = Var::new(&[1.0f32, 2.0], &Device::Cpu)?;
/// let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
/// let mut ema = Ema::new(&params, 0.5)?;
/// weight.set(&weight.affine(1.0, 2.0)?)?; // a training step: 3, 4
/// ema.update()?;
/// let averaged = ema.apply()?; // the model now holds the average, for an evaluation or to be saved
/// assert_eq!(weight.to_vec1::<f32>()?, [2.0, 3.0]);
/// averaged.restore()?;
/// assert_eq!(weight.to_vec1::<f32>()?, [3.0, 4.0]);
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
pub struct Ema {
    set: ParamSet,
    operands: Operands,
    engine: Engine<dyn EmaEngine>,
    decay: f64,
}

impl Ema {
    /// Starts the average at what `params` hold now. `decay` is in `[0, 1]`; 0.999 to 0.9999 is usual.
    ///
    /// # Errors
    ///
    /// `decay` outside its range; two parameters that share memory; a device that averages cannot be taken on.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        check_decay(decay)?;
        let set = params.set()?;
        let params = params.all();
        let operands = Operands::new(&params)?;
        let engine = Engine::Whole(Place::of(&params, None)?.ema(&set, &operands)?);
        Ok(Self { set, operands, engine, decay })
    }

    /// As [`Ema::new`], of one of several ranks with the same weights, which divide the averages between them: see
    /// [`OptimizerBuilder::divide_state`](super::OptimizerBuilder::divide_state). All ranks make the same calls.
    /// [`Ema::update`] sends nothing, [`Ema::apply`] the averages, as weights.
    ///
    /// # Errors
    ///
    /// As [`Ema::new`], or [`Error::Ranks`](crate::distributed::Error::Ranks).
    pub fn divided(params: &Params, decay: f64, communicator: Arc<dyn Communicator>) -> Result<Self> {
        let prepare = || {
            check_decay(decay)?;
            let set = params.set()?;
            let params = params.all();
            let settings = set.settings(&AdamW::default().into(), &Constraint::None)?;
            let (operands, place) = (Operands::new(&params)?, Place::of(&params, None)?);
            let engine = |part: &ParamSet, operands: &Operands| Ok(place.clone().ema(part, operands)?);
            let parts = Parts::new(communicator.clone(), &params, &set, &settings, None, engine)?;
            Ok::<_, Error>(Self { set, operands, engine: Engine::Divided(Box::new(parts)), decay })
        };
        let this = or_refuse(Some(&*communicator), prepare())?;
        communicator.barrier()?;
        Ok(this)
    }

    /// Takes the weights into the average. Reads 8 and writes 4 bytes per f32 parameter.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn update(&mut self) -> Result<()> {
        match &mut self.engine {
            Engine::Whole(engine) => Ok(engine.update(&self.operands, self.decay)?),
            Engine::Divided(parts) => parts.each(|engine, operands| Ok(engine.update(operands, self.decay)?)),
        }
    }

    /// The decay.
    pub fn decay(&self) -> f64 {
        self.decay
    }

    /// Changes the decay, for example for a warm-up.
    ///
    /// # Errors
    ///
    /// A value outside `[0, 1]`.
    pub fn set_decay(&mut self, decay: f64) -> Result<()> {
        check_decay(decay)?;
        self.decay = decay;
        Ok(())
    }

    /// Writes the average into the model, rounded to its element types, until the guard is restored or dropped. The live
    /// weights are kept meanwhile, in memory of their size. All of this stays on the weights' device.
    ///
    /// Take no optimizer step before they are back.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn apply(&mut self) -> Result<Averaged<'_>> {
        let live = self.operands.vars().map(|(_, var)| var.copy()).collect::<candle_core::Result<_>>()?;
        // Made first: if writing fails half-way, its end puts everything back.
        let averaged = Averaged { ema: self, live };
        let Ema { engine, operands, .. } = &mut *averaged.ema;
        match engine {
            Engine::Whole(engine) => engine.apply(operands)?,
            Engine::Divided(parts) => parts.apply()?,
        }
        Ok(averaged)
    }

    /// Copies the averages out. Keys are `tensor/ema`. Of [`Ema::divided`], those that this rank keeps.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn state(&self) -> Result<StateDict> {
        let names = self.set.tensors().iter().map(|spec| spec.name.clone());
        let averages = match &self.engine {
            Engine::Whole(engine) => names.zip(engine.state()?).collect(),
            Engine::Divided(parts) => parts.averages()?,
        };
        Ok(averages.into_iter().map(|(name, average)| (format!("{name}/{SLOT}"), average)).collect())
    }

    /// Puts averages back that [`Ema::state`] copied out. [`Ema::divided`] takes its part of all of them.
    ///
    /// # Errors
    ///
    /// A missing, unexpected or misshapen average; nothing was changed then.
    pub fn load_state(&mut self, state: &StateDict) -> Result<()> {
        let key = |name: &str| format!("{name}/{SLOT}");
        let specs = self.set.tensors();
        let held = specs.iter().enumerate().filter(|(i, _)| self.engine.holds(*i));
        let averages = held.map(|(_, spec)| {
            let key = key(&spec.name);
            state.get(&key).cloned().ok_or(tpgm_core::Error::MissingSlot { key })
        });
        let averages = averages.collect::<tpgm_core::Result<Vec<_>>>()?;
        if state.len() > averages.len() {
            let known: std::collections::HashSet<_> = specs.iter().map(|spec| key(&spec.name)).collect();
            if let Some(key) = state.keys().find(|key| !known.contains(*key)).cloned() {
                return Err(tpgm_core::Error::UnexpectedSlot { key }.into());
            }
        }
        match &mut self.engine {
            Engine::Whole(engine) => Ok(engine.load_state(&averages)?),
            Engine::Divided(parts) => parts.load_averages(&averages),
        }
    }
}

fn check_decay(decay: f64) -> Result<()> {
    check("decay of the moving average", decay, "in [0, 1]", |x| (0.0..=1.0).contains(&x))
}

/// The model holds the average while this lives; then its live weights return, bit by bit.
#[must_use = "the live weights return when this is dropped"]
pub struct Averaged<'a> {
    ema: &'a mut Ema,
    live: Vec<Tensor>,
}

impl Averaged<'_> {
    /// Writes the live weights back.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn restore(mut self) -> Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<()> {
        let live = std::mem::take(&mut self.live);
        self.ema.operands.vars().zip(&live).try_for_each(|((_, var), live)| Ok(var.set(live)?))
    }
}

impl Drop for Averaged<'_> {
    fn drop(&mut self) {
        // Only a failing device makes this fail; `restore` reports it.
        let _ = self.put_back();
    }
}
