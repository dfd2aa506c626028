//! The backend: whole passes over a set, each one or two launches.
//!
//! | call | launches | bytes per f32 parameter |
//! |---|---|---|
//! | step | 2: measure and decide, move | as on the CPU: see the table in [`tpgm_core::cpu`] |
//! | projection | 1 | 12; L2, and rows longer than a piece, 8 more from the L2 cache |
//! | `remember` | 1 | 12 |
//! | `write` | 1 | 12 |
//! | radius gradients and Adam | 1 | 12 |
//! | importance of pulls | 2 | 4, then 12 |
//! | blend (moving average, interpolation) | 1 | 12 |

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use tpgm_core::backend::{Backend, Blend, Job, Write};
use tpgm_core::plan::Plan;
use tpgm_core::{
    AnchorKind, Buffer as HostBuffer, Constraint, DType, Decay, Gradients, ParamSet, Projection, Result,
    Rule, Settings, StepOptions, StepReport, TensorScalars,
};

use crate::device::Device;
use crate::memory::{Buffer, View, ViewMut};
use crate::modules::{self, Kernel};
use crate::operands::Bound;
use crate::tables::{self, bytes};
use crate::workspace::{Queue, Workspace};

/// Elements that a thread holds in registers: `PER_THREAD` of the kernels.
pub(crate) const PER_THREAD: usize = 16;

/// Rows of `len` elements that a block of `threads` threads holds at a time, at least 1: `Rounds` of the kernels. A row has as few
/// threads as can hold it, a power of two, so that a round seldom fills all of them.
pub fn rows_at_a_time(threads: usize, len: usize) -> usize {
    (threads / len.div_ceil(PER_THREAD).max(1).next_power_of_two()).max(1)
}

/// When a call says that it was refused, for example for a gradient that is not finite. The device itself changes nothing
/// then, whatever is chosen here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reports {
    /// A later call on the same optimizer returns the error, and does nothing else; so the host never waits for the
    /// device in a step. [`StepReport::grad_norm`] is `None`.
    #[default]
    Late,
    /// The call itself waits for the device and returns its own error.
    AtOnce,
}

/// A backend that runs the fused kernels on a [`Device`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gpu<D: Device> {
    device: D,
    reports: Reports,
}

/// The scalars of a set in device memory.
pub struct Scalars<D: Device> {
    memory: D::Memory,
    len: usize,
}

impl<D: Device> Gpu<D> {
    /// The backend of a device.
    pub fn on(device: D) -> Self {
        Self { device, reports: Reports::default() }
    }

    /// Sets when calls say that they were refused.
    #[must_use]
    pub fn reports(mut self, reports: Reports) -> Self {
        self.reports = reports;
        self
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Prepares a call: earlier outcomes are looked at, operands bound, tables there.
    fn start<'j>(&self, job: Job<'j, '_, Self>, queue: Queue) -> Result<Call<'j, D>> {
        let Job { set, settings, plan, io, slots, scalars, workspace } = job;
        workspace.earlier_outcomes(&self.device, set)?;
        let bound = Bound::new(io, slots, settings);
        workspace.prepare(&self.device, plan, settings, &bound.dtypes)?;
        let table = workspace.job(&self.device, self.device.address(&scalars.memory), queue);
        Ok(Call { set, workspace, bound, table })
    }

    /// Prepares a step.
    fn start_step<'j>(
        &self,
        job: Job<'j, '_, Self>,
        rule: &Rule,
        options: &StepOptions,
    ) -> Result<Call<'j, D>> {
        let sums = job.settings.iter().any(measures);
        let mut call = self.start(job, Queue::Moves)?;
        let table = &mut call.table;
        rule_table(table, rule);
        table.lr = options.lr.unwrap_or(rule.lr());
        table.grad_scale = options.grad_scale;
        table.max_grad_norm = options.max_grad_norm.unwrap_or(0.0);
        table.defer = u32::from(options.projection == Projection::Defer);
        table.trusted = u32::from(options.gradients == Gradients::Trust);
        if options.gradients == Gradients::Trust && options.max_grad_norm.is_none() && !sums {
            table.span_count = 0;
        }
        Ok(call)
    }

    /// Queues a call's tables and one of its kernels, for the operands' storage.
    fn launch(&self, call: &mut Call<'_, D>, kernel: &Kernel, work: u32) -> Result<()> {
        call.workspace.send(&self.device, &call.table, &call.bound.operands)?;
        call.workspace.launch(&self.device, kernel.name(call.bound.storage), work as usize)
    }

    /// Ends a call that may be refused: waits for its outcome, or leaves it to a later call.
    fn conclude(&self, call: Call<'_, D>) -> Result<Option<f64>> {
        call.workspace.report(&self.device)?;
        match self.reports {
            Reports::Late => Ok(None),
            Reports::AtOnce => {
                Ok(call.workspace.outcome(&self.device, call.set)?.map(|status| status.grad_norm))
            }
        }
    }
}

