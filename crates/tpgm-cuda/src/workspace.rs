//! Scratch memory of a set, and the way of a call to the device and back.

use std::collections::VecDeque;

use bytemuck::{Pod, Zeroable};
use tpgm_core::plan::Plan;
use tpgm_core::{Error, ParamSet, Result, Settings};

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

/// Page-locked memory that copies take turns in.
struct Ring<D: Device> {
    entries: Vec<(D::Staging, Option<D::Event>)>,
    next: usize,
}

impl<D: Device> Ring<D> {
    fn new(device: &D, bytes: usize) -> Result<Self> {
        let entries = (0..AHEAD).map(|_| Ok((device.staging(bytes)?, None))).collect::<Result<_>>()?;
        Ok(Self { entries, next: 0 })
    }

    /// Waits until the copy of [`AHEAD`] turns ago is done, and gives its memory.
    fn turn(&mut self, device: &D) -> Result<(usize, &mut D::Staging)> {
        let at = self.next;
        self.next = (at + 1) % AHEAD;
        let (staging, event) = &mut self.entries[at];
        if let Some(event) = event.take() {
            device.wait(&event)?;
        }
        Ok((at, staging))
    }
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
        let layout = Layout::new(plan, settings, dtypes);
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
        let parts = [bytemuck::bytes_of(job), bytemuck::cast_slice(operands)];
        if self.sent.iter().eq(parts.iter().copied().flatten()) {
            return Ok(());
        }
        self.sent.clear();
        parts.iter().for_each(|part| self.sent.extend_from_slice(part));
        let (at, staging) = self.inputs.turn(device)?;
        device.contents(staging)?[..self.sent.len()].copy_from_slice(&self.sent);
        device.copy_in(staging, &mut self.call, self.sent.len())?;
        self.inputs.entries[at].1 = Some(device.record()?);
        Ok(())
    }

    /// Queues a kernel over `work` items, at least one block.
    pub(crate) fn launch(&self, device: &D, kernel: &'static str, work: usize) -> Result<()> {
        let blocks = device.resident_blocks(kernel)?.min(work).max(1);
        device.launch(kernel, blocks, device.address(&self.call))
    }

    /// Queues the copy of what the call says of itself.
    pub(crate) fn report(&mut self, device: &D, set: &ParamSet) -> Result<()> {
        if self.pending.len() == AHEAD {
            self.outcome(device, set)?;
        }
        let (at, staging) = self.reports.turn(device)?;
        device.copy_out(&self.scratch.status, staging, size_of::<Status>())?;
        self.reports.entries[at].1 = Some(device.record()?);
        self.pending.push_back(at);
        Ok(())
    }

    /// Waits for the oldest call whose outcome is not known, and says what became of it.
    pub(crate) fn outcome(&mut self, device: &D, set: &ParamSet) -> Result<Option<Status>> {
        let Some(at) = self.pending.pop_front() else { return Ok(None) };
        let (staging, event) = &mut self.reports.entries[at];
        if let Some(event) = event.take() {
            device.wait(&event)?;
        }
        let status: Status = bytemuck::pod_read_unaligned(&device.contents(staging)?[..size_of::<Status>()]);
        let name =
            || set.tensors().get(status.first as usize).map_or_else(String::new, |spec| spec.name.clone());
        match status.refused {
            refusal::ACCEPTED => Ok(Some(status)),
            refusal::BAD_GRADIENT => {
                Err(Error::NonFiniteGradient { tensor: name(), count: status.count as usize })
            }
            refusal::BAD_PRODUCT => {
                Err(Error::NonFiniteValue { tensor: name(), what: "product of gradient and displacement" })
            }
            _ => Err(Error::NonFiniteValue { tensor: name(), what: "displacement" }),
        }
    }

    /// The outcomes of calls that the device is through with, without waiting for others. Calls that failed before are an
    /// error here.
    pub(crate) fn earlier_outcomes(&mut self, device: &D, set: &ParamSet) -> Result<()> {
        while let Some(&at) = self.pending.front() {
            let done = match &self.reports.entries[at].1 {
                Some(event) => device.reached(event)?,
                None => true,
            };
            if !done {
                break;
            }
            self.outcome(device, set)?;
        }
        Ok(())
    }

    pub(crate) fn norms(&self, device: &D) -> Result<Vec<f64>> {
        let mut norms = vec![0.0f64; self.units];
        device.read(&self.scratch.norms, 0, bytemuck::cast_slice_mut(&mut norms))?;
        Ok(norms)
    }
}
