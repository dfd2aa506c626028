//! A device for tests: no memory, and a clock that its calls move on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tpgm_core::{Error, Result};
use tpgm_cuda::Device;

use super::Timed;

/// Takes one second for each block of a launch and for each byte of a copy.
#[derive(Debug, Clone, Default)]
pub(super) struct Fake {
    clock: Arc<AtomicUsize>,
}

impl Timed for Fake {
    type Moment = usize;

    fn moment(&self) -> Result<usize> {
        Ok(self.clock.load(Ordering::Relaxed))
    }

    fn seconds(&self, from: &usize, to: &usize) -> Result<f64> {
        Ok((to - from) as f64)
    }

    fn copy(&self, (): &(), _: usize, (): &mut (), bytes: usize) -> Result<()> {
        self.clock.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn model(&self) -> String {
        "Fake 1".into()
    }

    fn driver(&self) -> Option<String> {
        Some("1.2".into())
    }

    fn available(&self) -> Option<u64> {
        Some(1000)
    }
}

impl Device for Fake {
    type Memory = ();
    type Staging = Vec<u8>;
    type Event = ();

    fn name(&self) -> String {
        "fake".into()
    }

    fn allocate(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn address(&self, (): &()) -> u64 {
        0
    }

    fn write(&self, (): &mut (), _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&self, (): &(), _: usize, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn staging(&self, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn contents<'a>(&self, staging: &'a mut Vec<u8>) -> Result<&'a mut [u8]> {
        Ok(staging)
    }

    fn copy_in(&self, _: &Vec<u8>, (): &mut (), _: usize) -> Result<()> {
        Ok(())
    }

    fn copy_out(&self, (): &(), _: &mut Vec<u8>, _: usize) -> Result<()> {
        Ok(())
    }

    fn event(&self) -> Result<()> {
        Ok(())
    }

    fn record(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn reached(&self, (): &()) -> Result<bool> {
        Ok(true)
    }

    fn wait(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn capturing(&self) -> Result<bool> {
        Ok(false)
    }

    fn lag(&self) -> usize {
        1
    }

    fn threads(&self) -> usize {
        32
    }

    fn resident_blocks(&self, _: &'static str) -> Result<usize> {
        Ok(4)
    }

    fn launch(&self, kernel: &'static str, blocks: usize, _: u64) -> Result<()> {
        if kernel == "missing" {
            let (device, call) = (self.name(), "kernel `missing`".into());
            return Err(Error::Device { device, call, reason: "there is none".into() });
        }
        self.clock.fetch_add(blocks, Ordering::Relaxed);
        Ok(())
    }

    fn launch_table(&self, kernel: &'static str, blocks: usize, _: &[u64]) -> Result<()> {
        self.launch(kernel, blocks, 0)
    }
}
