//! Calls in a CUDA graph.

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
use tpgm_core::Result;

use super::memory::Keep;
use super::{CudaDevice, failed};
use crate::device::Device;
use crate::gpu::Gpu;

/// Calls that were captured in a CUDA graph by [`Gpu::capture`]: replayed as often as one likes, for the price of one launch.
///
/// As long as it lives, no memory of the backend (and of its clones) is freed, also when the optimizer or buffer that it belongs
/// to is dropped: the graph may use it.
pub struct Captured {
    // Dropped before memory is freed.
    graph: CudaGraph,
    keep: Keep,
}

impl Captured {
    /// Queues the calls once more. What became of a step says [`Optimizer::outcome`](tpgm_core::Optimizer::outcome).
    ///
    /// # Errors
    ///
    /// [`Error::Device`](tpgm_core::Error::Device) if the device fails.
    ///
    /// # Safety
    ///
    /// Memory that the calls were lent, or that was lent to `prepare_step` since, is still there until the replay is through,
    /// and is used by nobody else but by calls that are queued on the backend's stream. Memory of the backend itself is.
    pub unsafe fn replay(&self) -> Result<()> {
        let device = self.keep.device();
        device.ready("replaying a graph")?;
        self.graph.launch().map_err(device.error("replaying a graph"))
    }
}

impl Gpu<CudaDevice> {
    /// Captures the calls that `work` makes on the backend's stream, without making them: steps of optimizers on this backend
    /// or a clone of it, and whatever else is queued there.
    ///
    /// A captured step needs its operands and options on the device: call
    /// [`Optimizer::prepare_step`](tpgm_core::Optimizer::prepare_step) with the same ones before. It returns without an
    /// outcome, whatever [`Reports`](crate::Reports) says.
    ///
    /// # Errors
    ///
    /// Those of `work`; and [`Error::Device`](tpgm_core::Error::Device) if the stream cannot be captured, as the default stream
    /// of a device, if `work` did what cannot be part of a graph, or if the device fails.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Captured> {
        let device = self.device();
        let call = "capturing calls";
        device.ready(call)?;
        let keep = Keep::new(device);
        device.stream().begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED).map_err(device.error(call))?;
        let open = Open(device);
        work()?;
        let graph = open.end().map_err(device.error(call))?;
        let graph = graph.ok_or_else(|| failed(device.name(), call, "there is no graph"))?;
        Ok(Captured { graph, keep })
    }
}

/// A capture under way, which ends also when something else went wrong.
struct Open<'a>(&'a CudaDevice);

impl Open<'_> {
    fn end(self) -> std::result::Result<Option<CudaGraph>, cudarc::driver::DriverError> {
        let stream = self.0.stream();
        std::mem::forget(self);
        stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // Whoever dropped it has an error already.
        let _ = self.0.stream().end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    }
}
