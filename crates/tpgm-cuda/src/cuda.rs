//! NVIDIA GPUs, through cudarc.

mod captured;
mod lent;
mod memory;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use cudarc::driver::sys::CUdevice_attribute_enum::{
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
};
use cudarc::driver::sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;
use tpgm_core::{Error, Result};

pub use self::captured::Captured;
pub use self::lent::{Lent, LentMut};
pub use self::memory::{CudaMemory, CudaStaging};
use crate::device::Device;
use crate::gpu::Gpu;
use crate::modules;

/// Threads of a block: `TPGM_THREADS` of the kernels.
const THREADS: usize = 256;

/// The CUDA backend. All its work is queued on one stream.
///
/// Memory that the caller owns is lent: [`Gpu::lend`], [`Gpu::lend_mut`], or as [`View`](crate::View) and
/// [`ViewMut`](crate::ViewMut) of raw addresses.
///
/// ```no_run
/// use tpgm_core::{AdamW, Backend, Buffer, DType, Ftp, Optimizer, ParamSet, StepOptions, TensorIo};
/// use tpgm_cuda::Cuda;
///
/// let cuda = Cuda::new(0)?;
/// let stream = cuda.device().stream().clone();
/// let mut weight = stream.alloc_zeros::<f32>(1024).expect("memory");
/// let (grad, anchor) = (stream.alloc_zeros::<f32>(1024).expect("memory"), weight.clone());
///
/// let set = ParamSet::builder().tensor("w", [32, 32], DType::F32).build()?;
/// let mut optimizer = Optimizer::new(cuda.clone(), &set, AdamW::default(), Ftp::default())?;
/// let (mut w, g, a) = (cuda.lend_mut(&mut weight)?, cuda.lend(&grad)?, cuda.lend(&anchor)?);
/// let io = TensorIo::new(&mut w).grad(&g).anchor(&a);
/// optimizer.step(&mut [io], &StepOptions::default())?; // queued: the host does not wait
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub type Cuda = Gpu<CudaDevice>;

/// One GPU and the stream on it that everything is queued on. Cheap to clone.
#[derive(Clone)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

struct Inner {
    stream: Arc<CudaStream>,
    name: String,
    processors: usize,
    lag: usize,
    /// The thread whose stream it is, for the stream that every thread has its own of.
    thread: Option<ThreadId>,
    kept: Mutex<memory::Kept>,
}

/// A kernel, and how many of its blocks run at the same time.
type Function = (CudaFunction, usize);

