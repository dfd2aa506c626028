//! What the backend asks of the machine that runs its kernels.

use tpgm_core::Result;

/// A machine that runs the kernels: a GPU, or the emulator. Calls on one device happen in order.
pub trait Device: Clone + Send + Sync + 'static {
    /// Owned device memory, aligned to 256 bytes. Freed when dropped, after the calls that were made before.
    type Memory: Send;
    /// Page-locked host memory that the device copies from and to without stopping the host.
    type Staging: Send;
    /// Marks a point in the order of calls that the host can wait for, again and again another one.
    type Event: Send;

    /// What the device is called in messages, for example `CUDA device 0 (NVIDIA H100)`.
    fn name(&self) -> String;

    /// `bytes` zeros; at least one byte is allocated.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;

    /// Where memory starts on the device.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// Copies from the host and returns when `bytes` may be changed again.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn write(&self, memory: &mut Self::Memory, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Copies to the host, after the calls made before.
    ///
    /// # Errors
    ///
    /// When the device fails, also in an earlier call.
    fn read(&self, memory: &Self::Memory, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// `bytes` zeros of page-locked memory.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    fn staging(&self, bytes: usize) -> Result<Self::Staging>;

    /// The contents. Nobody may look at them while a copy is under way: see [`Device::wait`].
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn contents<'a>(&self, staging: &'a mut Self::Staging) -> Result<&'a mut [u8]>;

    /// Queues a copy of the first `bytes` bytes.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn copy_in(&self, from: &Self::Staging, to: &mut Self::Memory, bytes: usize) -> Result<()>;

    /// Queues a copy of the first `bytes` bytes.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn copy_out(&self, from: &Self::Memory, to: &mut Self::Staging, bytes: usize) -> Result<()>;

    /// An event that marks nothing yet: it counts as reached.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn event(&self) -> Result<Self::Event>;

    /// From now on the event marks the end of all calls made so far.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn record(&self, event: &Self::Event) -> Result<()>;

    /// True if the device has come to what the event marks.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn reached(&self, event: &Self::Event) -> Result<bool>;

    /// Waits until the device has come to what the event marks.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn wait(&self, event: &Self::Event) -> Result<()>;

    /// True if calls are not made but written down, to be made later by the launch of a graph. Only [`Device::launch`] can
    /// be written down.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn capturing(&self) -> Result<bool>;

    /// Threads per block that the kernels were compiled for.
    fn threads(&self) -> usize;

    /// Elements that a step should advance between the first and the second pass over a tensor: so many that nobody waits for
    /// the end of the first one, and so few that the tensor is still in the device's cache.
    fn lag(&self) -> usize;

    /// Blocks of `kernel` that the device runs at the same time, at least 1.
    ///
    /// # Errors
    ///
    /// When the kernel is not there.
    fn resident_blocks(&self, kernel: &'static str) -> Result<usize>;

    /// Queues a kernel of the optimizer. They take one argument: the address of a table in device memory.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be started.
    fn launch(&self, kernel: &'static str, blocks: usize, argument: u64) -> Result<()>;

    /// Queues a kernel of a layer. They take one argument: a table by value, copied before this returns.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be started.
    fn launch_table(&self, kernel: &'static str, blocks: usize, table: &[u64]) -> Result<()>;
}
