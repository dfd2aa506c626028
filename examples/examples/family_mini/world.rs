//! The images and texts of a run, and how large and long it is.

use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::Serialize;
use tpgm_examples::mini::data::{Detail, Dice, Domain, Request, Split};

use crate::net::{ids, pixels};

/// How large and long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Scale {
    /// Classes of fine-tuning.
    pub(crate) classes: usize,
    /// Real training images per class.
    pub(crate) train: usize,
    /// Real images per class for learning radii.
    pub(crate) radii: usize,
    /// Real images per class for choosing settings, and as many of the shifted domain for AutoFT's search.
    pub(crate) choice: usize,
    /// Test images per class and domain.
    pub(crate) test: usize,
    /// Classes of pre-training of which there are pairs of images and texts, one per domain.
    pub(crate) pool: usize,
    /// Optimizer steps of a training run.
    pub(crate) steps: u64,
    /// Images per step.
    pub(crate) batch: usize,
    /// Trials of AutoFT.
    pub(crate) trials: u64,
    /// Optimizer steps of each.
    pub(crate) inner_steps: u64,
}

impl Scale {
    /// A few minutes for every method once.
    pub(crate) const NORMAL: Self = Self {
        classes: 24,
        train: 30,
        radii: 8,
        choice: 20,
        test: 15,
        pool: 100,
        steps: 300,
        batch: 32,
        trials: 50,
        inner_steps: 40,
    };

    /// Seconds: shows that everything works, not that anything is learned.
    pub(crate) const QUICK: Self = Self {
        classes: 4,
        train: 4,
        radii: 2,
        choice: 2,
        test: 2,
        pool: 4,
        steps: 6,
        batch: 8,
        trials: 3,
        inner_steps: 2,
    };
}

/// The domains of the table, that of fine-tuning first.
pub(crate) const REPORTED: [Domain; 5] =
    [Domain::Real, Domain::Sketch, Domain::Painting, Domain::Clipart, Domain::Quickdraw];
/// The domain that AutoFT's search looks at. It is not reported.
pub(crate) const SHIFTED: Domain = Domain::Infograph;

/// Some images of a set.
pub(crate) struct Batch {
    /// (images, 3, side, side)
    pub(crate) images: Tensor,
    /// Classes, u32.
    pub(crate) labels: Tensor,
    /// Where they are in the set, u32.
    pub(crate) positions: Tensor,
    /// Number of the step, from 0.
    pub(crate) step: u64,
}

/// Images of a domain, in random order: as a stream they are not sorted by class.
pub(crate) struct Set {
    pub(crate) images: Tensor,
    pub(crate) labels: Vec<u32>,
}

impl Set {
    fn draw(request: Request, domain: Domain, what: &str) -> Result<Self> {
        let images = request.draw(&[domain]);
        images.check(what)?;
        let mut order: Vec<usize> = (0..images.len()).collect();
        Dice::new([5, domain as u64, 0, 0]).shuffle(&mut order);
        let labels = order.iter().map(|position| images.labels()[*position]).collect();
        Ok(Self { images: pixels(&images, order.into_iter())?, labels })
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Those at some positions.
    pub(crate) fn batch(&self, positions: &[usize], step: u64) -> candle_core::Result<Batch> {
        let labels: Vec<_> = positions.iter().map(|position| self.labels[*position]).collect();
        let positions: Vec<_> = positions.iter().map(|position| *position as u32).collect();
        let count = positions.len();
        let positions = Tensor::from_vec(positions, count, &Device::Cpu)?;
        let labels = Tensor::from_vec(labels, count, &Device::Cpu)?;
        Ok(Batch { images: self.images.index_select(&positions, 0)?, labels, positions, step })
    }
}

/// Pairs of images and texts that have nothing to do with the classes of fine-tuning: new images of classes of pre-training,
/// in all domains. What a generator of images gives GIFT, and a large set of the web ARF.
pub(crate) struct Pool {
    pub(crate) images: Tensor,
    /// Token ids of each image's text.
    pub(crate) texts: Tensor,
    /// Equal for equal texts.
    pub(crate) numbers: Tensor,
}

impl Pool {
    fn draw(seed: u64, classes: usize) -> Result<Self> {
        let request = Request::pretraining(seed, classes).of(Split::Radii, 1);
        let (images, words) = (request.draw(&Domain::ALL), request.words());
        images.check("pool's")?;
        let texts: Vec<_> = words
            .iter()
            .flat_map(|words| Domain::ALL.map(|domain| words.text(domain, Detail::Description)))
            .collect();
        // The same words in the same domain are the same text, of whatever class.
        let number = |text| texts.iter().position(|other| other == text).unwrap_or_default() as u32;
        let numbers: Vec<_> = texts.iter().map(number).collect();
        Ok(Self {
            images: pixels(&images, 0..images.len())?,
            texts: ids(&texts)?,
            numbers: Tensor::from_vec(numbers, texts.len(), &Device::Cpu)?,
        })
    }
}

/// The images and texts of a run.
pub(crate) struct World {
    /// Real images for training.
    pub(crate) train: Set,
    /// Real images for learning radii.
    pub(crate) radii: Set,
    /// Real images for choosing settings.
    pub(crate) choice: Set,
    /// Images of [`SHIFTED`].
    pub(crate) shifted: Set,
    /// Images of each of [`REPORTED`] that no choice depends on.
    pub(crate) test: Vec<Set>,
    /// Token ids of the classes' names as photographs, (classes, length).
    pub(crate) names: Tensor,
    /// Token ids of their descriptions as photographs.
    pub(crate) descriptions: Tensor,
    /// Token ids of their names in every domain, (classes * domains, length): the templates of a zero-shot head.
    pub(crate) templates: Tensor,
    pub(crate) pool: Pool,
}

impl World {
    /// Draws all images.
    ///
    /// # Errors
    ///
    /// A split is empty or has one class only.
    pub(crate) fn draw(seed: u64, scale: &Scale) -> Result<Self> {
        let classes = Request::fine_tuning(seed, scale.classes);
        let set = |split, images, domain, what| Set::draw(classes.of(split, images), domain, what);
        let words = classes.words();
        let texts = |detail| words.iter().map(|words| words.text(Domain::Real, detail)).collect::<Vec<_>>();
        let templates: Vec<_> = words
            .iter()
            .flat_map(|words| Domain::ALL.map(|domain| words.text(domain, Detail::Name)))
            .collect();
        Ok(Self {
            train: set(Split::Train, scale.train, Domain::Real, "training")?,
            radii: set(Split::Radii, scale.radii, Domain::Real, "held-out")?,
            choice: set(Split::Choice, scale.choice, Domain::Real, "choosing")?,
            shifted: set(Split::Choice, scale.choice, SHIFTED, "shifted")?,
            test: REPORTED
                .iter()
                .map(|domain| set(Split::Test, scale.test, *domain, "test"))
                .collect::<Result<_>>()?,
            names: ids(&texts(Detail::Name))?,
            descriptions: ids(&texts(Detail::Description))?,
            templates: ids(&templates)?,
            pool: Pool::draw(seed, scale.pool)?,
        })
    }

    /// Number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.names.dims()[0]
    }
}
