//! Scratch memory of a set, and the way of a call to the device and back.

use std::collections::VecDeque;

use bytemuck::{Pod, Zeroable};
use tpgm_core::plan::Plan;
use tpgm_core::{Error, ParamSet, Result, Settings, StepReport};

use crate::device::Device;
use crate::layout::Layout;
use crate::tables::{Item, Job, Operands, Piece, Progress, Span, Status, Tensor, bytes, refusal};

/// Calls that the host may be ahead of the device.
const AHEAD: usize = 4;

/// Scratch memory of a set on a device: tables, partial sums, norms. Made once; a step allocates nothing.
pub struct Workspace<D: Device> {
    scratch: Scratch<D>,
    fixed: Option<Fixed<D>>,
    /// The job and the operands of the call in progress.
    call: D::Memory,
    /// What `call` holds once everything queued has been done.
    sent: Vec<u8>,
    inputs: Ring<D>,
    reports: Ring<D>,
    /// Calls whose outcome nobody has looked at: which staging memory it comes to.
    pending: VecDeque<usize>,
    units: usize,
}

/// Tables that kernels write.
struct Scratch<D: Device> {
    moves: D::Memory,
    span_sums: D::Memory,
    tensor_sums: D::Memory,
    parts: D::Memory,
    norms: D::Memory,
    progress: D::Memory,
    counters: D::Memory,
    status: D::Memory,
}

/// Tables that kernels read, and what they were made from.
struct Fixed<D: Device> {
    settings: Vec<Settings>,
    dtypes: Vec<u32>,
    layout: Layout,
    tensors: D::Memory,
    pieces: D::Memory,
    spans: D::Memory,
    moves: D::Memory,
    writes: D::Memory,
}

/// Which queue a call takes its work from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Of a step or a projection.
    Moves,
    /// Of a write.
    Writes,
}

/// Page-locked memory that copies take turns in. A step makes no event: each entry keeps its own.
struct Ring<D: Device> {
    device: D,
    entries: Vec<Entry<D>>,
    next: usize,
}

struct Entry<D: Device> {
    staging: D::Staging,
    /// The end of the last copy.
    done: D::Event,
    /// A copy was queued, and nobody has seen its end.
    busy: bool,
}

impl<D: Device> Ring<D> {
    fn new(device: &D, bytes: usize) -> Result<Self> {
        let entry = |_| Ok(Entry { staging: device.staging(bytes)?, done: device.event()?, busy: false });
        Ok(Self { device: device.clone(), entries: (0..AHEAD).map(entry).collect::<Result<_>>()?, next: 0 })
    }

    /// The entry whose turn it is, and its memory, once the copy of [`AHEAD`] turns ago is done.
    fn turn(&mut self) -> Result<(usize, &mut D::Staging)> {
        let at = self.next;
        self.next = (at + 1) % AHEAD;
        Ok((at, self.done(at)?))
    }

    /// A copy from or to an entry's memory has been queued.
    fn queued(&mut self, at: usize) -> Result<()> {
        let entry = &mut self.entries[at];
        entry.busy = true;
        self.device.record(&entry.done)
    }

    /// Waits until an entry's copy is done, and gives its memory.
    fn done(&mut self, at: usize) -> Result<&mut D::Staging> {
        let entry = &mut self.entries[at];
        if entry.busy {
            self.device.wait(&entry.done)?;
            entry.busy = false;
        }
        Ok(&mut entry.staging)
    }

    /// True if an entry's copy is done.
    fn is_done(&mut self, at: usize) -> Result<bool> {
        let entry = &mut self.entries[at];
        entry.busy = entry.busy && !self.device.reached(&entry.done)?;
        Ok(!entry.busy)
    }
}

impl<D: Device> Drop for Ring<D> {
    /// Page-locked memory has to outlive the copies that use it.
    fn drop(&mut self) {
        for at in 0..AHEAD {
            // A device that fails copies nothing any more.
            let _ = self.done(at);
        }
    }
}

/// Why a call cannot be captured.
fn unprepared<D: Device>(device: &D) -> Error {
    let reason = "the device has not got its operands and options yet, and what brings them there cannot be part of a graph; \
                  before capturing a step, call `prepare_step` with the same operands and options (other calls: make them \
                  once)";
    Error::Device { device: device.name(), call: "capturing a call".into(), reason: reason.into() }
}

