//! Ranks with a GPU each, through NCCL.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{CpuStorage, CudaDevice, Device, InplaceOp1, Layout, Tensor};
use cudarc::nccl::result::{NcclError, group_end, group_start};
use cudarc::nccl::safe::{Comm, Id, ReduceOp};

use super::call::{Kind, check_owners, check_tensor};
use super::error::{Error, Result};
use super::launch::Launch;
use super::problem::RankProblem;
use super::start::StartProblem;
use super::{Communicator, FNV_OFFSET, Named, agreed, fnv};
use crate::engine;
use crate::memory::events;

/// What the ranks of a group of GPUs have in common: made by one of them, sent to the others (by any means, also to other
/// machines), and given to [`Nccl::new`] by all.
#[derive(Clone, Copy)]
pub struct GroupId(Id);

impl GroupId {
    /// Length in bytes.
    pub const LEN: usize = 128;

    /// A new group.
    ///
    /// # Errors
    ///
    /// [`Error::Ranks`] when NCCL fails.
    pub fn new() -> Result<Self> {
        Ok(Self(Id::new().map_err(|error| failed("ncclGetUniqueId", 0, &error))?))
    }

    /// Bytes to send.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        self.0.internal().map(|byte| byte as u8)
    }

    /// What [`GroupId::to_bytes`] gave.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(Id::uninit(bytes.map(|byte| byte as std::ffi::c_char)))
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupId")
    }
}

/// A [`Communicator`] between GPUs, in threads or processes: one rank per GPU, over tensors of that GPU.
///
/// Works in place on candle's memory and on candle's stream, all tensors of a call in one group. Before it sends tensors,
/// a call compares a digest of their names, types and shapes over all ranks, for which the host waits: 56 bytes. NCCL
/// computes each element of a mean on one rank and sends it to the others, so all have the same bits; between two runs,
/// or two versions of NCCL, they may differ.
///
/// A rank that ends without a word leaves the others waiting until their [`timeout`](Nccl::timeout).
pub struct Nccl {
    comm: Mutex<Option<Handle>>,
    device: CudaDevice,
    rank: usize,
    size: usize,
    timeout: Duration,
}

/// A communicator of NCCL.
struct Handle(Comm);

// SAFETY: NCCL allows a communicator to be used from any thread, one at a time; the mutex of `Nccl` sees to the latter.
unsafe impl Send for Handle {}

impl Nccl {
    /// Joins a group of `size` ranks as `rank`, with the GPU of `device`. Waits until all ranks have come, so ranks that
    /// are threads must call this in threads of their own.
    ///
    /// # Errors
    ///
    /// A device that is not a CUDA device, or [`Error::Ranks`] when NCCL fails: a rank out of range or taken, or two ranks
    /// on one GPU.
    pub fn new(device: &Device, rank: usize, size: usize, id: GroupId) -> Result<Self> {
        let device = device.as_cuda_device()?.clone();
        let stream = device.cuda_stream();
        let fail = |reason: String| RankProblem::Failed { call: "ncclCommInitRank", rank, reason };
        if rank >= size || i32::try_from(size).is_err() {
            return Err(fail(format!("there is no rank {rank} among {size}")).into());
        }
        stream.context().bind_to_thread().map_err(|error| fail(error.to_string()))?;
        let comm = Comm::from_rank(stream, rank, size, id.0)
            .map_err(|error| failed("ncclCommInitRank", rank, &error))?;
        let comm = Mutex::new(Some(Handle(comm)));
        Ok(Self { comm, device, rank, size, timeout: Duration::from_secs(600) })
    }

    /// Sets how long a call waits for the other ranks. After that it fails, and so do all further calls. Default 10
    /// minutes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Joins the group of all processes that were started together, which [`Launch::exchange`] over TCP makes one. A GPU for
    /// each: that of number [`local_rank`](Launch::local_rank) on its machine, for example.
    ///
    /// # Errors
    ///
    /// As [`Launch::exchange`] and [`Nccl::new`].
    pub fn launch(device: &Device, launch: &Launch, timeout: Duration) -> Result<Self> {
        let own = if launch.rank == 0 { GroupId::new()?.to_bytes().to_vec() } else { Vec::new() };
        let id = launch.exchange(&own, timeout)?;
        let id = id.try_into().map_err(|id: Vec<u8>| StartProblem::Stranger {
            address: format!("{}:{}", launch.address, launch.port),
            got: format!("it gave {} bytes, and a group of NCCL has {}", id.len(), GroupId::LEN),
        })?;
        Ok(Self::new(device, launch.rank, launch.size, GroupId::from_bytes(id))?.timeout(timeout))
    }

