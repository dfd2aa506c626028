//! Our training step, with the time of its parts.

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use candle_nn::ParamsAdamW;
use tpgm_candle::core::{Constraint, Projection};
use tpgm_candle::nn::DropoutRng;
use tpgm_candle::{AdamW, Params, RobustOptimizer};

use crate::network::{Batch, Checkpoint, Loss, Network};

/// The parts of a step, in their order.
pub(crate) const PARTS: [&str; 4] = ["forward", "backward", "optimizer", "projection"];

// The same numbers as in torch_training.py.
const RATE: f64 = 1e-4;
const WEIGHT_DECAY: f64 = 1e-2;

/// How a model is trained.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Recipe {
    /// By our AdamW under a constraint.
    Ours(Constraint),
    /// By candle-nn's AdamW.
    Candle,
}

impl Recipe {
    /// Our AdamW alone.
    pub(crate) const PLAIN: Self = Recipe::Ours(Constraint::None);
}

/// A model with its optimizer.
pub(crate) struct Training {
    loss: Loss,
    optimizer: Optimizer,
    /// To train on, and held out.
    batches: [Batch; 2],
    device: Device,
    /// Parameters and tensors.
    size: (usize, usize),
}

/// When a GPU is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    AfterEachPart,
    AtTheEnd,
}

enum Optimizer {
    Ours(Box<RobustOptimizer>),
    /// With TPGM, whose radii are learned after every step.
    LearnsRadii(Box<RobustOptimizer>),
    Candle(candle_nn::AdamW),
}

impl Training {
    /// From the weights of `checkpoint`, which are the anchors, and a new head; on a device.
    ///
    /// # Errors
    ///
    /// The checkpoint is not of this network.
    pub(crate) fn new(
        network: Network,
        checkpoint: &Checkpoint,
        recipe: Recipe,
        device: &Device,
    ) -> Result<Self> {
        let params = Params::open(checkpoint.path(), device)?.head(format!("{}.*", network.head()));
        let loss = network.loss(params.var_builder(), &DropoutRng::new(0))?;
        let vars = params.all();
        let first = candle_core::safetensors::load(checkpoint.with_head(), device)?;
        for param in vars.iter().filter(|param| param.name().starts_with(network.head())) {
            let value =
                first.get(param.name()).with_context(|| format!("`{}` has no value", param.name()))?;
            param.var().set(value)?;
        }
        let size = (vars.iter().map(|param| param.var().elem_count()).sum(), vars.len());
        let optimizer = match recipe {
            Recipe::Ours(constraint) => {
                let rule = AdamW::default().lr(RATE).weight_decay(WEIGHT_DECAY);
                let builder = RobustOptimizer::builder(&params).rule(rule).constraint(constraint);
                let mut optimizer = Box::new(builder.build()?);
                if let Constraint::Tpgm(_) = constraint {
                    // Every step is followed by an update of the radii, which projects.
                    optimizer.set_projection(Projection::Defer);
                    Optimizer::LearnsRadii(optimizer)
                } else {
                    Optimizer::Ours(optimizer)
                }
            }
            Recipe::Candle => {
                let options = ParamsAdamW { lr: RATE, weight_decay: WEIGHT_DECAY, ..ParamsAdamW::default() };
                let vars = vars.iter().map(|param| param.var().clone()).collect();
                Optimizer::Candle(candle_nn::Optimizer::new(vars, options)?)
            }
        };
        let batches = [network.batch(0, device)?, network.batch(1, device)?];
        Ok(Self { loss, optimizer, batches, device: device.clone(), size })
    }

    /// Parameters and tensors.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The losses of its batch without dropout: now, and after the one step that this takes.
    ///
    /// # Errors
    ///
    /// A loss or gradient that is not finite.
    pub(crate) fn losses(&mut self) -> Result<[f64; 2]> {
        let loss = |training: &Self| -> Result<f64> {
            Ok(f64::from((training.loss)(&training.batches[0], false)?.to_scalar::<f32>()?))
        };
        let before = loss(self)?;
        self.whole_step()?;
        Ok([before, loss(self)?])
    }

    /// One step; returns the seconds of its parts. A GPU is waited for after each of them, so that its work counts for the part
    /// that has asked for it.
    ///
    /// # Errors
    ///
    /// A loss or gradient that is not finite.
    pub(crate) fn step(&mut self) -> Result<[f64; PARTS.len()]> {
        self.timed(Wait::AfterEachPart)
    }

    /// One step; returns its seconds. A GPU is waited for as in a real loop, for the loss, and once more at the end.
    ///
    /// # Errors
    ///
    /// A loss or gradient that is not finite.
    pub(crate) fn whole_step(&mut self) -> Result<f64> {
        Ok(self.timed(Wait::AtTheEnd)?.iter().sum())
    }

    fn timed(&mut self, wait: Wait) -> Result<[f64; PARTS.len()]> {
        let Self { loss, optimizer, batches: [batch, held_out], device, .. } = self;
        let part_done = || match wait {
            Wait::AfterEachPart => device.synchronize(),
            Wait::AtTheEnd => Ok(()),
        };
        let begun = Instant::now();
        let value = loss(batch, true)?;
        // As in a real loop, which shows it.
        value.to_scalar::<f32>()?;
        let forward = begun.elapsed();
        let grads = value.backward()?;
        part_done()?;
        let backward = begun.elapsed();
        match optimizer {
            Optimizer::Ours(optimizer) | Optimizer::LearnsRadii(optimizer) => {
                optimizer.step(&grads).map(drop)?
            }
            Optimizer::Candle(optimizer) => candle_nn::Optimizer::step(optimizer, &grads)?,
        }
        part_done()?;
        let stepped = begun.elapsed();
        if let Optimizer::LearnsRadii(optimizer) = optimizer {
            optimizer.tpgm()?.update(|| loss(held_out, false))?;
        }
        device.synchronize()?;
        let all = begun.elapsed();
        Ok([forward, backward - forward, stepped - backward, all - stepped].map(|part| part.as_secs_f64()))
    }
}
