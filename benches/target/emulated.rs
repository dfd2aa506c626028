//! The kernels on the host, to try a harness without a GPU: its times say nothing about one.

use std::time::Instant;

use tpgm_core::Result;
use tpgm_cuda::{Device, Emulator};

use super::Timed;

impl Timed for Emulator {
    type Moment = Instant;

    // Calls are done when they return.
    fn moment(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn seconds(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64())
    }

    fn copy(&self, from: &Self::Memory, to: &mut Self::Memory, bytes: usize) -> Result<()> {
        let mut host = vec![0; bytes];
        self.read(from, 0, &mut host)?;
        self.write(to, 0, &host)
    }

    fn model(&self) -> String {
        self.name()
    }

    fn driver(&self) -> Option<String> {
        None
    }
}
