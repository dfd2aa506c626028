//! What the study of methods needs to know of this example.

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use tpgm_candle::nn::{DropoutRng, cross_entropy};
use tpgm_candle::{AdamW, Rule};
use tpgm_examples::mini::{Backbone, HEAD};
use tpgm_examples::study::{Marks, Mode, Pool, Scores, Task};

use crate::evaluate::marks;
use crate::windows::{labels, windows};
use crate::world::World;
use tpgm_examples::mini::data::{Domain, Images};

/// Weight decay of AdamW (decoupled, towards zero).
const WEIGHT_DECAY: f64 = 1e-2;

/// The rule of every run.
pub(crate) fn rule(lr: f64) -> Rule {
    AdamW::default().lr(lr).weight_decay(WEIGHT_DECAY).into()
}

impl World {
    fn pool(&self, pool: Pool) -> &Images {
        match pool {
            Pool::Train => &self.train,
            Pool::Radii => &self.radii,
            Pool::Both => &self.both,
        }
    }
}

impl Task for World {
    type Model = Backbone;
    /// Windows and classes.
    type Batch = (Tensor, Tensor);

    fn head(&self) -> &str {
        HEAD
    }

    fn model(&self, vb: VarBuilder, _: &DropoutRng) -> Result<Backbone> {
        Ok(Backbone::new(self.train.classes(), vb)?)
    }

    fn samples(&self, pool: Pool) -> usize {
        self.pool(pool).len()
    }

    fn batch(&self, pool: Pool, samples: &[usize], _epoch: u64) -> Result<Option<Self::Batch>> {
        let images = self.pool(pool);
        Ok(Some((windows(images, samples)?, labels(images, samples)?)))
    }

    fn loss(&self, model: &Backbone, batch: &Self::Batch, _: Mode) -> candle_core::Result<Tensor> {
        cross_entropy(&model.forward(&batch.0)?, &batch.1)
    }

    fn domains(&self) -> Vec<String> {
        Domain::ALL.map(|domain| domain.name().to_owned()).to_vec()
    }

    fn scores(&self, model: &Backbone, device: &Device) -> Result<Scores> {
        let marks = |images| marks(images, device, |windows| model.forward(windows));
        let right = self.test.iter().map(marks).collect::<Result<Vec<_>>>()?;
        let choice = marks(&self.choice)?.share();
        Ok(Scores { choice, accuracy: right.iter().map(Marks::share).collect(), macro_f1: Vec::new(), right })
    }
}