fn upload<D: Device, T: Pod>(device: &D, table: &[T]) -> Result<D::Memory> {
    let mut memory = device.allocate(size_of_val(table))?;
    device.write(&mut memory, 0, bytemuck::cast_slice(table))?;
    Ok(memory)
}

impl<D: Device> Workspace<D> {
    pub(crate) fn new(device: &D, plan: &Plan) -> Result<Self> {
        let tensors = plan.tensors.len();
        let scratch = Scratch {
            moves: device.allocate(tensors * bytes::MOVE)?,
            // One per span would do; there are at most as many spans as pieces.
            span_sums: device.allocate(plan.pieces.len() * bytes::SUMS)?,
            tensor_sums: device.allocate(tensors * bytes::SUMS)?,
            parts: device.allocate(plan.parts * size_of::<f64>())?,
            norms: device.allocate(plan.units * size_of::<f64>())?,
            progress: upload(device, &vec![Progress::UNTOUCHED; tensors])?,
            counters: device.allocate(bytes::COUNTERS)?,
            status: device.allocate(size_of::<Status>())?,
        };
        let call = size_of::<Job>() + tensors * size_of::<Operands>();
        Ok(Self {
            scratch,
            fixed: None,
            call: device.allocate(call)?,
            sent: Vec::with_capacity(call),
            inputs: Ring::new(device, call)?,
            reports: Ring::new(device, size_of::<Status>())?,
            pending: VecDeque::with_capacity(AHEAD),
            units: plan.units,
        })
    }

    /// Makes the tables for these settings and element types, unless they are there: they change in the first call only.
    pub(crate) fn prepare(
        &mut self,
        device: &D,
        plan: &Plan,
        settings: &[Settings],
        dtypes: &[u32],
    ) -> Result<()> {
        if self.fixed.as_ref().is_some_and(|fixed| fixed.settings == settings && fixed.dtypes == dtypes) {
            return Ok(());
        }
        if device.capturing()? {
            return Err(unprepared(device));
        }
        let layout = Layout::new(plan, settings, dtypes, device.lag());
        self.fixed = Some(Fixed {
            tensors: upload::<D, Tensor>(device, &layout.tensors)?,
            pieces: upload::<D, Piece>(device, &layout.pieces)?,
            spans: upload::<D, Span>(device, &layout.spans)?,
            moves: upload::<D, Item>(device, &layout.moves)?,
            writes: upload::<D, Item>(device, &layout.writes)?,
            settings: settings.to_vec(),
            dtypes: dtypes.to_vec(),
            layout,
        });
        Ok(())
    }

    /// A job with all addresses and counts; the rest is zero.
    pub(crate) fn job(&self, device: &D, scalars: u64, queue: Queue) -> Job {
        let fixed = self.fixed.as_ref().expect("`prepare` comes first");
        let (items, item_count) = match queue {
            Queue::Moves => (&fixed.moves, fixed.layout.moves.len()),
            Queue::Writes => (&fixed.writes, fixed.layout.writes.len()),
        };
        let call = device.address(&self.call);
        Job {
            tensors: device.address(&fixed.tensors),
            operands: call + size_of::<Job>() as u64,
            pieces: device.address(&fixed.pieces),
            spans: device.address(&fixed.spans),
            items: device.address(items),
            scalars,
            moves: device.address(&self.scratch.moves),
            span_sums: device.address(&self.scratch.span_sums),
            tensor_sums: device.address(&self.scratch.tensor_sums),
            parts: device.address(&self.scratch.parts),
            norms: device.address(&self.scratch.norms),
            progress: device.address(&self.scratch.progress),
            counters: device.address(&self.scratch.counters),
            status: device.address(&self.scratch.status),
            tensor_count: fixed.layout.tensors.len() as u32,
            piece_count: fixed.layout.pieces.len() as u32,
            span_count: fixed.layout.spans.len() as u32,
            item_count: item_count as u32,
            ..Job::zeroed()
        }
    }

    /// Queues the copy of a job and its operands to the device, unless they are what it has already: then nothing but
    /// kernels is queued.
    pub(crate) fn send(&mut self, device: &D, job: &Job, operands: &[Operands]) -> Result<()> {
        let parts: [&[u8]; 2] = [bytemuck::bytes_of(job), bytemuck::cast_slice(operands)];
        // Slices are compared at memory speed: this looks at every step's 128 bytes a tensor.
        if self.sent.split_at_checked(parts[0].len()).is_some_and(|sent| <[&[u8]; 2]>::from(sent) == parts) {
            return Ok(());
        }
        if device.capturing()? {
            return Err(unprepared(device));
        }
        self.sent.clear();
        parts.iter().for_each(|part| self.sent.extend_from_slice(part));
        let queued = self.queue_copy(device);
        if queued.is_err() {
            // Nobody knows what the device has.
            self.sent.clear();
        }
        queued
    }

