//! Our side of a comparison: one method over the data of one model.

use std::time::Instant;

use tpgm_core::{Cpu, Norm, Optimizer, ParamSet, Projector, Result, StepOptions, TensorIo, Tpgm};

use crate::data::Data;
use crate::methods::{Method, Operation};

/// Gradients change sign every so many steps, see [`Data::flip_gradients`]. The same number is in `torch_peer.py`.
pub const FLIP_EVERY: usize = 4;

/// The phases of a projection update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Remember the weights, measure their displacement.
    Begin,
    /// Write the projected weights.
    Apply,
    /// Learn the radii.
    Update,
    /// Write the projection for good.
    Finish,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Phase; 4] = [Phase::Begin, Phase::Apply, Phase::Update, Phase::Finish];

    /// Name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Begin => "begin",
            Phase::Apply => "apply",
            Phase::Update => "update",
            Phase::Finish => "finish",
        }
    }
}

enum Engine {
    Step(Optimizer<Cpu>, StepOptions),
    Project(Projector<Cpu>),
    Update(Projector<Cpu>),
}

/// One method on the CPU, ready to run rounds.
pub struct Ours {
    engine: Engine,
    rounds: usize,
    phases: [f64; Phase::ALL.len()],
}

impl Ours {
    /// Makes the state of `method` for the tensors of `set`.
    ///
    /// # Errors
    ///
    /// What the library reports, for example that `threads` threads cannot be started.
    pub fn new(method: &Method, set: &ParamSet, threads: usize) -> Result<Self> {
        let cpu = Cpu::with_threads(threads)?;
        let engine = match method.operation {
            Operation::Step(rule, constraint, gradients) => {
                let options = StepOptions { gradients, ..StepOptions::default() };
                Engine::Step(Optimizer::new(cpu, set, rule, constraint)?, options)
            }
            Operation::Project(norm) => Engine::Project(Projector::new(cpu, set, tpgm(norm))?),
            Operation::Update(norm) => Engine::Update(Projector::new(cpu, set, tpgm(norm))?),
        };
        Ok(Self { engine, rounds: 0, phases: [0.0; Phase::ALL.len()] })
    }

    /// Runs one round and returns the seconds of the operation itself. Not timed: every few steps gradients change
    /// sign, and projections start from the same weights each round.
    ///
    /// # Errors
    ///
    /// What the library reports.
    pub fn round(&mut self, data: &mut Data) -> Result<f64> {
        match &self.engine {
            Engine::Step(..) if self.rounds > 0 && self.rounds.is_multiple_of(FLIP_EVERY) => {
                data.flip_gradients()
            }
            Engine::Step(..) => {}
            Engine::Project(_) | Engine::Update(_) => data.restore_weights(),
        }
        self.rounds += 1;
        let start = Instant::now();
        let mut io: Vec<_> = data
            .weights
            .iter_mut()
            .zip(&data.grads)
            .zip(&data.anchors)
            .map(|((weight, grad), anchor)| TensorIo::new(weight).grad(grad).anchor(anchor))
            .collect();
        match &mut self.engine {
            Engine::Step(optimizer, options) => {
                optimizer.step(&mut io, options)?;
            }
            Engine::Project(projector) => projector.project(&mut io)?,
            Engine::Update(projector) => {
                for (phase, seconds) in Phase::ALL.into_iter().zip(&mut self.phases) {
                    let start = Instant::now();
                    match phase {
                        Phase::Begin => projector.begin(&mut io)?,
                        Phase::Apply => projector.apply(&mut io)?,
                        Phase::Update => projector.update(&mut io)?,
                        Phase::Finish => projector.finish(&mut io)?,
                    }
                    *seconds = start.elapsed().as_secs_f64();
                }
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds of one phase of the last projection update; 0 if the method has none.
    pub fn phase_seconds(&self, phase: Phase) -> f64 {
        self.phases[phase as usize]
    }
}

fn tpgm(norm: Norm) -> Tpgm {
    Tpgm { norm, ..Tpgm::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpgm_core::{DType, TensorSpec};

    /// Tensors small enough for a debug build: several rows, one row, and no row limit in common.
    fn set() -> ParamSet {
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            dtype: DType::F32,
        };
        let tensors = [spec("a.weight", &[96, 80]), spec("a.bias", &[96])];
        ParamSet::builder().tensors(tensors).build().unwrap()
    }

    #[test]
    fn every_method_runs_and_does_something() {
        let set = set();
        for method in Method::all() {
            let mut data = Data::new(set.tensors());
            let before = data.weights.clone();
            let mut ours = Ours::new(&method, &set, 2).unwrap();
            for _ in 0..2 * FLIP_EVERY {
                assert!(ours.round(&mut data).unwrap() > 0.0);
            }
            let finite = data.weights.iter().flatten().all(|w| w.is_finite());
            assert!(finite, "{}", method.name);
            for (after, before) in data.weights.iter().zip(&before) {
                assert_ne!(after, before, "{}", method.name);
            }
        }
    }

    // A projection that finds its weights inside the balls writes nothing new: rounds must not start there.
    #[test]
    fn every_projection_starts_from_the_same_weights() {
        let set = set();
        let mut data = Data::new(set.tensors());
        let method = Method::by_name("project-l2").unwrap();
        let mut ours = Ours::new(&method, &set, 1).unwrap();
        ours.round(&mut data).unwrap();
        let first = data.weights.clone();
        ours.round(&mut data).unwrap();
        assert_eq!(data.weights, first);
        assert_eq!(ours.phase_seconds(Phase::Begin), 0.0);
    }
}
