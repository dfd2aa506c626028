//! cudarc's slices, lent to the backend.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};
use tpgm_core::{Element, Result};

use super::{CudaDevice, failed};
use crate::device::Device;
use crate::gpu::Gpu;
use crate::memory::{View, ViewMut};

/// Memory of a [`CudaSlice`] that the backend reads: see [`Gpu::lend`].
///
/// cudarc orders uses of a slice on several streams by events: what another stream does with it next waits for what was
/// queued here *until this is dropped*. So it lives until the calls that read the memory have been made; a reference to it
/// goes where a [`View`] is asked for.
#[must_use]
pub struct Lent<'a> {
    view: View<'a>,
    _queued: Option<SyncOnDrop<'a>>,
}

/// Memory of a [`CudaSlice`] that the backend writes: see [`Gpu::lend_mut`]. As [`Lent`], with [`ViewMut`] for [`View`].
#[must_use]
pub struct LentMut<'a> {
    view: ViewMut<'a>,
    _queued: Option<SyncOnDrop<'a>>,
}

impl Lent<'_> {
    /// All elements.
    pub fn view(&self) -> View<'_> {
        self.view
    }
}

impl LentMut<'_> {
    /// All elements, to be written.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        self.view.reborrow()
    }
}

impl<'a> From<&'a Lent<'_>> for View<'a> {
    fn from(lent: &'a Lent<'_>) -> Self {
        lent.view()
    }
}

impl<'a> From<&'a mut LentMut<'_>> for ViewMut<'a> {
    fn from(lent: &'a mut LentMut<'_>) -> Self {
        lent.view_mut()
    }
}

impl Gpu<CudaDevice> {
    /// Lends memory to be read. It may be lent for one call or for many: other streams wait for the moment when it is given
    /// back.
    ///
    /// While calls are captured in a graph, it is lent without a word to other streams, and waits for none of them: graphs
    /// know nothing of cudarc's events. What other streams have done with the memory must be over then. Slices that were made in
    /// the capture itself cannot be lent.
    ///
    /// # Errors
    ///
    /// [`Error::Device`](tpgm_core::Error::Device) if the memory belongs to another stream, or the device fails.
    pub fn lend<'a, T: Element + DeviceRepr>(&self, memory: &'a CudaSlice<T>) -> Result<Lent<'a>> {
        let device = self.device();
        let stream = memory.stream();
        device.check_stream(stream)?;
        let (address, queued) = match device.aside()? {
            None => {
                let (address, queued) = memory.device_ptr(stream);
                (address, Some(queued))
            }
            Some(aside) => {
                let (address, queued) = memory.device_ptr(&aside);
                std::mem::forget(queued);
                (address, None)
            }
        };
        // SAFETY: the memory is borrowed for `'a`, of this type and length, and used on the backend's own stream.
        let view = unsafe { View::from_raw(address, memory.len(), T::DTYPE) };
        Ok(Lent { view, _queued: queued })
    }

    /// Lends memory to be written. Otherwise as [`Gpu::lend`].
    ///
    /// # Errors
    ///
    /// As [`Gpu::lend`].
    pub fn lend_mut<'a, T: Element + DeviceRepr>(
        &'a self,
        memory: &'a mut CudaSlice<T>,
    ) -> Result<LentMut<'a>> {
        let device = self.device();
        device.check_stream(memory.stream())?;
        let len = memory.len();
        let (address, queued) = match device.aside()? {
            None => {
                let (address, queued) = memory.device_ptr_mut(device.stream());
                (address, Some(queued))
            }
            Some(aside) => {
                let (address, queued) = memory.device_ptr_mut(&aside);
                std::mem::forget(queued);
                (address, None)
            }
        };
        // SAFETY: as above, and the borrow is exclusive.
        let view = unsafe { ViewMut::from_raw(address, len, T::DTYPE) };
        Ok(LentMut { view, _queued: queued })
    }
}

impl CudaDevice {
    /// While calls are captured: a stream for the waits that cudarc makes whenever it is asked for an address, and that would
    /// make the capture invalid. Nothing else happens on it.
    fn aside(&self) -> Result<Option<Arc<CudaStream>>> {
        let context = self.stream().context();
        if !context.is_managing_stream_synchronization() || !self.capturing()? {
            return Ok(None);
        }
        context.new_stream().map(Some).map_err(self.error("making a stream"))
    }

    /// Memory of another stream is not ordered with the backend's calls.
    fn check_stream(&self, other: &Arc<CudaStream>) -> Result<()> {
        self.ready("lending memory")?;
        let stream = self.stream();
        let same = Arc::ptr_eq(other, stream)
            || (other.cu_stream() == stream.cu_stream()
                && other.context().ordinal() == stream.context().ordinal());
        if same {
            return Ok(());
        }
        let reason =
            "the memory belongs to another stream or device; make the backend with `Cuda::with_stream`";
        Err(failed(self.name(), "lending memory", reason))
    }
}
