//! The images of a run, and how large and long it is.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use tpgm_examples::mini::data::{Domain, Images, Request, Split};

/// How large and long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scale {
    /// Classes of fine-tuning.
    pub(crate) classes: usize,
    /// Real training images per class.
    pub(crate) train: usize,
    /// Real images per class for learning radii, and as many others for choosing.
    pub(crate) held_out: usize,
    /// Test images per class and domain.
    pub(crate) test: usize,
    /// Optimizer steps of a training run.
    pub(crate) steps: u64,
    /// Images per step.
    pub(crate) batch: usize,
}

impl Scale {
    /// Five minutes for all methods.
    pub(crate) const NORMAL: Self =
        Self { classes: 40, train: 40, held_out: 10, test: 20, steps: 600, batch: 32 };

    /// Seconds: shows that everything works, not that anything is learned.
    pub(crate) const QUICK: Self = Self { classes: 4, train: 4, held_out: 2, test: 2, steps: 6, batch: 8 };
}

/// The images of a run.
pub(crate) struct World {
    /// Real images for training.
    pub(crate) train: Images,
    /// Real images for learning radii.
    pub(crate) radii: Images,
    /// The former after each other.
    pub(crate) both: Images,
    /// Real images for choosing settings.
    pub(crate) choice: Images,
    /// Images of each domain, in the order of [`Domain::ALL`], that no choice depends on.
    pub(crate) test: Vec<Images>,
}

impl World {
    /// Draws all images.
    ///
    /// # Errors
    ///
    /// A split is empty or has one class only.
    pub(crate) fn draw(seed: u64, scale: &Scale) -> Result<Self> {
        let classes = Request::fine_tuning(seed, scale.classes);
        let real = |split, images| classes.of(split, images).draw(&[Domain::Real]);
        let test = classes.of(Split::Test, scale.test);
        let (train, radii) = (real(Split::Train, scale.train), real(Split::Radii, scale.held_out));
        let world = Self {
            both: train.with(&radii),
            train,
            radii,
            choice: real(Split::Choice, scale.held_out),
            test: Domain::ALL.iter().map(|domain| test.draw(&[*domain])).collect(),
        };
        world.train.check("training")?;
        world.radii.check("held-out")?;
        world.test.iter().try_for_each(|images| images.check("test"))?;
        Ok(world)
    }
}