/// Kernels that have been loaded, by context and name. Of the process: all optimizers, averages and projectors of a context
/// share them. They stay, and keep their contexts.
static LOADED: LazyLock<Mutex<HashMap<(usize, &'static str), Function>>> = LazyLock::new(Mutex::default);

/// True if the driver's library is there. cudarc panics where it is not, so this is asked first.
fn driver_is_there() -> bool {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    // SAFETY: loading the driver's library runs its initializers, which every CUDA program runs.
    names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

fn failed(device: String, call: impl Into<String>, reason: impl std::fmt::Display) -> Error {
    Error::Device { device, call: call.into(), reason: reason.to_string() }
}

impl CudaDevice {
    /// The `ordinal`-th GPU, on a stream of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] without a driver, without that device, or with one older than compute capability 7.5.
    pub fn new(ordinal: usize) -> Result<Self> {
        let name = || format!("CUDA device {ordinal}");
        if !driver_is_there() {
            return Err(failed(name(), "looking for the driver", "libcuda is not installed"));
        }
        let count = CudaContext::device_count().map_err(|e| failed(name(), "counting devices", e))?;
        if usize::try_from(count).unwrap_or(0) <= ordinal {
            return Err(failed(name(), "looking for the device", format!("there are {count} devices")));
        }
        let context = CudaContext::new(ordinal).map_err(|e| failed(name(), "making a context", e))?;
        let stream = context.new_stream().map_err(|e| failed(name(), "making a stream", e))?;
        Self::with_stream(stream)
    }

    /// On a stream of the caller's.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the device is older than compute capability 7.5 or fails.
    pub fn with_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let ordinal = context.ordinal();
        let described = |e: DriverError| failed(format!("CUDA device {ordinal}"), "describing the device", e);
        let name = format!("CUDA device {ordinal} ({})", context.name().map_err(described)?);
        let (major, minor) = context.compute_capability().map_err(described)?;
        let capability = u32::try_from(10 * major + minor).unwrap_or(0);
        if capability < modules::LOWEST_CAPABILITY {
            let reason = format!("compute capability {major}.{minor}; the kernels need 7.5");
            return Err(failed(name, "choosing kernels", reason));
        }
        let processors = context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(described)?;
        let processors = usize::try_from(processors).unwrap_or(1);
        let l2 = context.attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).map_err(described)?;
        let lag = lag(processors, usize::try_from(l2).unwrap_or(0));
        let thread = (stream.cu_stream() as usize == PER_THREAD).then(|| thread::current().id());
        let kept = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { stream, name, processors, lag, thread, kept }) })
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.inner.stream
    }

    fn error(&self, call: impl Into<String>) -> impl FnOnce(DriverError) -> Error {
        let (device, call) = (self.name(), call.into());
        move |reason| failed(device, call, reason)
    }

    /// A kernel. Loaded when first used: a call takes few of them.
    fn function(&self, kernel: &'static str) -> Result<Function> {
        let context = self.inner.stream.context();
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (context.cu_ctx() as usize, kernel);
        if let Some(function) = loaded.get(&key) {
            return Ok(function.clone());
        }
        let image = modules::image(kernel).ok_or_else(|| failed(self.name(), kernel, "no such kernel"))?;
        // cudarc's calls for functions leave the context to their caller, which may be a thread that has not used CUDA yet.
        context.bind_to_thread().map_err(self.error(kernel))?;
        let module = context.load_module(Ptx::from_binary(image.to_vec()));
        let module = module.map_err(self.error(format!("loading the kernel `{kernel}`")))?;
        let function = module.load_function(kernel).map_err(self.error(kernel))?;
        let blocks = function
            .occupancy_max_active_blocks_per_multiprocessor(THREADS as u32, 0, None)
            .map_err(self.error(kernel))?;
        let function = (function, self.inner.processors * (blocks as usize).max(1));
        loaded.insert(key, function.clone());
        Ok(function)
    }

    /// Comes before every call of the driver: some ask for a current context.
    fn ready(&self, call: &str) -> Result<()> {
        if self.inner.is_foreign() {
            let reason = "the backend was made on another thread, on a stream that every thread has its own of (as candle's \
                          devices do by default), and nothing would order this call behind the others; make it on the thread \
                          that made the backend, or make the backend on a stream of its own (candle: \
                          `Device::new_cuda_with_stream`)";
            return Err(failed(self.name(), call, reason));
        }
        self.inner.stream.context().bind_to_thread().map_err(self.error(call))
    }

    /// As [`CudaDevice::ready`], for what cannot be part of a graph.
    fn uncaptured(&self, call: &str) -> Result<()> {
        match self.capturing()? {
            true => Err(failed(
                self.name(),
                call,
                "calls are being captured in a graph, which this cannot be part of",
            )),
            false => Ok(()),
        }
    }
}

impl Inner {
    /// True on a thread that cannot queue anything on the stream.
    fn is_foreign(&self) -> bool {
        self.thread.is_some_and(|thread| thread != thread::current().id())
    }
}

/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

/// Three times the elements that all blocks have in work, two blocks a multiprocessor: a block holds a piece and the next one's
/// ticket. No more than half of the L2 cache holds of f32 weights and anchors; the rest is for what streams through.
fn lag(processors: usize, l2_bytes: usize) -> usize {
    let in_work = 2 * processors * THREADS * crate::gpu::PER_THREAD;
    match l2_bytes {
        0 => 3 * in_work,
        bytes => (3 * in_work).min(bytes / 2 / 8),
    }
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CudaDevice").field(&self.inner.name).finish()
    }
}

impl Gpu<CudaDevice> {
    /// The `ordinal`-th GPU, on a stream of its own.
    ///
    /// # Errors
    ///
    /// As [`CudaDevice::new`].
    pub fn new(ordinal: usize) -> Result<Self> {
        CudaDevice::new(ordinal).map(Self::on)
    }

    /// On a stream of the caller's.
    ///
    /// # Errors
    ///
    /// As [`CudaDevice::with_stream`].
    pub fn with_stream(stream: Arc<CudaStream>) -> Result<Self> {
        CudaDevice::with_stream(stream).map(Self::on)
    }
}

impl Device for CudaDevice {
    type Memory = CudaMemory;
    type Staging = CudaStaging;
    type Event = CudaEvent;

    fn name(&self) -> String {
        self.inner.name.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<CudaMemory> {
        let call = format!("allocating {bytes} bytes");
        self.uncaptured(&call)?;
        CudaMemory::new(self, bytes).map_err(self.error(call))
    }

    fn address(&self, memory: &CudaMemory) -> u64 {
        memory.address()
    }

    fn write(&self, memory: &mut CudaMemory, offset: usize, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.copy_to(memory, offset, bytes) }
    }