    fn queue_copy(&mut self, device: &D) -> Result<()> {
        let (at, staging) = self.inputs.turn()?;
        device.contents(staging)?[..self.sent.len()].copy_from_slice(&self.sent);
        device.copy_in(staging, &mut self.call, self.sent.len())?;
        self.inputs.queued(at)
    }

    /// Queues a kernel over `work` items, at least one block.
    pub(crate) fn launch(&self, device: &D, kernel: &'static str, work: usize) -> Result<()> {
        let blocks = device.resident_blocks(kernel)?.min(work).max(1);
        device.launch(kernel, blocks, device.address(&self.call))
    }

    /// Queues the copy of what the call says of itself. A captured call has nothing to say: see [`Workspace::latest`].
    pub(crate) fn report(&mut self, device: &D) -> Result<()> {
        if device.capturing()? {
            return Ok(());
        }
        let (at, staging) = self.reports.turn()?;
        device.copy_out(&self.scratch.status, staging, size_of::<Status>())?;
        self.reports.queued(at)?;
        self.pending.push_back(at);
        Ok(())
    }

    /// Waits for the oldest call whose outcome is not known, and says what became of it.
    pub(crate) fn outcome(&mut self, device: &D, set: &ParamSet) -> Result<Option<Status>> {
        let Some(at) = self.pending.pop_front() else { return Ok(None) };
        let staging = self.reports.done(at)?;
        let status = bytemuck::pod_read_unaligned(&device.contents(staging)?[..size_of::<Status>()]);
        verdict(status, set).map(Some)
    }

    /// The outcomes of calls that the device is through with, waiting only for one that is [`AHEAD`] calls ago. Calls that
    /// failed before are an error here. While calls are captured, nothing may be asked.
    pub(crate) fn earlier_outcomes(&mut self, device: &D, set: &ParamSet) -> Result<()> {
        if self.pending.is_empty() || device.capturing()? {
            return Ok(());
        }
        while let Some(&at) = self.pending.front()
            && (self.pending.len() == AHEAD || self.reports.is_done(at)?)
        {
            self.outcome(device, set)?;
        }
        Ok(())
    }

    /// Waits for everything queued so far and says what became of the last call, also if it was the replay of a graph. Calls
    /// before it that failed, and whose error nobody has got, are an error first.
    pub(crate) fn latest(&mut self, device: &D, set: &ParamSet) -> Result<StepReport> {
        if device.capturing()? {
            let reason = "calls are being captured in a graph; ask after it was launched".into();
            return Err(Error::Device {
                device: device.name(),
                call: "asking for an outcome".into(),
                reason,
            });
        }
        while self.outcome(device, set)?.is_some() {}
        let mut status = Status::zeroed();
        device.read(&self.scratch.status, 0, bytemuck::bytes_of_mut(&mut status))?;
        let status = verdict(status, set)?;
        // The device has what was sent last: the job of this call.
        let clipped = self.sent.get(..size_of::<Job>()).is_some_and(|job| {
            let job: Job = bytemuck::pod_read_unaligned(job);
            job.max_grad_norm > 0.0
        });
        Ok(StepReport { grad_norm: clipped.then_some(status.grad_norm) })
    }

    pub(crate) fn norms(&self, device: &D) -> Result<Vec<f64>> {
        let mut norms = vec![0.0f64; self.units];
        device.read(&self.scratch.norms, 0, bytemuck::cast_slice_mut(&mut norms))?;
        Ok(norms)
    }
}

/// What became of a call: its error, if it was refused.
fn verdict(status: Status, set: &ParamSet) -> Result<Status> {
    let name = || set.tensors().get(status.first as usize).map_or_else(String::new, |spec| spec.name.clone());
    match status.refused {
        refusal::ACCEPTED => Ok(status),
        refusal::BAD_GRADIENT => {
            Err(Error::NonFiniteGradient { tensor: name(), count: status.count as usize })
        }
        refusal::BAD_PRODUCT => {
            Err(Error::NonFiniteValue { tensor: name(), what: "product of gradient and displacement" })
        }
        _ => Err(Error::NonFiniteValue { tensor: name(), what: "displacement" }),
    }
}
