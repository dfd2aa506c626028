//! What is set for a whole device.

use candle_core::Device;

use super::error::{Error, Result};

/// Makes a CUDA device keep the memory that tensors give back, for those that come after them. For all of this process,
/// until it ends.
///
/// candle takes a tensor's memory from the driver's pool when the tensor is made and returns it when the tensor is dropped.
/// The pool hands all that is free back to the system whenever the host waits for the device, as every step does that looks
/// at its loss, so that the next step has to get the same memory anew. Call this once, before training, where the device is
/// yours alone: what is kept is there for this process and for nobody else.
///
/// ```
/// # use candle_core::Device;
/// # let device = Device::Cpu;
/// if device.is_cuda() {
///     tpgm_candle::keep_freed_memory(&device)?;
/// }
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::NotCuda`] for any other device, or [`Error::Core`] if the driver has no memory pool for it or fails.
pub fn keep_freed_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => keep(device),
        _ => Err(Error::NotCuda { call: "keep_freed_memory", device: device.location() }),
    }
}

#[cfg(feature = "cuda")]
fn keep(device: &candle_core::CudaDevice) -> Result<()> {
    use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;
    use candle_core::cuda_backend::cudarc::driver::{DriverError, result};

    let stream = device.cuda_stream();
    let context = stream.context();
    let failed = |reason: String| tpgm_core::Error::Device {
        device: format!("CUDA device {}", context.ordinal()),
        call: "keeping freed memory".to_owned(),
        reason,
    };
    let driver = |error: DriverError| failed(error.to_string());
    if !context.has_async_alloc() {
        return Err(failed("the driver has no memory pools for it".to_owned()).into());
    }
    context.bind_to_thread().map_err(driver)?;
    // SAFETY: the context is alive, so its device is one that the driver named.
    let pool = unsafe { result::device::get_mem_pool(context.cu_device()) }.map_err(driver)?;
    let mut bytes = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the one that the device has now, and this attribute of it is 64 bits without a sign, which the call
    // reads before it returns.
    let set = unsafe { result::mem_pool::set_attribute(pool, threshold, (&raw mut bytes).cast()) };
    Ok(set.map_err(driver)?)
}
