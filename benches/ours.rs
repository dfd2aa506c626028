//! Our side of a comparison: one method over the data of one model.

use tpgm_core::{Backend, Buffer, Ema, Norm, Optimizer, ParamSet, Projector, Result, StepOptions, Tpgm};

use crate::data::Data;
use crate::methods::{Call, Method, Operation};

/// Gradients change sign every so many steps, see [`Data::flip_gradients`]. The same number is in `torch_peer.py`.
pub const FLIP_EVERY: usize = 4;

/// Share of the old average that an update keeps.
const EMA_DECAY: f64 = 0.999;

enum Engine<B: Backend> {
    Step(Optimizer<B>, StepOptions),
    Project(Projector<B>),
    Average(Ema<B>),
}

/// One method on a backend, ready to run rounds.
pub struct Ours<B: Backend> {
    engine: Engine<B>,
    rounds: usize,
}

impl<B: Backend> Ours<B> {
    /// Makes the state of `method` for the tensors of `set`, whose `data` is there.
    ///
    /// # Errors
    ///
    /// What the library reports, for example that the device has no memory left.
    pub fn new(method: &Method, backend: B, set: &ParamSet, data: &Data<B>) -> Result<Self> {
        let tpgm = |norm: Norm| Tpgm { norm, ..Tpgm::default() };
        let engine = match method.operation {
            Operation::Step(rule, constraint, gradients) => {
                let options = StepOptions { gradients, ..StepOptions::default() };
                Engine::Step(Optimizer::new(backend, set, rule, constraint)?, options)
            }
            Operation::Project(norm) | Operation::Update(norm) => {
                Engine::Project(Projector::new(backend, set, tpgm(norm))?)
            }
            Operation::Average => {
                let weights: Vec<_> = data.weights.iter().map(B::as_ref).collect();
                Engine::Average(Ema::new(backend, set, &weights)?)
            }
        };
        Ok(Self { engine, rounds: 0 })
    }

    /// To be called before each round, untimed: every few steps gradients change sign, and projections start from the same
    /// weights each round.
    ///
    /// # Errors
    ///
    /// What the library reports.
    pub fn prepare(&mut self, data: &mut Data<B>) -> Result<()> {
        let round = self.rounds;
        self.rounds += 1;
        match &self.engine {
            Engine::Step(..) if round > 0 && round.is_multiple_of(FLIP_EVERY) => data.flip_gradients(),
            Engine::Step(..) | Engine::Average(_) => Ok(()),
            Engine::Project(_) => data.restore_weights(),
        }
    }

    /// Bytes that the method keeps between two rounds besides weights and anchors: moments, displacements, radii, averages.
    ///
    /// # Errors
    ///
    /// What the library reports.
    pub fn state_bytes(&self) -> Result<usize> {
        let bytes = |buffer: &Buffer| buffer.len() * buffer.dtype().size();
        Ok(match &self.engine {
            Engine::Step(optimizer, _) => optimizer.state()?.values().map(bytes).sum(),
            Engine::Project(projector) => projector.state()?.values().map(bytes).sum(),
            Engine::Average(ema) => ema.state()?.iter().map(bytes).sum(),
        })
    }

