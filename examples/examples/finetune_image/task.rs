//! What the study of methods needs to know of this example.

use anyhow::Result;
use candle_core::{D, Device, Tensor};
use candle_nn::VarBuilder;
use tpgm_candle::DataOrder;
use tpgm_candle::data::Shuffle;
use tpgm_candle::nn::{DropoutRng, cross_entropy};
use tpgm_examples::data::Problems;
use tpgm_examples::data::images::{Augmentation, ImageBatch, ImageList, Transform, read_batch};
use tpgm_examples::loader::Loader;
use tpgm_examples::metrics::Confusion;
use tpgm_examples::precision::Precision;
use tpgm_examples::study::{Mode, Pool, Scores, Task};

use crate::images::Images;
use crate::network::{Network, Shape};

/// Images at once in an evaluation.
const BATCH: usize = 64;

/// Batches that are read and decoded while the model works on others.
const AHEAD: usize = 2;

/// A network with a head, and images.
pub(crate) struct Classification {
    pub(crate) shape: Shape,
    pub(crate) head: &'static str,
    pub(crate) images: Images,
    /// In evaluations and for learning radii.
    pub(crate) transform: Transform,
    /// Of training images.
    pub(crate) augmentation: Augmentation,
    /// Test sets that are also reported apart: names, and positions.
    pub(crate) groups: Vec<(String, Vec<usize>)>,
    /// The element type that the network takes pixels in.
    pub(crate) precision: Precision,
    /// What could not be read.
    pub(crate) problems: Problems,
}

impl Classification {
    fn pixels(&self, pixels: &Tensor) -> candle_core::Result<Tensor> {
        pixels.to_dtype(self.precision.dtype())
    }

    fn pool(&self, pool: Pool) -> (&ImageList, Transform) {
        let plain = self.transform;
        let augmented = Transform { augmentation: Some(self.augmentation), ..plain };
        match pool {
            Pool::Train => (&self.images.train, augmented),
            Pool::Both => (&self.images.both, augmented),
            Pool::Radii => (&self.images.radii, plain),
        }
    }

    fn confusion(&self, model: &Network, list: &ImageList, device: &Device) -> Result<Confusion> {
        let order = DataOrder::new(list.len(), BATCH, 0)?.shuffle(Shuffle::Off);
        let batches = order.batches_per_epoch();
        let mut confusion = Confusion::new(self.images.classes().len());
        let possible = list.possible().map(|classes| Tensor::new(classes, device)).transpose()?;
        std::thread::scope(|scope| {
            let read = |positions: &[usize], _| {
                // A batch of which nothing can be read counts for nothing, but must come: they are counted.
                let batch = read_batch(list, positions, &self.transform, 0, &self.problems)?;
                Ok(Some(batch))
            };
            let mut loader = Loader::new(scope, order, AHEAD, read);
            for _ in 0..batches {
                let Some(ImageBatch { pixels, positions, .. }) = loader.next_batch()? else { continue };
                let mut logits = model.forward(&self.pixels(&pixels.to_device(device)?)?, false)?;
                if let Some(possible) = &possible {
                    logits = logits.index_select(possible, 1)?;
                }
                let best = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
                for (position, best) in positions.into_iter().zip(best) {
                    let best = list.possible().map_or(best, |classes| classes[best as usize]);
                    confusion.add_at(position, list.labels()[position] as usize, best as usize);
                }
            }
            anyhow::ensure!(confusion.total() > 0, "no image of {} can be read", list.name().display());
            Ok(confusion)
        })
    }
}

impl Task for Classification {
    type Model = Network;
    type Batch = ImageBatch;

    fn head(&self) -> &str {
        self.head
    }

    /// CLIP's temperature is that of its pre-training.
    fn frozen(&self) -> &[&str] {
        if matches!(self.shape, Shape::Clip(_)) { &["logit_scale"] } else { &[] }
    }

    fn model(&self, vb: VarBuilder, dropout: &DropoutRng) -> Result<Network> {
        self.shape.network(self.images.classes().len(), dropout, vb)
    }

    fn samples(&self, pool: Pool) -> usize {
        self.pool(pool).0.len()
    }

    fn batch(&self, pool: Pool, samples: &[usize], epoch: u64) -> Result<Option<ImageBatch>> {
        let (list, transform) = self.pool(pool);
        read_batch(list, samples, &transform, epoch, &self.problems)
    }

    fn ahead(&self) -> usize {
        AHEAD
    }

    fn loss(&self, model: &Network, batch: &ImageBatch, mode: Mode) -> candle_core::Result<Tensor> {
        cross_entropy(&model.forward(&self.pixels(&batch.pixels)?, mode.is_train())?, &batch.labels)
    }

    fn domains(&self) -> Vec<String> {
        self.images.tests.iter().map(|(name, _)| name.clone()).collect()
    }

    fn groups(&self) -> Vec<(String, Vec<usize>)> {
        self.groups.clone()
    }

    fn units(&self) -> Vec<Vec<u64>> {
        self.images.tests.iter().map(|(_, list)| list.units()).collect()
    }

    fn scores(&self, model: &Network, device: &Device) -> Result<Scores> {
        let tests = self.images.tests.iter().map(|(_, list)| self.confusion(model, list, device));
        let tests = tests.collect::<Result<Vec<_>>>()?;
        Ok(Scores {
            choice: self.confusion(model, &self.images.choice, device)?.accuracy(),
            accuracy: tests.iter().map(Confusion::accuracy).collect(),
            macro_f1: tests.iter().map(Confusion::macro_f1).collect(),
            right: tests.iter().map(Confusion::marks).collect(),
        })
    }
}
