//! A device that runs the kernels, by its own clock.

use std::time::{Duration, Instant};

use anyhow::Result;
use tpgm_cuda::{Device, Gpu};

use super::Target;
use super::counted::Counted;
use crate::Timing;
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

    /// Queues a copy within the device of `bytes` bytes that begin at `offset`, to the start of `to`. Both memories are large
    /// enough.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn copy(
        &self,
        from: &Self::Memory,
        offset: usize,
        to: &mut Self::Memory,
        bytes: usize,
    ) -> tpgm_core::Result<()>;

    /// The model of the device, for example `NVIDIA H100`.
    fn model(&self) -> String;

    /// Version of the driver, if it can be found out.
    fn driver(&self) -> Option<String>;

    /// Bytes of its memory that are free, if it can say.
    fn available(&self) -> Option<u64>;
}

/// The CUDA backend on a device.
pub struct GpuTarget<D: Timed> {
    device: Counted<D>,
    model: String,
    driver: Option<String>,
    elements: usize,
    from: D::Memory,
    to: D::Memory,
    /// Where what is read goes: small, so that little is left to be written back.
    sink: D::Memory,
    /// Copies before what is timed.
    lead: usize,
}

/// For how long the device is kept busy before what is timed: longer than the host needs to queue a step. The same number is in
/// `torch_peer.py`.
const LEAD: f64 = 10e-3;
/// No more copies than that: the driver holds about a thousand calls, and a call beyond those would wait.
const MOST: usize = 100;
/// Copies that wake the device up before one is timed.
const WAKE_UP: usize = 10;
/// Bytes that are read at once.
const PIECE: usize = 4 << 20;
/// No device copies its arrays in less: a clock that says so stands still.
const CREDIBLE: f64 = 10e-6;

impl<D: Timed> GpuTarget<D> {
    /// Elements of the two arrays of the copy: 512 MiB each, many times the L2 cache of today's GPUs.
    pub const FLOOR_ELEMENTS: usize = 1 << 27;

    /// A target with arrays of `floor_elements` f32 for the copy; without any, there is no floor, nothing is scrubbed, and the
    /// device is not kept busy.
    ///
    /// # Errors
    ///
    /// If the device has no memory for them.
    pub fn new(device: D, floor_elements: usize) -> Result<Self> {
        let array = || device.allocate(4 * floor_elements);
        let (from, to) = (array()?, array()?);
        let sink = device.allocate(PIECE.min(4 * floor_elements))?;
        let (model, driver) = (device.model(), device.driver());
        let device = Counted::new(device);
        let mut target = Self { device, model, driver, elements: floor_elements, from, to, sink, lead: 0 };
        if floor_elements > 0 {
            for _ in 0..WAKE_UP {
                target.copy()?;
            }
            let start = target.device.inner().moment()?;
            target.copy()?;
            let end = target.device.inner().moment()?;
            target.lead = copies(target.device.inner().seconds(&start, &end)?);
        }
        Ok(target)
    }

    /// Queues a copy of a whole array.
    fn copy(&mut self) -> tpgm_core::Result<()> {
        self.device.inner().copy(&self.from, 0, &mut self.to, 4 * self.elements)
    }

    /// Queues what comes before something is timed. Copies keep the device busy, and its clocks up, while the host queues what is
    /// timed: the time between the events around it is then the device's and not the host's. A read of a whole array, behind
    /// them, drives everything else out of the L2 cache and leaves nothing there that the device would have to write back
    /// meanwhile, but for one small piece.
    fn get_ready(&mut self) -> tpgm_core::Result<()> {
        for _ in 0..self.lead {
            self.copy()?;
        }
        let Self { device, from, sink, .. } = self;
        let all = 4 * self.elements;
        (0..all).step_by(PIECE).try_for_each(|at| device.inner().copy(from, at, sink, PIECE.min(all - at)))
    }
}

