//! A device that runs the kernels, by its own clock.

use anyhow::Result;
use tpgm_cuda::{Device, Gpu};

use super::Target;
use super::counted::Counted;
use crate::floors::Floor;

/// What a device must be able to do beside running kernels to be measured.
pub trait Timed: Device {
    /// A moment in the order of the device's calls, by its clock.
    type Moment: Send;

    /// The moment at which the calls made so far are done.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn moment(&self) -> tpgm_core::Result<Self::Moment>;

    /// Seconds from one moment to a later one. Waits for both.
    ///
    /// # Errors
    ///
    /// When the device fails, also in an earlier call.
    fn seconds(&self, from: &Self::Moment, to: &Self::Moment) -> tpgm_core::Result<f64>;

    /// Queues a copy within the device of the first `bytes` bytes.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn copy(&self, from: &Self::Memory, to: &mut Self::Memory, bytes: usize) -> tpgm_core::Result<()>;

    /// The model of the device, for example `NVIDIA H100`.
    fn model(&self) -> String;

    /// Version of the driver, if it can be found out.
    fn driver(&self) -> Option<String>;
}

/// The CUDA backend on a device.
pub struct GpuTarget<D: Timed> {
    device: Counted<D>,
    model: String,
    driver: Option<String>,
    elements: usize,
    from: D::Memory,
    to: D::Memory,
}

impl<D: Timed> GpuTarget<D> {
    /// Elements of the two arrays of the copy: 512 MiB each, many times the L2 cache of today's GPUs.
    pub const FLOOR_ELEMENTS: usize = 1 << 27;

    /// A target with arrays of `floor_elements` f32 for the copy; without any, there is no floor and nothing is scrubbed.
    ///
    /// # Errors
    ///
    /// If the device has no memory for them.
    pub fn new(device: D, floor_elements: usize) -> Result<Self> {
        let array = || device.allocate(4 * floor_elements);
        let (from, to) = (array()?, array()?);
        let (model, driver) = (device.model(), device.driver());
        Ok(Self { device: Counted::new(device), model, driver, elements: floor_elements, from, to })
    }

    /// Queues a copy.
    ///
    /// Before something is timed it does two things: its writes drive everything else out of the L2 cache, and it keeps the
    /// device busy for longer than the host needs to start a step, so that the time between the events around the step is
    /// the device's and not the host's.
    fn copy(&mut self) -> tpgm_core::Result<()> {
        self.device.inner().copy(&self.from, &mut self.to, 4 * self.elements)
    }
}

impl<D: Timed> Target for GpuTarget<D> {
    type Backend = Gpu<Counted<D>>;

    fn backend(&self) -> Self::Backend {
        Gpu::on(self.device.clone())
    }

    fn device(&self) -> &str {
        &self.model
    }

    fn driver(&self) -> Option<&str> {
        self.driver.as_deref()
    }

    fn floors(&self) -> &'static [Floor] {
        match self.elements {
            0 => &[],
            _ => &[Floor::Copy],
        }
    }

    fn floor_elements(&self) -> usize {
        self.elements
    }

    fn floor(&mut self, _: Floor) -> Result<f64> {
        self.copy()?;
        let start = self.device.inner().moment()?;
        self.copy()?;
        let end = self.device.inner().moment()?;
        Ok(self.device.inner().seconds(&start, &end)?)
    }

    fn time(&mut self, work: &mut dyn FnMut() -> tpgm_core::Result<()>) -> Result<f64> {
        self.copy()?;
        let start = self.device.inner().moment()?;
        work()?;
        let end = self.device.inner().moment()?;
        Ok(self.device.inner().seconds(&start, &end)?)
    }

    fn parts(
        &mut self,
        _: &'static str,
        work: &mut dyn FnMut() -> tpgm_core::Result<()>,
    ) -> Result<Vec<(&'static str, f64)>> {
        self.copy()?;
        Ok(self.device.kernels_of(work)?)
    }

    fn launches(&self) -> Option<usize> {
        Some(self.device.launches())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn what_scrubs_the_cache_is_not_timed() {
        let mut target = GpuTarget::new(Fake::default(), 25).unwrap();
        let device = target.device.clone();
        let mut work = || device.launch("kernel", 7, 0);
        assert_eq!(target.time(&mut work).unwrap(), 7.0);
        assert_eq!(target.floor(Floor::Copy).unwrap(), 100.0);
        assert_eq!(target.parts("call", &mut work).unwrap(), [("kernel", 7.0)]);
        assert_eq!(target.launches(), Some(2));
        assert_eq!(target.device.inner().moment().unwrap(), 4 * 100 + 7 + 7);
        assert_eq!((target.device(), target.driver()), ("Fake 1", Some("1.2")));
        assert_eq!((target.floors(), target.floor_elements()), (&[Floor::Copy][..], 25));
    }

    #[test]
    fn without_arrays_there_is_no_floor() {
        assert_eq!(GpuTarget::new(Fake::default(), 0).unwrap().floors(), []);
    }
}
