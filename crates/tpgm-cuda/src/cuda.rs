//! NVIDIA GPUs, through cudarc.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr,
    DriverError, LaunchConfig, PinnedHostSlice, PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;
use tpgm_core::{Element, Error, Result};

use crate::device::Device;
use crate::gpu::Gpu;
use crate::memory::{View, ViewMut};
use crate::modules;

/// Threads of a block: `TPGM_THREADS` of the kernels.
const THREADS: usize = 256;

/// The CUDA backend. All its work is queued on one stream.
///
/// Buffers that the caller owns are lent as [`View`] and [`ViewMut`]: [`Gpu::view`], [`Gpu::view_mut`].
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
/// let io = TensorIo::new(cuda.view_mut(&mut weight)?).grad(cuda.view(&grad)?).anchor(cuda.view(&anchor)?);
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
        Ok(Self { inner: Arc::new(Inner { stream, name, processors }) })
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

    /// Address of memory that is used on this stream alone.
    fn pointer(&self, memory: &CudaSlice<u8>) -> u64 {
        memory.device_ptr(&self.inner.stream).0
    }

    /// Memory of another stream is not ordered with the backend's calls.
    fn check_stream(&self, other: &Arc<CudaStream>) -> Result<()> {
        let same = Arc::ptr_eq(other, &self.inner.stream)
            || (other.cu_stream() == self.inner.stream.cu_stream()
                && other.context().ordinal() == self.inner.stream.context().ordinal());
        if same {
            return Ok(());
        }
        let reason =
            "the memory belongs to another stream or device; make the backend with `Cuda::with_stream`";
        Err(failed(self.name(), "lending memory", reason))
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

    /// Lends memory to be read.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the memory belongs to another stream.
    pub fn view<'a, T: Element + DeviceRepr>(&self, memory: &'a CudaSlice<T>) -> Result<View<'a>> {
        self.device().check_stream(memory.stream())?;
        let (address, _guard) = memory.device_ptr(self.device().stream());
        // SAFETY: the memory is borrowed for `'a`, of this type and length, and used on the backend's own stream.
        Ok(unsafe { View::from_raw(address, memory.len(), T::DTYPE) })
    }

    /// Lends memory to be written.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the memory belongs to another stream.
    pub fn view_mut<'a, T: Element + DeviceRepr>(&self, memory: &'a mut CudaSlice<T>) -> Result<ViewMut<'a>> {
        self.device().check_stream(memory.stream())?;
        let len = memory.len();
        let (address, _guard) = memory.device_ptr_mut(self.device().stream());
        // SAFETY: as above, and the borrow is exclusive.
        Ok(unsafe { ViewMut::from_raw(address, len, T::DTYPE) })
    }
}

impl Device for CudaDevice {
    type Memory = CudaSlice<u8>;
    type Staging = PinnedHostSlice<u8>;
    type Event = CudaEvent;

    fn name(&self) -> String {
        self.inner.name.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        let memory = self.inner.stream.alloc_zeros(bytes.max(1));
        memory.map_err(self.error(format!("allocating {bytes} bytes")))
    }

    fn address(&self, memory: &CudaSlice<u8>) -> u64 {
        self.pointer(memory)
    }

    fn write(&self, memory: &mut CudaSlice<u8>, offset: usize, bytes: &[u8]) -> Result<()> {
        let call = || format!("copying {} bytes to the device", bytes.len());
        let mut to = memory.slice_mut(offset..offset + bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        self.inner.stream.memcpy_htod(bytes, &mut to).map_err(self.error(call()))?;
        self.inner.stream.synchronize().map_err(self.error(call()))
    }

    fn read(&self, memory: &CudaSlice<u8>, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let call = format!("copying {} bytes from the device", bytes.len());
        let from = memory.slice(offset..offset + bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        self.inner.stream.memcpy_dtoh(&from, bytes).map_err(self.error(call.clone()))?;
        self.inner.stream.synchronize().map_err(self.error(call))
    }

    fn staging(&self, bytes: usize) -> Result<PinnedHostSlice<u8>> {
        // SAFETY: the memory is filled below before anybody reads it.
        let staging = unsafe { self.inner.stream.context().alloc_pinned_with_flags(bytes.max(1), 0) };
        let mut staging = staging.map_err(self.error(format!("allocating {bytes} page-locked bytes")))?;
        self.contents(&mut staging)?.fill(0);
        Ok(staging)
    }

    fn contents<'a>(&self, staging: &'a mut PinnedHostSlice<u8>) -> Result<&'a mut [u8]> {
        staging.as_mut_slice().map_err(self.error("waiting for a copy"))
    }

    fn copy_in(&self, from: &PinnedHostSlice<u8>, to: &mut CudaSlice<u8>, bytes: usize) -> Result<()> {
        let from = from.as_slice().map_err(self.error("waiting for a copy"))?;
        assert!(bytes <= from.len() && bytes <= to.len(), "a copy within both memories");
        // SAFETY: both memories have these bytes. The staging memory is page-locked and lives and stays as it is until the
        // event that the caller records next has been reached.
        let copy = unsafe {
            result::memcpy_htod_async(self.pointer(to), &from[..bytes], self.inner.stream.cu_stream())
        };
        copy.map_err(self.error("copying a call's tables"))
    }

    fn copy_out(&self, from: &CudaSlice<u8>, to: &mut PinnedHostSlice<u8>, bytes: usize) -> Result<()> {
        let stream = self.inner.stream.cu_stream();
        let to = to.as_mut_slice().map_err(self.error("waiting for a copy"))?;
        assert!(bytes <= from.len() && bytes <= to.len(), "a copy within both memories");
        // SAFETY: as in `copy_in`; nobody looks at the staging memory before the event.
        let copy = unsafe { result::memcpy_dtoh_async(&mut to[..bytes], self.pointer(from), stream) };
        copy.map_err(self.error("copying a call's outcome"))
    }

    fn record(&self) -> Result<CudaEvent> {
        self.inner.stream.record_event(None).map_err(self.error("recording an event"))
    }

    fn reached(&self, event: &CudaEvent) -> Result<bool> {
        event.try_is_complete().map_err(self.error("asking for an event"))
    }

    fn wait(&self, event: &CudaEvent) -> Result<()> {
        event.synchronize().map_err(self.error("waiting for an event"))
    }

    fn threads(&self) -> usize {
        THREADS
    }

    fn resident_blocks(&self, kernel: &'static str) -> Result<usize> {
        Ok(self.function(kernel)?.1)
    }

    fn launch(&self, kernel: &'static str, blocks: usize, argument: u64) -> Result<()> {
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
}
