//! A device that counts its launches and, when asked, times each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tpgm_core::Result;
use tpgm_cuda::Device;

use super::Timed;

/// A kernel with the moments before and after it.
type Span<D> = (&'static str, <D as Timed>::Moment, <D as Timed>::Moment);

/// Hands every call on to a device. Clones share their counts.
pub struct Counted<D: Timed> {
    device: D,
    launches: Arc<AtomicUsize>,
    /// Filled while there is a list.
    spans: Arc<Mutex<Option<Vec<Span<D>>>>>,
}

impl<D: Timed> Clone for Counted<D> {
    fn clone(&self) -> Self {
        let Self { device, launches, spans } = self;
        Self { device: device.clone(), launches: launches.clone(), spans: spans.clone() }
    }
}

impl<D: Timed> Counted<D> {
    /// Starts to count.
    pub(super) fn new(device: D) -> Self {
        Self { device, launches: Arc::default(), spans: Arc::default() }
    }

    /// The device itself.
    pub(super) fn inner(&self) -> &D {
        &self.device
    }

    /// Launches so far.
    pub(super) fn launches(&self) -> usize {
        self.launches.load(Ordering::Relaxed)
    }

    /// The kernels that `work` starts, in order, with their seconds. Waits for them.
    pub(super) fn kernels_of(
        &self,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<(&'static str, f64)>> {
        *self.spans() = Some(Vec::new());
        let result = work();
        let spans = self.spans().take().unwrap_or_default();
        result?;
        spans.iter().map(|(kernel, start, end)| Ok((*kernel, self.device.seconds(start, end)?))).collect()
    }

    /// A panic elsewhere leaves the list whole.
    fn spans(&self) -> MutexGuard<'_, Option<Vec<Span<D>>>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Timed> Counted<D> {
    /// Makes a launch, and takes its time if times are taken.
    fn counted(&self, kernel: &'static str, launch: impl FnOnce() -> Result<()>) -> Result<()> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        let mut spans = self.spans();
        let Some(spans) = spans.as_mut() else { return launch() };
        let start = self.device.moment()?;
        launch()?;
        spans.push((kernel, start, self.device.moment()?));
        Ok(())
    }
}

impl<D: Timed> Device for Counted<D> {
    type Memory = D::Memory;
    type Staging = D::Staging;
    type Event = D::Event;

    fn launch(&self, kernel: &'static str, blocks: usize, argument: u64) -> Result<()> {
        self.counted(kernel, || self.device.launch(kernel, blocks, argument))
    }

    fn launch_table(&self, kernel: &'static str, blocks: usize, table: &[u64]) -> Result<()> {
        self.counted(kernel, || self.device.launch_table(kernel, blocks, table))
    }

    fn name(&self) -> String {
        self.device.name()
    }

    fn allocate(&self, bytes: usize) -> Result<D::Memory> {
        self.device.allocate(bytes)
    }

    fn address(&self, memory: &D::Memory) -> u64 {
        self.device.address(memory)
    }

    fn write(&self, memory: &mut D::Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        self.device.write(memory, offset, bytes)
    }

    fn read(&self, memory: &D::Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.device.read(memory, offset, bytes)
    }

    fn staging(&self, bytes: usize) -> Result<D::Staging> {
        self.device.staging(bytes)
    }

    fn contents<'a>(&self, staging: &'a mut D::Staging) -> Result<&'a mut [u8]> {
        self.device.contents(staging)
    }

    fn copy_in(&self, from: &D::Staging, to: &mut D::Memory, bytes: usize) -> Result<()> {
        self.device.copy_in(from, to, bytes)
    }

    fn copy_out(&self, from: &D::Memory, to: &mut D::Staging, bytes: usize) -> Result<()> {
        self.device.copy_out(from, to, bytes)
    }

    fn event(&self) -> Result<D::Event> {
        self.device.event()
    }

    fn record(&self, event: &D::Event) -> Result<()> {
        self.device.record(event)
    }

    fn reached(&self, event: &D::Event) -> Result<bool> {
        self.device.reached(event)
    }

    fn wait(&self, event: &D::Event) -> Result<()> {
        self.device.wait(event)
    }

    fn capturing(&self) -> Result<bool> {
        self.device.capturing()
    }

    fn lag(&self) -> usize {
        self.device.lag()
    }

    fn threads(&self) -> usize {
        self.device.threads()
    }

    fn resident_blocks(&self, kernel: &'static str) -> Result<usize> {
        self.device.resident_blocks(kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn launches_are_counted_over_all_clones_and_timed_one_by_one() {
        let device = Counted::new(Fake::default());
        let clone = device.clone();
        clone.launch("first", 7, 0).unwrap();
        let kernels = device.kernels_of(&mut || {
            clone.launch("second", 3, 0)?;
            device.launch("first", 5, 0)
        });
        assert_eq!(kernels.unwrap(), [("second", 3.0), ("first", 5.0)]);
        assert_eq!(device.launches(), 3);
        assert_eq!(device.kernels_of(&mut || Ok(())).unwrap(), []);
    }

    #[test]
    fn an_error_comes_through_and_ends_the_list() {
        let device = Counted::new(Fake::default());
        let error = device.kernels_of(&mut || {
            device.launch("first", 1, 0)?;
            device.launch("missing", 1, 0)
        });
        assert!(error.unwrap_err().to_string().contains("`missing`"));
        assert!(device.spans().is_none());
    }
}