/// A call on its way to the device.
struct Call<'j, D: Device> {
    set: &'j ParamSet,
    workspace: &'j mut Workspace<D>,
    bound: Bound,
    table: tables::Job,
}

/// The kernels that move weights by a rule.
fn advance(rule: &Rule) -> &'static Kernel {
    match rule {
        Rule::AdamW(_) => &modules::ADAMW,
        Rule::Sgd(_) => &modules::SGD,
    }
}

fn rule_table(table: &mut tables::Job, rule: &Rule) {
    table.coupled = u32::from(rule.decay() == Decay::Coupled);
    match rule {
        Rule::AdamW(rule) => {
            table.rule = tables::rule::ADAMW;
            table.flag = u32::from(rule.amsgrad);
            (table.beta1, table.beta2, table.eps) = (rule.beta1, rule.beta2, rule.eps);
        }
        Rule::Sgd(rule) => {
            table.rule = tables::rule::SGD;
            table.flag = u32::from(rule.nesterov);
            (table.momentum, table.dampening) = (rule.momentum, rule.dampening);
        }
    }
}

/// True if the constraint needs sums over the gradient, whatever is known of it.
fn measures(settings: &Settings) -> bool {
    matches!(settings.constraint, Constraint::Ftp(_) | Constraint::Spd(_) | Constraint::Digrap(_))
}

impl<D: Device> Backend for Gpu<D> {
    type Buffer = Buffer<D>;
    type Ref<'a> = View<'a>;
    type Mut<'a> = ViewMut<'a>;
    type Scalars = Scalars<D>;
    type Workspace = Workspace<D>;

    fn chunk(&self) -> usize {
        self.device.threads() * PER_THREAD
    }

    fn rows_at_a_time(&self, len: usize) -> usize {
        rows_at_a_time(self.device.threads(), len)
    }

    fn describe(data: View<'_>) -> (DType, usize) {
        (data.dtype(), data.len())
    }

    fn describe_mut(data: &ViewMut<'_>) -> (DType, usize) {
        Self::describe(data.as_view())
    }