    /// Joins a group of the ranks that `others` connects already, over tensors on the CPU: processes that MPI started, for
    /// example.
    ///
    /// # Errors
    ///
    /// As [`Communicator::broadcast`] and [`Nccl::new`].
    pub fn among(device: &Device, others: &dyn Communicator) -> Result<Self> {
        let own = || -> Result<[u8; GroupId::LEN]> {
            // Before all wait for each other: a rank without a GPU is named.
            device.as_cuda_device()?;
            match others.rank() {
                0 => Ok(GroupId::new()?.to_bytes()),
                _ => Ok([0; GroupId::LEN]),
            }
        };
        let own = agreed(others, own())?;
        // A tensor of bytes is none that ranks exchange; each is exact in f32.
        let id = Tensor::new(own.map(f32::from).as_slice(), &Device::Cpu)?;
        others.broadcast(&[("the id of a group of NCCL", &id)])?;
        let mut bytes = [0; GroupId::LEN];
        bytes.iter_mut().zip(id.to_vec1::<f32>()?).for_each(|(byte, number)| *byte = number as u8);
        Self::new(device, others.rank(), others.size(), GroupId::from_bytes(bytes))
    }

    fn comm(&self) -> MutexGuard<'_, Option<Handle>> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, call: &'static str, reason: impl fmt::Display) -> Error {
        RankProblem::Failed { call, rank: self.rank, reason: reason.to_string() }.into()
    }

    /// The largest of every number over all ranks. The host waits for it.
    fn largest(&self, handle: &mut Option<Handle>, call: &'static str, numbers: &[i64]) -> Result<Vec<i64>> {
        let gone = || self.failed(call, "the group has ended, by an earlier timeout");
        let Handle(comm) = handle.as_ref().ok_or_else(gone)?;
        let driver = |error: cudarc::driver::DriverError| self.failed(call, error);
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().map_err(driver)?;
        let mut memory = stream.clone_htod(numbers).map_err(driver)?;
        comm.all_reduce_in_place(&mut memory, &ReduceOp::Max)
            .map_err(|error| failed(call, self.rank, &error))?;
        let done = stream.record_event(None).map_err(driver)?;
        let begun = Instant::now();
        while !done.try_is_complete().map_err(driver)? {
            let waited = begun.elapsed();
            if waited > self.timeout {
                // Ends the kernel that waits on the device.
                *handle = None;
                return Err(self.failed(call, format!("no answer from another rank within {waited:.0?}")));
            }
            if waited > Duration::from_millis(1) {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        stream.clone_dtoh(&memory).map_err(driver)
    }

    /// Makes sure that all ranks make the same call with the same tensors.
    fn agree(
        &self,
        handle: &mut Option<Handle>,
        call: Kind,
        tensors: &[Named<'_>],
        owners: &[usize],
    ) -> Result<()> {
        let digests: Vec<i64> =
            tensors.iter().zip(owners).map(|(named, owner)| digest(named, *owner)).collect();
        let all = digests.iter().fold(FNV_OFFSET, |hash, digest| fnv(hash, &digest.to_le_bytes())) as i64;
        let (count, number) = (tensors.len() as i64, call as i64);
        let refuses = if call == Kind::Refuse { self.rank as i64 + 1 } else { 0 };
        // The complement turns the largest into the smallest; a refusal goes with any call.
        let ends =
            if call == Kind::Refuse { [i64::MIN; 6] } else { [number, !number, count, !count, all, !all] };
        let mut header = vec![refuses];
        header.extend(ends);
        let header = self.largest(handle, call.name(), &header)?;
        if header[0] > 0 {
            let reason = "its own error says why".to_owned();
            return Err(RankProblem::Refused { rank: header[0] as usize - 1, reason }.into());
        }
        if header[1] != !header[2] {
            let (call, expected) = (call.name(), "another function");
            return Err(RankProblem::Calls { rank: self.rank, call, expected }.into());
        }
        let shortest = !header[4] as usize;
        if header[3] == !header[4] && header[5] == !header[6] {
            return Ok(());
        }
        // Some tensor differs: which?
        let both: Vec<i64> = digests[..shortest].iter().flat_map(|digest| [*digest, !digest]).collect();
        let both = if both.is_empty() { both } else { self.largest(handle, call.name(), &both)? };
        let position = both.chunks(2).position(|pair| pair[0] != !pair[1]).unwrap_or(shortest);
        let here = tensors.get(position).map_or("the list has ended".to_owned(), |(name, tensor)| {
            format!("it is `{name}`, {} {:?}", tensor.dtype().as_str(), tensor.dims())
        });
        Err(RankProblem::Unlike { position, rank: self.rank, here }.into())
    }

    fn run(&self, call: Kind, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        let fits = || {
            check_owners(call.name(), self.rank, self.size, tensors.len(), owners)?;
            tensors.iter().try_for_each(|(name, tensor)| self.check(name, tensor))
        };
        if let Err(error) = fits() {
            self.refuse(&error.to_string())?;
            return Err(error);
        }
        let mut handle = self.comm();
        self.agree(&mut handle, call, tensors, owners)?;
        let (Some(Handle(comm)), false) = (&*handle, call == Kind::Barrier) else { return Ok(()) };
        let nccl = |error: NcclError| failed(call.name(), self.rank, &error);
        group_start().map_err(nccl)?;
        let tensors = tensors.iter().map(|(_, tensor)| *tensor).zip(owners);
        let tensors: Vec<_> = tensors.filter(|(tensor, _)| tensor.elem_count() > 0).collect();
        let queued = tensors.iter().try_for_each(|(tensor, owner)| {
            tensor.inplace_op1(&Exchange {
                comm,
                call,
                root: i32::try_from(**owner).map_err(candle_core::Error::wrap)?,
            })
        });
        // A group that was begun must end, whatever happened in it.
        group_end().map_err(nccl)?;
        // NCCL queues its work when the group ends. What cudarc was told of each tensor inside the group came too early.
        let told = events::written(&self.device.cuda_stream(), tensors.iter().map(|(tensor, _)| *tensor));
        queued.and(told).map_err(|error| self.failed(call.name(), error))
    }

    /// What this communicator can work on.
    fn check(&self, name: &str, tensor: &Tensor) -> Result<()> {
        check_tensor(name, tensor)?;
        match tensor.device() {
            Device::Cuda(device) if device.id() == self.device.id() => Ok(()),
            device => {
                Err(engine::Error::Device { tensor: name.to_owned(), device: device.location() }.into())
            }
        }
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce_mean(&self, tensors: &[Named<'_>]) -> Result<()> {
        self.run(Kind::Mean, tensors, &vec![0; tensors.len()])
    }

    fn reduce_mean(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.run(Kind::MeanToOwner, tensors, owners)
    }

    fn share(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.run(Kind::Share, tensors, owners)
    }

    fn barrier(&self) -> Result<()> {
        self.run(Kind::Barrier, &[], &[])
    }

    fn refuse(&self, _reason: &str) -> Result<()> {
        match self.agree(&mut self.comm(), Kind::Refuse, &[], &[]) {
            Err(Error::Ranks(RankProblem::Refused { .. })) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // NCCL stops what is under way when its communicator goes; the last call of a rank that is done shall end first.
        if !std::thread::panicking() && self.comm().is_some() {
            let _ = self.device.cuda_stream().synchronize();
        }
    }
}

/// Adds the exchange of one tensor's elements to a group.
struct Exchange<'a> {
    comm: &'a Comm,
    call: Kind,
    root: i32,
}

impl InplaceOp1 for Exchange<'_> {
    fn name(&self) -> &'static str {
        self.call.name()
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("NCCL works on tensors of a GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let strided = candle_core::Error::RequiresContiguous { op: self.call.name() };
        let (start, end) = layout.contiguous_offsets().ok_or(strided)?;
        macro_rules! exchange {
            ($slice:expr) => {{
                let mut elements = $slice.slice_mut(start..end);
                match self.call {
                    Kind::Share => self.comm.broadcast_in_place(&mut elements, self.root),
                    Kind::MeanToOwner => self.comm.reduce_in_place(&mut elements, &ReduceOp::Avg, self.root),
                    _ => self.comm.all_reduce_in_place(&mut elements, &ReduceOp::Avg),
                }
            }};
        }
        let queued = match &mut storage.slice {
            CudaStorageSlice::F64(slice) => exchange!(slice),
            CudaStorageSlice::F32(slice) => exchange!(slice),
            CudaStorageSlice::F16(slice) => exchange!(slice),
            CudaStorageSlice::BF16(slice) => exchange!(slice),
            _ => candle_core::bail!("only f64, f32, f16 and bf16 can be exchanged"),
        };
        match queued {
            Ok(_) => Ok(()),
            Err(error) => candle_core::bail!("NCCL says {:?}", error.0),
        }
    }
}

fn failed(call: &'static str, rank: usize, error: &NcclError) -> Error {
    RankProblem::Failed { call, rank, reason: format!("NCCL says {:?}", error.0) }.into()
}

/// Equal for tensors of one name, type, shape and owner.
fn digest((name, tensor): &Named<'_>, owner: usize) -> i64 {
    let kind = format!("{} {:?} {owner}", tensor.dtype().as_str(), tensor.dims());
    fnv(fnv(fnv(FNV_OFFSET, name.as_bytes()), &[0]), kind.as_bytes()) as i64
}
