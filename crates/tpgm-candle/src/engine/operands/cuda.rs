//! Operands in the memory of a GPU, as addresses.
//!
//! A pass is queued on candle's own stream, behind the work that made its operands and before the work that will use its
//! results. No lock could last until it has run, so none is nested: read locks keep the memory where it is while the pass
//! is queued, and the stream does the rest.
//!
//! candle's default device has a stream per host thread. So a step belongs on the thread that ran the backward pass.
//!
//! With several streams in the context (see `memory/events.rs`) a pass comes with four waits and a record for each variable, and
//! with a wait and a record for each gradient and running variance. Without, it comes with none.

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, SyncOnDrop};
use candle_core::{Device, Layout, Storage, StorageRef, Tensor, Var};
use tpgm_core::{DType, Slice, TensorIo, Variance};
use tpgm_cuda::{Cuda, View, ViewMut};

use super::Operands;
use crate::engine::Result;
use crate::memory::{cast, events, to_tensor};

type Guard<'a> = (StorageRef<'a>, &'a Layout);

impl Operands {
    /// Binds everything for one call and runs `work` on it, which queues a pass. `grads` has one entry per variable, or
    /// none at all.
    pub(in crate::engine) fn with_cuda<R>(
        &self,
        grads: &[Option<Tensor>],
        work: impl FnOnce(&mut [TensorIo<'_, Cuda>]) -> tpgm_core::Result<R>,
    ) -> Result<R> {
        let (grads, variances) = (self.gradients(grads)?, self.variances()?);
        let Some(first) = self.entries.first() else { return Ok(work(&mut [])?) };
        let stream = first.var.device().as_cuda_device()?.cuda_stream();

        let weights: Vec<Guard<'_>> =
            self.entries.iter().map(|entry| entry.var.storage_and_layout()).collect();
        let grads: Vec<Option<Guard<'_>>> =
            grads.iter().map(|grad| grad.as_ref().map(Tensor::storage_and_layout)).collect();
        let variances: Vec<Option<[Guard<'_>; 2]>> = variances
            .iter()
            .map(|pair| pair.as_ref().map(|pair| pair.each_ref().map(Tensor::storage_and_layout)))
            .collect();

        // With several streams these tell cudarc, when they are dropped, that the pass has been queued.
        let mut queued = Vec::new();
        let mut io = Vec::with_capacity(self.len());
        let operands = self.entries.iter().zip(&weights).zip(&grads).zip(&variances);
        for (((entry, weight), grad), variance) in operands {
            let mut read = |guard| read(guard, &stream, &mut queued);
            let grad = grad.as_ref().map(&mut read).transpose()?;
            let anchor = entry.gpu_anchor.as_ref().map(GpuAnchor::view);
            let variance = match variance {
                Some([current, anchor]) => Some(Variance { current: read(current)?, anchor: read(anchor)? }),
                None => None,
            };
            let Elements { address, len, dtype, sync } = elements(weight, &stream)?;
            behind_reads(sync, &stream)?;
            // SAFETY: the guard keeps the memory, which is on the device that the backend was made for. No two variables
            // share memory, and what this call only reads is none of them: `Operands` sees to both. Whoever else uses the
            // variable comes before or after the pass on its stream.
            let weight = unsafe { ViewMut::from_raw(address, len, dtype) };
            io.push(TensorIo { weight, grad, anchor, variance });
        }
        let result = work(&mut io);
        drop((io, queued));
        drop(weights);
        events::written(&stream, self.entries.iter().map(|entry| entry.var.as_tensor()))?;
        Ok(result?)
    }
}

/// An anchor on its variable's GPU. Nobody else has the tensor: what is queued on the device's stream may read it where it
/// is, from the moment it is made until it is dropped.
pub(super) struct GpuAnchor {
    tensor: Tensor,
    address: u64,
    dtype: DType,
}

impl GpuAnchor {
    /// Copies an anchor to the device, in its own type.
    pub(super) fn new(anchor: Slice<'_>, device: &Device) -> Result<Self> {
        let tensor = to_tensor(anchor, anchor.len(), device)?;
        let stream = device.as_cuda_device()?.cuda_stream();
        let Elements { address, dtype, .. } = elements(&tensor.storage_and_layout(), &stream)?;
        Ok(Self { tensor, address, dtype })
    }

    /// Writes the anchor to its variable.
    pub(super) fn write(&self, var: &Var) -> Result<()> {
        Ok(var.set(&cast(&self.tensor, var.dtype())?.reshape(var.shape())?)?)
    }

    fn view(&self) -> View<'_> {
        // SAFETY: the tensor keeps the memory, of this type and length, and nobody writes it. It is on the device that the
        // backend was made for, whose stream has queued what wrote it.
        unsafe { View::from_raw(self.address, self.tensor.elem_count(), self.dtype) }
    }
}

/// Has `stream` wait for those that read on other streams what is to be written now. The address that `read` came with has
/// it wait for those that write. Nothing is read here, so `read` is not recorded; [`events::written`] records the pass.
fn behind_reads(read: SyncOnDrop<'_>, stream: &CudaStream) -> candle_core::Result<()> {
    if let (SyncOnDrop::Record(Some((event, _))), true) = (&read, events::managed(stream)) {
        stream.wait(event).map_err(candle_core::Error::wrap)?;
    }
    std::mem::forget(read);
    Ok(())
}

/// Elements to read.
fn read<'a>(
    guard: &'a Guard<'a>,
    stream: &'a CudaStream,
    queued: &mut Vec<SyncOnDrop<'a>>,
) -> candle_core::Result<View<'a>> {
    let Elements { address, len, dtype, sync } = elements(guard, stream)?;
    queued.push(sync);
    // SAFETY: the guard keeps the memory and lets nobody write it, and `Operands::readable` has seen that it is on the
    // variable's device, for which the backend was made. What wrote it is ahead of the pass on its stream.
    Ok(unsafe { View::from_raw(address, len, dtype) })
}

/// Where the elements of a tensor are.
struct Elements<'a> {
    address: u64,
    len: usize,
    dtype: DType,
    sync: SyncOnDrop<'a>,
}

fn elements<'a>(
    (storage, layout): &'a Guard<'a>,
    stream: &'a CudaStream,
) -> candle_core::Result<Elements<'a>> {
    let strided = candle_core::Error::RequiresContiguous { op: "optimizer step" };
    let (start, end) = layout.contiguous_offsets().ok_or(strided)?;
    let Storage::Cuda(storage) = &**storage else { candle_core::bail!("a tensor has left its GPU") };
    let ((address, sync), dtype) = match &storage.slice {
        CudaStorageSlice::F64(slice) => (slice.device_ptr(stream), DType::F64),
        CudaStorageSlice::F32(slice) => (slice.device_ptr(stream), DType::F32),
        CudaStorageSlice::F16(slice) => (slice.device_ptr(stream), DType::F16),
        CudaStorageSlice::BF16(slice) => (slice.device_ptr(stream), DType::BF16),
        _ => candle_core::bail!("only f64, f32, f16 and bf16 can be trained"),
    };
    let address = address + (start * dtype.size()) as u64;
    Ok(Elements { address, len: end - start, dtype, sync })
}
