//! Memory of a device and page-locked memory of the host, without the events that cudarc keeps for its own slices: everything
//! here is used on one stream, which orders it.

use std::sync::{MutexGuard, PoisonError};

use cudarc::driver::{DriverError, result};
use tpgm_core::Result;

use super::{CudaDevice, Inner};

/// Memory of a [`CudaDevice`], allocated and freed in the order of its stream.
pub struct CudaMemory {
    device: CudaDevice,
    address: u64,
    bytes: usize,
}

/// Page-locked memory of the host. Whoever drops it knows that no copy uses it any more.
pub struct CudaStaging {
    device: CudaDevice,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it owns its allocation, which any thread may use and free.
unsafe impl Send for CudaStaging {}

/// Memory that graphs may use although nobody else does.
#[derive(Default)]
pub(super) struct Kept {
    graphs: usize,
    addresses: Vec<u64>,
}

/// As long as it lives, no memory of the device is freed.
pub(super) struct Keep(CudaDevice);

impl CudaMemory {
    /// At least one byte, set to zero.
    pub(super) fn new(device: &CudaDevice, bytes: usize) -> std::result::Result<Self, DriverError> {
        let (stream, bytes) = (device.stream(), bytes.max(1));
        // SAFETY: the stream exists. The memory is filled right below, on the stream that everything uses it on; where
        // allocating knows of no stream it is there at once.
        let address = unsafe {
            match stream.context().has_async_alloc() {
                true => result::malloc_async(stream.cu_stream(), bytes),
                false => result::malloc_sync(bytes),
            }
        }?;
        let memory = Self { device: device.clone(), address, bytes };
        // SAFETY: the memory was allocated with this length, and is freed in the stream's order.
        unsafe { result::memset_d8_async(address, 0, bytes, stream.cu_stream()) }?;
        Ok(memory)
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let mut kept = self.device.inner.kept();
        if kept.graphs > 0 {
            kept.addresses.push(self.address);
        } else {
            drop(kept);
            self.device.inner.free(self.address);
        }
    }
}

impl CudaStaging {
    /// At least one byte, set to zero.
    pub(super) fn new(device: &CudaDevice, bytes: usize) -> std::result::Result<Self, DriverError> {
        let bytes = bytes.max(1);
        // SAFETY: the memory is filled right below.
        let start = unsafe { result::malloc_host(bytes, 0) }?.cast::<u8>();
        // SAFETY: so many bytes were allocated.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { device: device.clone(), start, bytes })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this length, and filled since. The owner sees to it that no copy writes there now.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for CudaStaging {
    fn drop(&mut self) {
        let context = self.device.stream().context();
        context.record_err(context.bind_to_thread());
        // SAFETY: it was allocated by `malloc_host` and is freed once. Copies that used it are done: see `CudaStaging`.
        context.record_err(unsafe { result::free_host(self.start.cast()) });
    }
}

impl Keep {
    pub(super) fn new(device: &CudaDevice) -> Self {
        device.inner.kept().graphs += 1;
        Self(device.clone())
    }

    pub(super) fn device(&self) -> &CudaDevice {
        &self.0
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        let mut kept = self.0.inner.kept();
        kept.graphs -= 1;
        if kept.graphs == 0 {
            let addresses = std::mem::take(&mut kept.addresses);
            drop(kept);
            addresses.into_iter().for_each(|address| self.0.inner.free(address));
        }
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A panic elsewhere leaves the list whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees memory after everything queued so far. An error comes with the next call of cudarc: dropping returns none.
    fn free(&self, address: u64) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        // The stream of another thread cannot be named here, so that nothing less than waiting for all streams will do.
        if self.is_foreign() {
            context.record_err(context.synchronize());
        }
        // SAFETY: the memory came from `CudaMemory::new` and is freed once, behind everything that uses it.
        context.record_err(unsafe {
            match context.has_async_alloc() {
                true => result::free_async(address, self.stream.cu_stream()),
                false => self.stream.synchronize().and_then(|()| result::free_sync(address)),
            }
        });
    }
}

impl CudaDevice {
    /// Copies from the host, and waits.
    pub(super) fn copy_to(&self, memory: &CudaMemory, offset: usize, bytes: &[u8]) -> Result<()> {
        let call = format!("copying {} bytes to the device", bytes.len());
        assert!(offset + bytes.len() <= memory.bytes, "a copy within the memory");
        self.uncaptured(&call)?;
        let stream = self.stream();
        // SAFETY: the memory has these bytes, and `bytes` stays until the stream has come past the copy.
        let copy =
            unsafe { result::memcpy_htod_async(memory.address + offset as u64, bytes, stream.cu_stream()) };
        copy.and_then(|()| stream.synchronize()).map_err(self.error(call))
    }

    /// Copies to the host, and waits.
    pub(super) fn copy_from(&self, memory: &CudaMemory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let call = format!("copying {} bytes from the device", bytes.len());
        assert!(offset + bytes.len() <= memory.bytes, "a copy within the memory");
        self.uncaptured(&call)?;
        let stream = self.stream();
        // SAFETY: as in `copy_to`.
        let copy =
            unsafe { result::memcpy_dtoh_async(bytes, memory.address + offset as u64, stream.cu_stream()) };
        copy.and_then(|()| stream.synchronize()).map_err(self.error(call))
    }
}