/// How many copies keep the device busy, of which one takes so long.
fn copies(seconds: f64) -> usize {
    if seconds > CREDIBLE { ((LEAD / seconds).ceil() as usize).min(MOST) } else { 1 }
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
        self.get_ready()?;
        let start = self.device.inner().moment()?;
        self.copy()?;
        let end = self.device.inner().moment()?;
        Ok(self.device.inner().seconds(&start, &end)?)
    }

    fn time(&mut self, work: &mut dyn FnMut() -> tpgm_core::Result<()>) -> Result<Timing> {
        self.get_ready()?;
        let start = self.device.inner().moment()?;
        let begun = Instant::now();
        work()?;
        let host = begun.elapsed().as_secs_f64();
        let end = self.device.inner().moment()?;
        Ok(Timing { seconds: self.device.inner().seconds(&start, &end)?, host: Some(host) })
    }

    fn parts(
        &mut self,
        _: &'static str,
        work: &mut dyn FnMut() -> tpgm_core::Result<()>,
    ) -> Result<Vec<(&'static str, f64)>> {
        self.get_ready()?;
        Ok(self.device.kernels_of(work)?)
    }

    fn launches(&self) -> Option<usize> {
        Some(self.device.launches())
    }

    fn pause(&self) -> Duration {
        Duration::ZERO
    }

    fn available(&self) -> Option<u64> {
        self.device.inner().available()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn what_keeps_the_device_busy_and_scrubs_its_cache_is_not_timed() {
        let mut target = GpuTarget::new(Fake::default(), 25).unwrap();
        let device = target.device.clone();
        // The copies that the target made to know its speed: by the fake's clock one takes 100 s.
        assert_eq!(device.inner().moment().unwrap(), (WAKE_UP + 1) * 100);
        let mut work = || {
            std::thread::sleep(Duration::from_millis(5));
            device.launch("kernel", 7, 0)
        };
        let Timing { seconds, host } = target.time(&mut work).unwrap();
        assert_eq!(seconds, 7.0);
        assert!(host.is_some_and(|host| (5e-3..5.0).contains(&host)), "{host:?}");
        assert_eq!(target.floor(Floor::Copy).unwrap(), 100.0);
        assert_eq!(target.parts("call", &mut work).unwrap(), [("kernel", 7.0)]);
        assert_eq!(target.launches(), Some(2));
        // Before each a copy and a read of an array, 100 bytes each, and the floor's own copy.
        let before = (WAKE_UP + 1) * 100;
        assert_eq!(target.device.inner().moment().unwrap(), before + 3 * 200 + 100 + 7 + 7);
        assert_eq!((target.device(), target.driver()), ("Fake 1", Some("1.2")));
        assert_eq!((target.floors(), target.floor_elements()), (&[Floor::Copy][..], 25));
        assert_eq!((target.pause(), target.available()), (Duration::ZERO, Some(1000)));
    }

    #[test]
    fn copies_last_longer_than_the_host_needs() {
        // 1 GiB at 3 TB/s, and slower than the lead.
        assert_eq!([copies(0.36e-3), copies(0.5)], [28, 1]);
        assert_eq!([copies(0.0), copies(11e-6)], [1, MOST]);
    }

    // Whole arrays are read, in pieces that do not overlap.
    #[test]
    fn every_byte_is_read_once() {
        let elements = (2 * PIECE + 12) / 4;
        let mut target = GpuTarget::new(Fake::default(), elements).unwrap();
        target.lead = 0;
        let before = target.device.inner().moment().unwrap();
        target.get_ready().unwrap();
        assert_eq!(target.device.inner().moment().unwrap() - before, 4 * elements);
    }

    #[test]
    fn without_arrays_there_is_no_floor() {
        let mut target = GpuTarget::new(Fake::default(), 0).unwrap();
        assert_eq!(target.floors(), []);
        assert_eq!(target.time(&mut || Ok(())).unwrap().seconds, 0.0);
    }
}