    fn read(&self, memory: &CudaMemory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.copy_from(memory, offset, bytes) }
    }

    fn staging(&self, bytes: usize) -> Result<CudaStaging> {
        let call = format!("allocating {bytes} page-locked bytes");
        self.uncaptured(&call)?;
        CudaStaging::new(self, bytes).map_err(self.error(call))
    }

    fn contents<'a>(&self, staging: &'a mut CudaStaging) -> Result<&'a mut [u8]> {
        Ok(staging.bytes_mut())
    }

    fn copy_in(&self, from: &CudaStaging, to: &mut CudaMemory, bytes: usize) -> Result<()> {
        let call = "copying a call's tables";
        self.ready(call)?;
        assert!(bytes <= to.bytes(), "a copy within the memory");
        let (from, stream) = (&from.bytes()[..bytes], self.inner.stream.cu_stream());
        // SAFETY: both memories have these bytes. The staging memory is page-locked and lives and stays as it is until the
        // event that the caller records next has been reached.
        unsafe { result::memcpy_htod_async(to.address(), from, stream) }.map_err(self.error(call))
    }

    fn copy_out(&self, from: &CudaMemory, to: &mut CudaStaging, bytes: usize) -> Result<()> {
        let call = "copying a call's outcome";
        self.ready(call)?;
        assert!(bytes <= from.bytes(), "a copy within the memory");
        let (to, stream) = (&mut to.bytes_mut()[..bytes], self.inner.stream.cu_stream());
        // SAFETY: as in `copy_in`; nobody looks at the staging memory before the event.
        unsafe { result::memcpy_dtoh_async(to, from.address(), stream) }.map_err(self.error(call))
    }

    fn event(&self) -> Result<CudaEvent> {
        self.inner.stream.context().new_event(None).map_err(self.error("making an event"))
    }

    fn record(&self, event: &CudaEvent) -> Result<()> {
        self.ready("recording an event")?;
        event.record(&self.inner.stream).map_err(self.error("recording an event"))
    }

    fn reached(&self, event: &CudaEvent) -> Result<bool> {
        self.ready("asking for an event")?;
        event.try_is_complete().map_err(self.error("asking for an event"))
    }

    // Any thread may wait: optimizers are dropped anywhere.
    fn wait(&self, event: &CudaEvent) -> Result<()> {
        event.synchronize().map_err(self.error("waiting for an event"))
    }

    fn capturing(&self) -> Result<bool> {
        self.ready("asking for a capture")?;
        let status = self.inner.stream.capture_status().map_err(self.error("asking for a capture"))?;
        Ok(status != CU_STREAM_CAPTURE_STATUS_NONE)
    }

    fn lag(&self) -> usize {
        self.inner.lag
    }

    fn threads(&self) -> usize {
        THREADS
    }

    fn resident_blocks(&self, kernel: &'static str) -> Result<usize> {
        self.ready(kernel)?;
        Ok(self.function(kernel)?.1)
    }

    fn launch(&self, kernel: &'static str, blocks: usize, argument: u64) -> Result<()> {
        self.ready(kernel)?;
        let (function, _) = self.function(kernel)?;
        let blocks = u32::try_from(blocks).map_err(|e| failed(self.name(), kernel, e))?;
        let config =
            LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.inner.stream.launch_builder(&function);
        launch.arg(&argument);
        // SAFETY: every kernel takes the address of a `Job`, which the caller has queued on this stream; its tables say
        // how long all operands are, and who lent them keeps them until the stream has come past this launch.
        unsafe { launch.launch(config) }.map(drop).map_err(self.error(kernel))
    }

    fn launch_table(&self, kernel: &'static str, blocks: usize, table: &[u64]) -> Result<()> {
        self.ready(kernel)?;
        let (function, _) = self.function(kernel)?;
        let blocks = u32::try_from(blocks).map_err(|e| failed(self.name(), kernel, e))?;
        let (grid, block) = ((blocks, 1, 1), (THREADS as u32, 1, 1));
        let mut arguments = [table.as_ptr().cast_mut().cast()];
        // SAFETY: the driver copies as many bytes of the table as the kernel takes, which is its size in `layers`; the table
        // says how long all operands are, and who lent them keeps them until the stream has come past this launch.
        let launched = unsafe {
            let stream = self.inner.stream.cu_stream();
            result::launch_kernel(function.cu_function(), grid, block, 0, stream, &mut arguments)
        };
        launched.map_err(self.error(kernel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Multiprocessors and L2 caches from the data sheets. A block's piece is 4096 elements.
    #[test]
    fn the_lag_follows_the_blocks_and_stays_in_the_cache() {
        let mib = 1 << 20;
        assert_eq!(lag(132, 50 * mib), 3 * 264 * 4096, "H100: 25 MiB hold 3.28 M weights with anchors");
        assert_eq!(lag(108, 40 * mib), 5 * mib / 2, "A100: 20 MiB are the bound");
        assert_eq!(lag(40, 4 * mib), mib / 4, "T4");
        assert_eq!(lag(40, 0), 3 * 80 * 4096, "no size known");
    }
}
