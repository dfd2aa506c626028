//! The kernels on the host, to try a harness without a GPU: its times say nothing about one.

use std::time::Instant;

use tpgm_core::Result;
use tpgm_cuda::{Device, Emulator};

use super::Timed;
use crate::machine;

impl Timed for Emulator {
    type Moment = Instant;

    // Calls are done when they return.
    fn moment(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn seconds(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64())
    }

    fn copy(&self, from: &Self::Memory, offset: usize, to: &mut Self::Memory, bytes: usize) -> Result<()> {
        let mut host = vec![0; bytes];
        self.read(from, offset, &mut host)?;
        self.write(to, 0, &host)
    }

    fn model(&self) -> String {
        self.name()
    }

    fn driver(&self) -> Option<String> {
        None
    }

    fn available(&self) -> Option<u64> {
        machine::available_memory()
    }
}

#[cfg(test)]
mod tests {
    use tpgm_core::DType;

    use super::*;
    use crate::data::Data;
    use crate::{GpuTarget, Method, Model, Operation, Ours, Target};

    // `TPGM_EMULATOR` names the library that `cargo xtask emulate` builds.
    #[test]
    #[allow(clippy::print_stderr, reason = "a skipped test says why")]
    fn a_step_takes_two_launches_and_every_other_call_one() {
        let emulator = match Emulator::from_env() {
            Ok(emulator) => emulator,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let mut target = GpuTarget::new(emulator, 0).unwrap();
        let set = Model::Tiny.param_set(DType::F32).unwrap();
        for method in Method::all() {
            let mut data = Data::new(target.backend(), &set).unwrap();
            let mut ours = Ours::new(&method, target.backend(), &set, &data).unwrap();
            let expected = match method.operation {
                Operation::Step(..) => 2,
                _ => method.operation.calls().len(),
            };
            ours.prepare(&mut data).unwrap();
            let before = target.launches().unwrap();
            for &call in method.operation.calls() {
                let time = target.time(&mut || ours.call(call, &mut data)).unwrap();
                assert!(time.seconds > 0.0 && time.host.is_some(), "{}", method.name);
            }
            assert_eq!(target.launches().unwrap() - before, expected, "{}", method.name);
        }
    }
}
