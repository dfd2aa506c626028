//! DomainNet in miniature: classes of shapes in six domains, drawn from a seed.
//!
//! The backbone is pre-trained on all domains of one set of classes. It is fine-tuned on real images of other classes,
//! whose usual color and texture are a cue that the other domains do not have.

mod dice;
mod domain;
mod draw;
mod shape;
mod words;

use anyhow::{Result, ensure};
use rayon::prelude::*;

pub use self::dice::Dice;
pub use self::domain::Domain;
pub use self::draw::{BYTES, SIDE};
use self::shape::Class;
pub use self::words::{Detail, END, LONGEST, START, VOCABULARY, WORDS, Words};

/// Which images: no image is in two splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Training images.
    Train,
    /// Held out: radii are learned on these.
    Radii,
    /// Held out: settings are chosen on these.
    Choice,
    /// Looked at when everything is chosen.
    Test,
}

/// The first class of fine-tuning; those before it are for pre-training.
const FINE_TUNING: usize = 1_000_000;

/// What to draw.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Other seeds have other classes.
    seed: u64,
    /// Number of the first class.
    first_class: usize,
    /// Number of classes.
    classes: usize,
    split: Split,
    /// Number of an image within its class and split at which to begin.
    first: usize,
    /// Images per class and domain.
    images: usize,
}

impl Request {
    /// Classes of pre-training.
    pub fn pretraining(seed: u64, classes: usize) -> Self {
        Self { seed, first_class: 0, classes, split: Split::Train, first: 0, images: 0 }
    }

    /// Classes of fine-tuning: none of them is a class of pre-training.
    pub fn fine_tuning(seed: u64, classes: usize) -> Self {
        Self { first_class: FINE_TUNING, ..Self::pretraining(seed, classes) }
    }

    /// This many images per class and domain of a split.
    pub fn of(self, split: Split, images: usize) -> Self {
        Self { split, images, ..self }
    }

    /// Begins at another image of each class.
    pub fn from(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// The classes in words.
    pub fn words(&self) -> Vec<Words> {
        self.class_list().iter().map(Words::new).collect()
    }

    fn class_list(&self) -> Vec<Class> {
        (0..self.classes).map(|class| Class::new(self.seed, (self.first_class + class) as u64)).collect()
    }

    /// Draws them, in parallel; the pixels do not depend on the number of threads. The images of each class follow each
    /// other, in the order of `domains`.
    pub fn draw(&self, domains: &[Domain]) -> Images {
        let classes = self.class_list();
        let per_class = domains.len() * self.images;
        let mut pixels = vec![0; self.classes * per_class * BYTES];
        pixels.par_chunks_exact_mut(BYTES).enumerate().for_each(|(position, image)| {
            let (class, domain) = (position / per_class, domains[position % per_class / self.images]);
            let number = self.first + position % self.images;
            let number_of_class = (self.first_class + class) as u64;
            let split = 10 + self.split as u64;
            let key = [self.seed, split * 10 + domain as u64, number_of_class, number as u64];
            image.copy_from_slice(&draw::draw(&classes[class], domain, &mut Dice::new(key)));
        });
        let labels = (0..self.classes * per_class).map(|position| (position / per_class) as u32).collect();
        Images { pixels, labels, classes: self.classes }
    }
}

/// Images with their classes.
pub struct Images {
    pixels: Vec<u8>,
    labels: Vec<u32>,
    classes: usize,
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of each image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The pixels of an image: rows of red, green, blue.
    pub fn image(&self, position: usize) -> &[u8] {
        &self.pixels[position * BYTES..][..BYTES]
    }

    /// These images, and after them others of the same classes.
    pub fn with(&self, more: &Self) -> Self {
        Self {
            pixels: [&self.pixels[..], &more.pixels].concat(),
            labels: [&self.labels[..], &more.labels].concat(),
            classes: self.classes,
        }
    }

    /// Fails if nothing can be learned from these images.
    ///
    /// # Errors
    ///
    /// No image, or images of one class only.
    pub fn check(&self, name: &str) -> Result<()> {
        ensure!(!self.is_empty(), "there are no {name} images: ask for at least one image per class");
        let several = self.labels.iter().any(|label| *label != self.labels[0]);
        ensure!(several, "all {name} images are of one class: a classifier needs at least two");
        Ok(())
    }
}
