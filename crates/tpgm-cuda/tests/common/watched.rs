//! A device whose calls are counted, and that can be told to capture and how many blocks it runs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use tpgm_core::Result;
use tpgm_cuda::Device;

/// Everything is the inner device's. Clones share their counts.
#[derive(Debug, Clone)]
pub(crate) struct Watched<D> {
    inner: D,
    /// Blocks of a kernel, whatever the size of the inner device.
    blocks: Option<usize>,
    pub(crate) calls: Arc<Calls>,
}

/// What was called how often.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) events: AtomicUsize,
    pub(crate) records: AtomicUsize,
    pub(crate) waits: AtomicUsize,
    pub(crate) questions: AtomicUsize,
    pub(crate) copies: AtomicUsize,
    pub(crate) launches: AtomicUsize,
    /// Kernels that were asked for, which loads them.
    pub(crate) kernels: Mutex<Vec<&'static str>>,
    /// What the device says when it is asked whether it captures; it goes on all the same.
    pub(crate) capturing: AtomicBool,
}

impl<D> Watched<D> {
    pub(crate) fn new(inner: D) -> Self {
        Self { inner, blocks: None, calls: Arc::default() }
    }

    /// The same device, which runs so many blocks.
    pub(crate) fn blocks(self, blocks: usize) -> Self {
        Self { blocks: Some(blocks), ..self }
    }
}

impl Calls {
    /// Everything but launches and the making of events.
    pub(crate) fn others(&self) -> usize {
        [&self.records, &self.waits, &self.questions, &self.copies]
            .iter()
            .map(|calls| calls.load(Relaxed))
            .sum()
    }
}

fn count(calls: &AtomicUsize) {
    calls.fetch_add(1, Relaxed);
}

impl<D: Device> Device for Watched<D> {
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
        count(&self.calls.copies);
        self.inner.write(memory, offset, bytes)
    }

    fn read(&self, memory: &D::Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        count(&self.calls.copies);
        self.inner.read(memory, offset, bytes)
    }

    fn staging(&self, bytes: usize) -> Result<D::Staging> {
        self.inner.staging(bytes)
    }

    fn contents<'a>(&self, staging: &'a mut D::Staging) -> Result<&'a mut [u8]> {
        self.inner.contents(staging)
    }

    fn copy_in(&self, from: &D::Staging, to: &mut D::Memory, bytes: usize) -> Result<()> {
        count(&self.calls.copies);
        self.inner.copy_in(from, to, bytes)
    }

    fn copy_out(&self, from: &D::Memory, to: &mut D::Staging, bytes: usize) -> Result<()> {
        count(&self.calls.copies);
        self.inner.copy_out(from, to, bytes)
    }

    fn event(&self) -> Result<D::Event> {
        count(&self.calls.events);
        self.inner.event()
    }

    fn record(&self, event: &D::Event) -> Result<()> {
        count(&self.calls.records);
        self.inner.record(event)
    }

    fn reached(&self, event: &D::Event) -> Result<bool> {
        count(&self.calls.questions);
        self.inner.reached(event)
    }

    fn wait(&self, event: &D::Event) -> Result<()> {
        count(&self.calls.waits);
        self.inner.wait(event)
    }

    fn capturing(&self) -> Result<bool> {
        Ok(self.calls.capturing.load(Relaxed))
    }

    fn lag(&self) -> usize {
        self.inner.lag()
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    fn resident_blocks(&self, kernel: &'static str) -> Result<usize> {
        self.calls.kernels.lock().unwrap().push(kernel);
        self.blocks.map_or_else(|| self.inner.resident_blocks(kernel), Ok)
    }

    fn launch(&self, kernel: &'static str, blocks: usize, argument: u64) -> Result<()> {
        count(&self.calls.launches);
        self.inner.launch(kernel, blocks, argument)
    }

    fn launch_table(&self, kernel: &'static str, blocks: usize, table: &[u64]) -> Result<()> {
        count(&self.calls.launches);
        self.inner.launch_table(kernel, blocks, table)
    }
}
