//! candle's CUDA devices as a home of tensors: all that no machine without a GPU can run.
//!
//! candle's default device has a stream per host thread, behind one handle. `tpgm-cuda` orders calls on such a stream only if they
//! come from one thread, so layers are kept for each device and thread there, and for each device where it has a stream of its own.
//! Operands are on the same device of candle as the call ([`same_kind`](crate::layers::check::same_kind)), so on its stream.
//!
//! Where a program has several streams, cudarc keeps two events with every slice. Asking for an address has the stream wait for them,
//! and what comes with the address records them when it is dropped, which is behind the launch: see [`Home::Pending`].

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice, DeviceId};
use candle_core::{CudaDevice, Result, Storage};
use tpgm_cuda::layers::Layers;

use super::Home;

/// The stream of a candle device, and the layers on it.
#[derive(Debug, Clone)]
pub(in crate::layers) struct Stream {
    stream: Arc<CudaStream>,
    layers: Layers<tpgm_cuda::CudaDevice>,
}

/// A device of candle, and the thread where its stream is that of every thread.
type Key = (DeviceId, Option<ThreadId>);

/// Streams that have been used; nothing for those of GPUs that the kernels do not run on.
static STREAMS: LazyLock<Mutex<HashMap<Key, Option<Stream>>>> = LazyLock::new(Mutex::default);

/// Most streams that are kept. What is dropped is made again when it is used again: threads come and go.
const MOST: usize = 64;

/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

impl Stream {
    /// That of a device, for this thread.
    pub(in crate::layers) fn of(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let thread = (stream.cu_stream() as usize == PER_THREAD).then(|| thread::current().id());
        let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (device.id(), thread);
        if let Some(known) = streams.get(&key) {
            let reason = "the kernels of layers do not run on this GPU";
            return known.clone().ok_or_else(|| candle_core::Error::msg(reason));
        }
        if streams.len() >= MOST {
            streams.clear();
        }
        let made = tpgm_cuda::CudaDevice::with_stream(stream.clone())
            .map(|device| Self { stream, layers: Layers::on(device) })
            .map_err(candle_core::Error::wrap);
        streams.insert(key, made.as_ref().ok().cloned());
        made
    }

    fn read<'a, T>(&'a self, slice: &'a CudaSlice<T>) -> (u64, SyncOnDrop<'a>) {
        slice.device_ptr(&self.stream)
    }

    fn write<'a, T>(&'a self, slice: &'a mut CudaSlice<T>) -> (u64, SyncOnDrop<'a>) {
        slice.device_ptr_mut(&self.stream)
    }
}

impl Home for Stream {
    type Device = tpgm_cuda::CudaDevice;
    type Storage = CudaStorage;
    type Pending<'a> = SyncOnDrop<'a>;

    fn layers(&self) -> &Layers<tpgm_cuda::CudaDevice> {
        &self.layers
    }

    fn open(storage: &Storage) -> Option<&CudaStorage> {
        match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        }
    }

    fn close(storage: CudaStorage) -> Storage {
        Storage::Cuda(storage)
    }

    fn address<'a>(&'a self, storage: &'a CudaStorage) -> Result<(u64, SyncOnDrop<'a>)> {
        Ok(match &storage.slice {
            CudaStorageSlice::U8(slice) => self.read(slice),
            CudaStorageSlice::U32(slice) => self.read(slice),
            CudaStorageSlice::I64(slice) => self.read(slice),
            CudaStorageSlice::F32(slice) => self.read(slice),
            CudaStorageSlice::BF16(slice) => self.read(slice),
            CudaStorageSlice::F16(slice) => self.read(slice),
            _ => candle_core::bail!("an element type that no kernel takes"),
        })
    }

    fn address_mut<'a>(&'a self, storage: &'a mut CudaStorage) -> Result<(u64, SyncOnDrop<'a>)> {
        Ok(match &mut storage.slice {
            CudaStorageSlice::F32(slice) => self.write(slice),
            CudaStorageSlice::BF16(slice) => self.write(slice),
            CudaStorageSlice::F16(slice) => self.write(slice),
            _ => candle_core::bail!("an element type that no kernel writes"),
        })
    }
}
