//! Operands in the memory of a GPU, as addresses.
//!
//! A pass is queued on candle's own stream, behind the work that made its operands and before the work that will use its
//! results. No lock could last until it has run, so none is nested: read locks keep the memory where it is while the pass
//! is queued, and the stream does the rest.
//!
//! candle's default device has a stream per host thread. So a step belongs on the thread that ran the backward pass.

use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use tpgm_core::{DType, TensorIo, Variance};
use tpgm_cuda::{Cuda, View, ViewMut};

use super::Operands;
use crate::error::Result;

type Guard<'a> = (StorageRef<'a>, &'a Layout);

impl Operands {
    /// Binds everything for one call and runs `work` on it, which queues a pass. `grads` has one entry per variable, or
    /// none at all.
    pub(in crate::optim) fn with_cuda<R>(
        &self,
        grads: &[Option<Tensor>],
        work: impl FnOnce(&mut [TensorIo<'_, Cuda>]) -> tpgm_core::Result<R>,
    ) -> Result<R> {
        let (grads, variances) = (self.gradients(grads)?, self.variances()?);
        let Some(first) = self.entries.first() else { return Ok(work(&mut [])?) };
        let stream = first.var.device().as_cuda_device()?.cuda_stream();

        self.turn()?;
        let weights: Vec<Guard<'_>> =
            self.entries.iter().map(|entry| entry.var.storage_and_layout()).collect();
        let grads: Vec<Option<Guard<'_>>> =
            grads.iter().map(|grad| grad.as_ref().map(Tensor::storage_and_layout)).collect();
        let anchors: Vec<Option<Guard<'_>>> = self
            .entries
            .iter()
            .map(|entry| entry.gpu_anchor.as_ref().map(Tensor::storage_and_layout))
            .collect();
        let variances: Vec<Option<[Guard<'_>; 2]>> = variances
            .iter()
            .map(|pair| pair.as_ref().map(|pair| pair.each_ref().map(Tensor::storage_and_layout)))
            .collect();

        // With several streams these tell cudarc, when they are dropped, that the pass has been queued.
        let mut queued = Vec::new();
        let mut io = Vec::with_capacity(self.len());
        for (((weight, grad), anchor), variance) in weights.iter().zip(&grads).zip(&anchors).zip(&variances) {
            let mut read = |guard| read(guard, &stream, &mut queued);
            let grad = grad.as_ref().map(&mut read).transpose()?;
            let anchor = anchor.as_ref().map(&mut read).transpose()?;
            let variance = match variance {
                Some([current, anchor]) => Some(Variance { current: read(current)?, anchor: read(anchor)? }),
                None => None,
            };
            let Elements { address, len, dtype, sync } = elements(weight, &stream)?;
            queued.push(sync);
            // SAFETY: the guard keeps the memory, which is on the device that the backend was made for. No two variables
            // share memory, and what this call only reads is none of them: `Operands` sees to both. Whoever else uses the
            // variable comes before or after the pass on its stream.
            let weight = unsafe { ViewMut::from_raw(address, len, dtype) };
            io.push(TensorIo { weight, grad, anchor, variance });
        }
        let result = work(&mut io);
        drop((io, queued));
        drop(weights);
        self.turn()?;
        Ok(result?)
    }

    /// Tells cudarc that the variables are about to be written, or have been: with several streams it then has one wait
    /// for the other.
    fn turn(&self) -> Result<()> {
        self.entries.iter().try_for_each(|entry| Ok(entry.var.inplace_op1(&Turn)?))
    }
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

/// The in-place operation of [`Operands::turn`]: asks for the address, to write there, and leaves.
struct Turn;

impl InplaceOp1 for Turn {
    fn name(&self) -> &'static str {
        "optimizer step"
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
