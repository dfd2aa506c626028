//! What cudarc has to know of work on candle's memory that it does not see.
//!
//! Where a program has made streams of its own (`Device::new_cuda_with_stream` does), cudarc keeps two events with every
//! tensor, the last read and the last write, so that one stream waits for what another has queued. candle's default device
//! has one stream per thread and no such events in use: there nothing here asks the driver for anything.

use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtrMut};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

/// True if cudarc orders the work of several streams.
pub(crate) fn managed(stream: &CudaStream) -> bool {
    stream.context().is_managing_stream_synchronization()
}

/// Tells cudarc that `tensors` are written by what has been queued on `stream`, theirs: two waits and a record for each.
pub(crate) fn written<'a>(
    stream: &CudaStream,
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> candle_core::Result<()> {
    if !managed(stream) {
        return Ok(());
    }
    tensors.into_iter().try_for_each(|tensor| tensor.inplace_op1(&Written))
}

/// Asks for the address, to write there, and leaves.
struct Written;

impl InplaceOp1 for Written {
    fn name(&self) -> &'static str {
        "written"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("a tensor has left its GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        let stream = storage.device.cuda_stream();
        match &mut storage.slice {
            CudaStorageSlice::F64(slice) => drop(slice.device_ptr_mut(&stream)),
            CudaStorageSlice::F32(slice) => drop(slice.device_ptr_mut(&stream)),
            CudaStorageSlice::F16(slice) => drop(slice.device_ptr_mut(&stream)),
            CudaStorageSlice::BF16(slice) => drop(slice.device_ptr_mut(&stream)),
            _ => {}
        }
        Ok(())
    }
}
