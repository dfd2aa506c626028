//! The graphs of a run, and how large and long it is.

use serde::Serialize;

use super::graphs::{Base, Bases, CLASSES, Graph, Request};
use super::net::Batch;

/// How large and long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Scale {
    /// Graphs per class for training.
    pub(super) train: usize,
    /// For learning radii.
    pub(super) radii: usize,
    /// For choosing settings.
    pub(super) choice: usize,
    /// Of each test set.
    pub(super) test: usize,
    /// Optimizer steps of a training run.
    pub(super) steps: u64,
    /// Graphs per step.
    pub(super) batch: usize,
}

impl Scale {
    /// A few seconds a run.
    pub(super) const NORMAL: Self =
        Self { train: 50, radii: 20, choice: 150, test: 150, steps: 400, batch: 32 };

    /// Shows that everything works, not that anything is learned.
    pub(super) const QUICK: Self = Self { train: 4, radii: 2, choice: 4, test: 4, steps: 8, batch: 8 };
}

/// How often a class has its usual base where it is learned.
const USUAL: f32 = 0.8;

/// Nodes of a base in fine-tuning.
const SIZES: (u32, u32) = (8, 16);

/// Graphs of one kind.
pub(super) struct Set(pub(super) Vec<Graph>);

impl Set {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those at some positions.
    pub(super) fn batch(&self, positions: &[usize]) -> candle_core::Result<Batch> {
        Batch::new(positions.iter().map(|position| &self.0[*position]))
    }

    /// All classes, in order.
    pub(super) fn labels(&self) -> Vec<u32> {
        self.0.iter().map(|graph| graph.class).collect()
    }
}

/// The graphs of a run.
pub(super) struct World {
    /// For training.
    pub(super) train: Set,
    /// For learning radii, like the training graphs.
    pub(super) radii: Set,
    /// For choosing settings, like the training graphs.
    pub(super) choice: Set,
    /// With names; the first like the training graphs. No choice depends on them.
    pub(super) test: Vec<(&'static str, Set)>,
}

/// Names of the test sets: those of [`World::test`].
pub(super) const TESTS: [&str; 5] = ["usual bases", "any base", "larger", "grids", "more edges"];

impl World {
    /// Draws all graphs.
    pub(super) fn draw(seed: u64, scale: &Scale) -> Self {
        let usual = Request { motifs: &CLASSES, bases: Bases::Usual(USUAL), nodes: SIZES, noise: 0 };
        let known = Request { bases: Bases::Known, ..usual };
        let requests = [
            usual,
            known,
            Request { nodes: (24, 40), ..known },
            Request { bases: Bases::One(Base::Grid), ..usual },
            Request { noise: 3, ..known },
        ];
        let set = |request: Request, count, number| Set(request.set(count, seed, number));
        let tests = TESTS.iter().zip(requests).zip(4..);
        Self {
            train: set(usual, scale.train, 1),
            radii: set(usual, scale.radii, 2),
            choice: set(usual, scale.choice, 3),
            test: tests.map(|((name, request), number)| (*name, set(request, scale.test, number))).collect(),
        }
    }
}
