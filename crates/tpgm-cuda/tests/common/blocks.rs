//! A device that runs a given number of blocks, whatever its size.

use tpgm_core::Result;
use tpgm_cuda::Device;

/// Everything but the number of blocks is the inner device's.
#[derive(Debug, Clone)]
pub(crate) struct Blocks<D> {
    pub(crate) inner: D,
    pub(crate) blocks: usize,
}

impl<D: Device> Device for Blocks<D> {
    type Memory = D::Memory;
    type Staging = D::Staging;
    type Event = D::Event;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn allocate(&self, bytes: usize) -> Result<D::Memory> {
        self.inner.allocate(bytes)
    }

    fn address(&self, memory: &D::Memory) -> u64 {
        self.inner.address(memory)
    }

    fn write(&self, memory: &mut D::Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        self.inner.write(memory, offset, bytes)
    }

    fn read(&self, memory: &D::Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.inner.read(memory, offset, bytes)
    }

    fn staging(&self, bytes: usize) -> Result<D::Staging> {
        self.inner.staging(bytes)
    }

    fn contents<'a>(&self, staging: &'a mut D::Staging) -> Result<&'a mut [u8]> {
        self.inner.contents(staging)
    }

    fn copy_in(&self, from: &D::Staging, to: &mut D::Memory, bytes: usize) -> Result<()> {
        self.inner.copy_in(from, to, bytes)
    }

    fn copy_out(&self, from: &D::Memory, to: &mut D::Staging, bytes: usize) -> Result<()> {
        self.inner.copy_out(from, to, bytes)
    }

    fn event(&self) -> Result<D::Event> {
        self.inner.event()
    }

    fn record(&self, event: &D::Event) -> Result<()> {
        self.inner.record(event)
    }

    fn reached(&self, event: &D::Event) -> Result<bool> {
        self.inner.reached(event)
    }

    fn wait(&self, event: &D::Event) -> Result<()> {
        self.inner.wait(event)
    }

    fn capturing(&self) -> Result<bool> {
        self.inner.capturing()
    }

    fn lag(&self) -> usize {
        self.inner.lag()
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    fn resident_blocks(&self, _: &'static str) -> Result<usize> {
        Ok(self.blocks)
    }

    fn launch(&self, kernel: &'static str, blocks: usize, argument: u64) -> Result<()> {
        self.inner.launch(kernel, blocks, argument)
    }
}
