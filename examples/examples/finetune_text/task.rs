//! What the study of methods needs to know of this example.

use anyhow::Result;
use candle_core::{D, Device, Tensor};
use candle_nn::VarBuilder;
use tpgm_candle::models::bert::{BertClassifier, BertConfig, BertInput, Pooling};
use tpgm_candle::nn::{DropoutRng, cross_entropy};
use tpgm_candle::{AdamW, Rule};
use tpgm_examples::data::text::{TextBatch, TextSet};
use tpgm_examples::metrics::Confusion;
use tpgm_examples::study::{Mode, Pool, Scores, Task};

use crate::texts::Texts;

/// Texts at once in an evaluation.
const BATCH: usize = 32;

/// Weight decay of AdamW (decoupled, towards zero).
const WEIGHT_DECAY: f64 = 1e-2;

/// The rule of every run.
pub(crate) fn rule(lr: f64) -> Rule {
    AdamW::default().lr(lr).weight_decay(WEIGHT_DECAY).into()
}

/// An encoder with a new head, and texts.
pub(crate) struct Classification {
    pub(crate) config: BertConfig,
    pub(crate) pooling: Pooling,
    pub(crate) texts: Texts,
}

impl Classification {
    fn pool(&self, pool: Pool) -> &TextSet {
        match pool {
            Pool::Train => &self.texts.train,
            Pool::Radii => &self.texts.radii,
            Pool::Both => &self.texts.both,
        }
    }

    fn confusion(&self, model: &BertClassifier, texts: &TextSet, device: &Device) -> Result<Confusion> {
        let mut confusion = Confusion::new(self.texts.classes.len());
        for positions in texts.by_length().chunks(BATCH) {
            let batch = texts.batch(positions, device)?;
            let best = logits(model, &batch, Mode::Evaluate)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
            for (position, best) in positions.iter().zip(best) {
                confusion.add_at(*position, texts.labels()[*position] as usize, best as usize);
            }
        }
        Ok(confusion)
    }
}

fn logits(model: &BertClassifier, batch: &TextBatch, mode: Mode) -> candle_core::Result<Tensor> {
    model.forward(&BertInput::new(&batch.ids, &batch.mask), mode.is_train())
}

impl Task for Classification {
    type Model = BertClassifier;
    type Batch = TextBatch;

    fn head(&self) -> &str {
        "classifier"
    }

    fn model(&self, vb: VarBuilder, dropout: &DropoutRng) -> Result<BertClassifier> {
        Ok(BertClassifier::new(&self.config, self.texts.classes.len(), self.pooling, dropout, vb)?)
    }

    fn samples(&self, pool: Pool) -> usize {
        self.pool(pool).len()
    }

    fn batch(&self, pool: Pool, samples: &[usize], _epoch: u64) -> Result<Option<TextBatch>> {
        self.pool(pool).batch(samples, &Device::Cpu).map(Some)
    }

    fn loss(&self, model: &BertClassifier, batch: &TextBatch, mode: Mode) -> candle_core::Result<Tensor> {
        cross_entropy(&logits(model, batch, mode)?, &batch.labels)
    }

    fn domains(&self) -> Vec<String> {
        self.texts.tests.iter().map(|(name, _)| name.clone()).collect()
    }

    fn scores(&self, model: &BertClassifier, device: &Device) -> Result<Scores> {
        let tests = self.texts.tests.iter().map(|(_, texts)| self.confusion(model, texts, device));
        let tests = tests.collect::<Result<Vec<_>>>()?;
        Ok(Scores {
            choice: self.confusion(model, &self.texts.choice, device)?.accuracy(),
            accuracy: tests.iter().map(Confusion::accuracy).collect(),
            macro_f1: tests.iter().map(Confusion::macro_f1).collect(),
            right: tests.iter().map(Confusion::marks).collect(),
        })
    }
}