    /// One of the calls of the method's operation, see [`Operation::calls`].
    ///
    /// # Errors
    ///
    /// What the library reports.
    ///
    /// # Panics
    ///
    /// If the call is of another operation.
    pub fn call(&mut self, call: Call, data: &mut Data<B>) -> Result<()> {
        match (&mut self.engine, call) {
            (Engine::Step(optimizer, options), Call::Step) => {
                optimizer.step(&mut data.io(), options).map(drop)
            }
            (Engine::Project(projector), Call::Project) => projector.project(&mut data.io()),
            (Engine::Project(projector), Call::Begin) => projector.begin(&mut data.io()),
            (Engine::Project(projector), Call::Apply) => projector.apply(&mut data.io()),
            (Engine::Project(projector), Call::Update) => projector.update(&mut data.io()),
            (Engine::Project(projector), Call::Finish) => projector.finish(&mut data.io()),
            (Engine::Average(ema), Call::Average) => {
                let weights: Vec<_> = data.weights.iter().map(B::as_ref).collect();
                ema.update(&weights, EMA_DECAY)
            }
            _ => panic!("`{}` is no call of this method", call.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::data::Parts;
    use tpgm_core::{Cpu, DType};

    fn round(method: &Method, ours: &mut Ours<Cpu>, data: &mut Data<Cpu>) {
        ours.prepare(data).unwrap();
        for &call in method.operation.calls() {
            ours.call(call, data).unwrap();
        }
    }

    #[test]
    fn every_method_runs_and_does_something_in_every_type() {
        let cpu = Cpu::with_threads(2).unwrap();
        for dtype in DType::ALL {
            let set = Model::Tiny.param_set(dtype).unwrap();
            for method in Method::all() {
                let mut data = Data::new(cpu.clone(), &set).unwrap();
                let mut ours = Ours::new(&method, cpu.clone(), &set, &data).unwrap();
                let before = data.weights.clone();
                // An average of weights that stand still would stand still; the anchors are other weights.
                if method.operation == Operation::Average {
                    data.weights.clone_from(&data.anchors);
                }
                for i in 0..2 * FLIP_EVERY {
                    round(&method, &mut ours, &mut data);
                    let after = match &ours.engine {
                        Engine::Average(ema) => ema.averages(),
                        _ => &data.weights,
                    };
                    for (after, before) in after.iter().zip(&before) {
                        let (after, before) = (after.to_f64(), before.to_f64());
                        assert!(after.iter().all(|w| w.is_finite()), "{} {dtype}", method.name);
                        // Later, a learned radius may have grown beyond the small displacements of this test.
                        assert!(i > 0 || after != before, "{} {dtype}", method.name);
                    }
                }
            }
        }
    }

    // AdamW has two moments of f32, FTP a displacement besides; what is kept per tensor or row is little.
    #[test]
    fn state_is_counted() {
        let set = Model::Tiny.param_set(DType::F32).unwrap();
        let per_param = |name: &str| {
            let method = Method::by_name(name).unwrap();
            let mut data = Data::new(Cpu::new(), &set).unwrap();
            let mut ours = Ours::new(&method, Cpu::new(), &set, &data).unwrap();
            round(&method, &mut ours, &mut data);
            ours.state_bytes().unwrap() as f64 / set.numel() as f64
        };
        for (name, bytes) in
            [("adamw", 8.0), ("adamw+ftp", 12.0), ("sgd", 4.0), ("ema", 4.0), ("project-mars", 0.0)]
        {
            let found = per_param(name);
            assert!((bytes..bytes + 0.3).contains(&found), "{name}: {found}");
        }
    }

    // The parts are those that are read: without one more, every method runs; a step and a projection leave the same bits.
    #[test]
    fn every_method_runs_with_its_own_parts_only() {
        let set = Model::Tiny.param_set(DType::F32).unwrap();
        for method in Method::all() {
            let after = [Parts::ALL, method.operation.parts()].map(|parts| {
                let mut data = Data::with(Cpu::new(), &set, parts).unwrap();
                let mut ours = Ours::new(&method, Cpu::new(), &set, &data).unwrap();
                (0..=FLIP_EVERY).for_each(|_| round(&method, &mut ours, &mut data));
                data.weights
            });
            assert_eq!(after[0], after[1], "{}", method.name);
        }
    }

    // A projection that finds its weights inside the balls writes nothing new: rounds must not start there.
    #[test]
    fn every_projection_starts_from_the_same_weights() {
        let set = Model::Tiny.param_set(DType::F32).unwrap();
        let mut data = Data::new(Cpu::new(), &set).unwrap();
        let method = Method::by_name("project-l2").unwrap();
        let mut ours = Ours::new(&method, Cpu::new(), &set, &data).unwrap();
        round(&method, &mut ours, &mut data);
        let first = data.weights.clone();
        round(&method, &mut ours, &mut data);
        assert_eq!(data.weights, first);
    }
}