    fn as_ref(buffer: &Buffer<D>) -> View<'_> {
        buffer.view()
    }

    fn as_mut(buffer: &mut Buffer<D>) -> ViewMut<'_> {
        buffer.view_mut()
    }

    fn reborrow<'a>(data: &'a mut ViewMut<'_>) -> ViewMut<'a> {
        data.reborrow()
    }

    fn view(buffer: &Buffer<D>, range: Range<usize>) -> View<'_> {
        buffer.view().slice(range)
    }

    fn view_mut(buffer: &mut Buffer<D>, range: Range<usize>) -> ViewMut<'_> {
        buffer.view_mut().slice(range)
    }

    fn zeros(&self, dtype: DType, len: usize) -> Result<Buffer<D>> {
        Ok(Buffer::new(&self.device, self.device.allocate(len * dtype.size())?, dtype, len))
    }

    fn upload(&self, data: &HostBuffer) -> Result<Buffer<D>> {
        let mut buffer = self.zeros(data.dtype(), data.len())?;
        let bytes: &[u8] = match data {
            HostBuffer::F64(data) => bytemuck::cast_slice(data),
            HostBuffer::F32(data) => bytemuck::cast_slice(data),
            HostBuffer::F16(data) => bytemuck::cast_slice(data.reinterpret_cast()),
            HostBuffer::BF16(data) => bytemuck::cast_slice(data.reinterpret_cast()),
        };
        self.device.write(&mut buffer.memory, 0, bytes)?;
        Ok(buffer)
    }

    fn download(&self, data: &Buffer<D>) -> Result<HostBuffer> {
        let len = data.view().len();
        let read = |bytes: &mut [u8]| self.device.read(&data.memory, 0, bytes);
        let bits = || -> Result<Vec<u16>> {
            let mut bits = vec![0u16; len];
            read(bytemuck::cast_slice_mut(&mut bits))?;
            Ok(bits)
        };
        let mut buffer = HostBuffer::zeros(data.view().dtype(), len);
        match &mut buffer {
            HostBuffer::F64(data) => read(bytemuck::cast_slice_mut(data))?,
            HostBuffer::F32(data) => read(bytemuck::cast_slice_mut(data))?,
            HostBuffer::F16(data) => *data = bits()?.into_iter().map(f16::from_bits).collect(),
            HostBuffer::BF16(data) => *data = bits()?.into_iter().map(bf16::from_bits).collect(),
        }
        Ok(buffer)
    }

    fn upload_scalars(&self, scalars: &[TensorScalars]) -> Result<Scalars<D>> {
        let rows: Vec<[f64; TensorScalars::FIELDS]> = scalars.iter().map(|s| s.to_array()).collect();
        let mut memory = self.device.allocate(rows.len() * bytes::SCALARS)?;
        self.device.write(&mut memory, 0, bytemuck::cast_slice(&rows))?;
        Ok(Scalars { memory, len: rows.len() })
    }

    fn download_scalars(&self, scalars: &Scalars<D>) -> Result<Vec<TensorScalars>> {
        let mut rows = vec![[0.0f64; TensorScalars::FIELDS]; scalars.len];
        self.device.read(&scalars.memory, 0, bytemuck::cast_slice_mut(&mut rows))?;
        Ok(rows.into_iter().map(TensorScalars::from_array).collect())
    }

    fn workspace(&self, plan: &Plan) -> Result<Workspace<D>> {
        Workspace::new(&self.device, plan)
    }

    fn norms(&self, workspace: &Workspace<D>) -> Result<Vec<f64>> {
        workspace.norms(&self.device)
    }

    fn step(&self, job: Job<'_, '_, Self>, rule: &Rule, options: &StepOptions) -> Result<StepReport> {
        let mut call = self.start_step(job, rule, options)?;
        let (spans, items) = (call.table.span_count, call.table.item_count);
        self.launch(&mut call, &modules::MEASURE, spans)?;
        self.launch(&mut call, advance(rule), items)?;
        let grad_norm = self.conclude(call)?;
        Ok(StepReport { grad_norm: grad_norm.filter(|_| options.max_grad_norm.is_some()) })
    }

    fn prepare_step(&self, job: Job<'_, '_, Self>, rule: &Rule, options: &StepOptions) -> Result<()> {
        let call = self.start_step(job, rule, options)?;
        // So that the step can be captured next: kernels cannot be loaded then.
        for kernel in [&modules::MEASURE, advance(rule)] {
            self.device.resident_blocks(kernel.name(call.bound.storage))?;
        }
        call.workspace.send(&self.device, &call.table, &call.bound.operands)
    }

    fn outcome(&self, set: &ParamSet, workspace: &mut Workspace<D>) -> Result<StepReport> {
        workspace.latest(&self.device, set)
    }

    fn project(&self, job: Job<'_, '_, Self>) -> Result<()> {
        let mut call = self.start(job, Queue::Moves)?;
        let items = call.table.item_count;
        self.launch(&mut call, &modules::PROJECT, items)
    }

    fn remember(&self, job: Job<'_, '_, Self>) -> Result<()> {
        let mut call = self.start(job, Queue::Moves)?;
        let pieces = call.table.piece_count;
        self.launch(&mut call, &modules::REMEMBER, pieces)?;
        self.conclude(call).map(drop)
    }

    fn write(&self, job: Job<'_, '_, Self>, write: Write) -> Result<()> {
        let mut call = self.start(job, Queue::Writes)?;
        call.table.write = match write {
            Write::Trial => tables::write::TRIAL,
            Write::Projection => tables::write::PROJECTION,
            Write::Remembered => tables::write::REMEMBERED,
        };
        let items = call.table.item_count;
        self.launch(&mut call, &modules::WRITE, items)
    }

    fn update_radii(&self, job: Job<'_, '_, Self>) -> Result<()> {
        let mut call = self.start(job, Queue::Moves)?;
        call.table.grad_scale = 1.0;
        let spans = call.table.span_count;
        self.launch(&mut call, &modules::RADII, spans)?;
        self.conclude(call).map(drop)
    }

    fn update_importance(&self, job: Job<'_, '_, Self>) -> Result<()> {
        let mut call = self.start(job, Queue::Moves)?;
        (call.table.importance, call.table.grad_scale) = (1, 1.0);
        let (spans, pieces) = (call.table.span_count, call.table.piece_count);
        self.launch(&mut call, &modules::MEASURE, spans)?;
        self.launch(&mut call, &modules::WEIGH, pieces)?;
        self.conclude(call).map(drop)
    }

    fn blend(
        &self,
        plan: &Plan,
        workspace: &mut Workspace<D>,
        targets: &mut [ViewMut<'_>],
        sources: &[View<'_>],
        shares: Blend,
    ) -> Result<()> {
        let bound = Bound::blend(targets.iter().map(|target| target.as_view()).zip(sources.iter().copied()));
        let plain = Settings {
            lr_scale: 1.0,
            weight_decay: 0.0,
            constraint: Constraint::None,
            anchor: AnchorKind::None,
        };
        workspace.prepare(&self.device, plan, &vec![plain; plan.tensors.len()], &bound.dtypes)?;
        let mut table = workspace.job(&self.device, 0, Queue::Moves);
        (table.keep, table.take) = (shares.keep, shares.take);
        workspace.send(&self.device, &table, &bound.operands)?;
        let kernel = modules::BLEND.name(bound.storage);
        workspace.launch(&self.device, kernel, table.piece_count as usize)
    }
}
