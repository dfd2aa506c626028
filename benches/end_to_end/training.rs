//! Our training step, with the time of its parts.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use tpgm_candle::core::{Constraint, Projection};
use tpgm_candle::nn::DropoutRng;
use tpgm_candle::{AdamW, Params, RobustOptimizer};

use crate::network::{Batch, Loss, Network};

/// The parts of a step, in their order.
pub(crate) const PARTS: [&str; 4] = ["forward", "backward", "optimizer", "projection"];

// The same numbers as in torch_training.py.
const RATE: f64 = 1e-4;
const WEIGHT_DECAY: f64 = 1e-2;

/// A model with its optimizer.
pub(crate) struct Training {
    loss: Loss,
    optimizer: RobustOptimizer,
    /// To train on, and held out.
    batches: [Batch; 2],
    learns_radii: bool,
}

impl Training {
    /// From the weights of `checkpoint`, which are the anchors, and a new head.
    ///
    /// # Errors
    ///
    /// The checkpoint is not of this network.
    pub(crate) fn new(
        network: Network,
        checkpoint: &Path,
        constraint: Constraint,
        threads: usize,
    ) -> Result<Self> {
        let params = Params::open(checkpoint, &Device::Cpu)?.head(format!("{}.*", network.head()));
        let loss = network.loss(params.var_builder(), &DropoutRng::new(0))?;
        let rule = AdamW::default().lr(RATE).weight_decay(WEIGHT_DECAY);
        let mut optimizer =
            RobustOptimizer::builder(&params).rule(rule).constraint(constraint).threads(threads).build()?;
        let learns_radii = matches!(constraint, Constraint::Tpgm(_));
        if learns_radii {
            // Every step is followed by an update of the radii, which projects.
            optimizer.set_projection(Projection::Defer);
        }
        Ok(Self { loss, optimizer, batches: [network.batch(0)?, network.batch(1)?], learns_radii })
    }

    /// Parameters and tensors.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.optimizer.set().numel(), self.optimizer.set().len())
    }

    /// One step; returns the seconds of its parts.
    ///
    /// # Errors
    ///
    /// A loss or gradient that is not finite.
    pub(crate) fn step(&mut self) -> Result<[f64; PARTS.len()]> {
        let Self { loss, optimizer, batches: [batch, held_out], learns_radii } = self;
        let begun = Instant::now();
        let value = loss(batch, true)?;
        // As in a real loop, which shows it.
        value.to_scalar::<f32>()?;
        let forward = begun.elapsed();
        let grads = value.backward()?;
        let backward = begun.elapsed();
        optimizer.step(&grads)?;
        let stepped = begun.elapsed();
        if *learns_radii {
            optimizer.tpgm()?.update(|| loss(held_out, false))?;
        }
        let all = begun.elapsed();
        Ok([forward, backward - forward, stepped - backward, all - stepped].map(|part| part.as_secs_f64()))
    }
}
