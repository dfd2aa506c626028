//! Saving and resuming.

use tpgm_core::{Buffer, StateDict};

use super::RobustOptimizer;
use super::accumulate::Accumulator;
use super::config::OptimizerConfig;
use super::divided::{Engine, fit};
use super::error::Result;

/// Slots of the optimizer as a whole. No tensor's slot has one of these names.
const LR: &str = "optimizer/lr";
const STEPS: &str = "optimizer/steps";
const BATCHES: &str = "optimizer/batches";

impl RobustOptimizer {
    /// Copies all state out: moments, masters, radii, the learning rate, the step count and pending sums of gradients.
    /// Keys are `tensor/slot`. Weights and anchors are not part of it.
    ///
    /// With [`divide_state`](super::OptimizerBuilder::divide_state) it is that of this rank's tensors. The states of all ranks
    /// together are that of an optimizer without it, but for tensors that are cut by rows: their keys are `tensor[0..128]/slot`, and
    /// [`load_state`](Self::load_state) puts them together.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn state(&self) -> Result<StateDict> {
        let mut state = match &self.engine {
            Engine::Whole(engine) => engine.state()?,
            Engine::Divided(parts) => parts.state()?,
        };
        state.extend(self.accumulator.state(self.engine.units(&self.operands))?);
        if let Some(positions) = &self.positions {
            state.extend(positions.state(&self.operands)?);
        }
        let mut number = |key: &str, value: f64| state.insert(key.to_owned(), Buffer::F64(vec![value]));
        number(LR, self.lr);
        number(STEPS, self.steps as f64);
        number(BATCHES, self.accumulator.batches() as f64);
        Ok(state)
    }

    /// Puts state back that [`RobustOptimizer::state`] copied out of an optimizer with the same configuration and
    /// parameters. With the same weights, the next step then gives the same bits.
    ///
    /// With [`divide_state`](super::OptimizerBuilder::divide_state) this takes the state of all tensors, whoever saved it and
    /// divided as it may have been, and keeps this rank's part; or that part alone.
    ///
    /// # Errors
    ///
    /// A missing, unexpected or misshapen slot, or [`Error::Position`](super::Error::Position); the optimizer is then
    /// unchanged.
    pub fn load_state(&mut self, state: &StateDict) -> Result<()> {
        let mut state = match &self.positions {
            Some(positions) => positions.load(&self.operands, state.clone())?,
            None => self.held(state),
        };
        let mut number = |key: &str, whole: bool| take_number(&mut state, key, whole);
        let (lr, steps, batches) = (number(LR, false)?, number(STEPS, true)?, number(BATCHES, true)?);
        if batches > 0.0 && batches >= self.config.accumulate as f64 {
            let requirement = "below the number of batches that make a step";
            return Err(
                tpgm_core::Error::InvalidOption { option: BATCHES, value: batches, requirement }.into()
            );
        }
        let (holds, units) = (|i| self.engine.holds(i), self.engine.units(&self.operands));
        let accumulator = Accumulator::load(units, &mut state, batches as usize, holds)?;
        match &mut self.engine {
            Engine::Whole(engine) => engine.load_state(&state)?,
            Engine::Divided(parts) => parts.load_state(&state)?,
        }
        self.lr = lr;
        self.steps = steps as u64;
        self.accumulator = accumulator;
        Ok(())
    }

    /// Whether [`RobustOptimizer::load_state`] takes a slot of saved state: with divided state it leaves those of other ranks'
    /// tensors aside, and they need not be read. See [`Checkpoint::state_where`](crate::Checkpoint::state_where).
    pub fn takes(&self, key: &str) -> bool {
        match (&self.engine, key.rsplit_once('/')) {
            (Engine::Divided(parts), Some((name, _))) => parts.takes(name),
            _ => true,
        }
    }

    /// A saved state without the slots of tensors whose state other ranks keep, put together or taken apart where it was saved of
    /// other rows than are kept here.
    fn held(&self, state: &StateDict) -> StateDict {
        let slots = state.iter().filter(|(key, _)| self.takes(key));
        let slots = slots.map(|(key, buffer)| (key.clone(), buffer.clone())).collect();
        match &self.engine {
            Engine::Divided(parts) => fit(&self.set, slots, parts.held()),
            Engine::Whole(_) => {
                let tensors = self.set.tensors().iter().enumerate();
                fit(&self.set, slots, tensors.map(|(i, spec)| (spec.name.as_str(), i, 0..spec.rows().0)))
            }
        }
    }

    /// As [`RobustOptimizer::load_state`], after making sure that the state was saved with the same configuration.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigDiffers`](super::Error::ConfigDiffers) with the first option that differs, or as
    /// [`RobustOptimizer::load_state`].
    pub fn resume(&mut self, saved: &OptimizerConfig, state: &StateDict) -> Result<()> {
        self.config.check(saved)?;
        self.load_state(state)
    }
}

fn take_number(state: &mut StateDict, key: &str, whole: bool) -> Result<f64> {
    let missing = || tpgm_core::Error::MissingSlot { key: key.to_owned() };
    let saved = state.remove(key).ok_or_else(missing)?.to_f64();
    let [value] = saved[..] else { return Err(missing().into()) };
    let holds = value.is_finite() && value >= 0.0 && (!whole || value.fract() == 0.0);
    match holds {
        true => Ok(value),
        false => Err(tpgm_core::Error::NonFiniteValue { tensor: key.to_owned(), what: "saved value" }.into()),
    }
}
