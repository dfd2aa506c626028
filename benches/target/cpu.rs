//! The processor, by the host's clock.

use std::time::{Duration, Instant};

use anyhow::Result;
use tpgm_core::Cpu;

use super::Target;
use crate::floors::{Floor, Floors};
use crate::{Timing, machine};

/// The CPU backend.
#[derive(Debug)]
pub struct CpuTarget {
    cpu: Cpu,
    pool: rayon::ThreadPool,
    floors: Floors,
}

impl CpuTarget {
    /// Elements of the floors' arrays: 256 MiB each, larger than the caches of today's processors.
    pub const FLOOR_ELEMENTS: usize = 1 << 26;

    /// `threads` threads for the backend and as many for the floors, whose arrays have `floor_elements` elements.
    ///
    /// # Errors
    ///
    /// If the threads cannot be started.
    pub fn new(threads: usize, floor_elements: usize) -> Result<Self> {
        Ok(Self {
            cpu: Cpu::with_threads(threads)?,
            pool: rayon::ThreadPoolBuilder::new().num_threads(threads).build()?,
            floors: Floors::new(floor_elements, threads),
        })
    }
}

impl Target for CpuTarget {
    type Backend = Cpu;

    fn backend(&self) -> Cpu {
        self.cpu.clone()
    }

    fn device(&self) -> &str {
        "cpu"
    }

    fn driver(&self) -> Option<&str> {
        None
    }

    fn floors(&self) -> &'static [Floor] {
        &Floor::ALL
    }

    fn floor_elements(&self) -> usize {
        self.floors.len()
    }

    // The arrays do not fit in a cache, so there is nothing to scrub.
    fn floor(&mut self, floor: Floor) -> Result<f64> {
        let floors = &mut self.floors;
        Ok(self.pool.install(|| {
            let start = Instant::now();
            floors.run(floor);
            start.elapsed().as_secs_f64()
        }))
    }

    fn time(&mut self, work: &mut dyn FnMut() -> tpgm_core::Result<()>) -> Result<Timing> {
        self.pool.install(|| self.floors.read());
        let start = Instant::now();
        work()?;
        Ok(Timing { seconds: start.elapsed().as_secs_f64(), host: None })
    }

    fn parts(
        &mut self,
        name: &'static str,
        work: &mut dyn FnMut() -> tpgm_core::Result<()>,
    ) -> Result<Vec<(&'static str, f64)>> {
        Ok(vec![(name, self.time(work)?.seconds)])
    }

    fn launches(&self) -> Option<usize> {
        None
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(20)
    }

    fn available(&self) -> Option<u64> {
        machine::available_memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_and_errors_come_through() {
        let mut target = CpuTarget::new(2, 4096).unwrap();
        for &floor in target.floors() {
            assert!(target.floor(floor).unwrap() > 0.0);
        }
        let time = target.time(&mut || {
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        });
        let Timing { seconds, host } = time.unwrap();
        assert!(seconds >= 5e-3 && host.is_none(), "{seconds} {host:?}");
        let error = target.time(&mut || Err(tpgm_core::Error::MissingSlot { key: "some slot".into() }));
        assert!(error.unwrap_err().to_string().contains("some slot"));
    }
}
