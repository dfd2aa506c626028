//! What a backend does for [`Optimizer`](crate::Optimizer) and [`Projector`](crate::Projector).
//!
//! A backend owns memory (state) and borrows memory (weights, gradients, anchors), and runs whole passes over a set:
//! never one tensor at a time. Everything method-specific that is not arithmetic on elements lives above this trait.

use std::ops::Range;

use crate::element::{Buffer, DType};
use crate::error::Result;
use crate::params::{ParamSet, Settings};
use crate::plan::{CHUNK, Plan};
use crate::rule::Rule;
use crate::scalars::TensorScalars;
use crate::step::StepOptions;

mod slots;

pub use self::slots::{Slot, Slots};

/// Running variances of a normalization layer, for [`FixedScale`](crate::FixedScale).
#[derive(Debug, Clone, Copy)]
pub struct Variance<R> {
    /// Running variance of the model in training.
    pub current: R,
    /// Running variance of the pre-trained model.
    pub anchor: R,
}

/// One tensor's operands in a call, in memory of backend `B`.
///
/// ```
/// use tpgm_core::{Cpu, TensorIo};
/// let (mut weight, grad, anchor) = (vec![1.0f32; 4], vec![0.1f32; 4], vec![1.0f32; 4]);
/// let io = TensorIo::<Cpu>::new(&mut weight).grad(&grad).anchor(&anchor);
/// ```
#[derive(Debug)]
pub struct TensorIo<'a, B: Backend> {
    /// The weights, changed in place.
    pub weight: B::Mut<'a>,
    /// Their gradient; without one a step skips the tensor.
    pub grad: Option<B::Ref<'a>>,
    /// Their pre-trained value. Unused for tensors without a constraint or with the zero anchor.
    pub anchor: Option<B::Ref<'a>>,
    /// Running variances, for normalization scales that have them.
    pub variance: Option<Variance<B::Ref<'a>>>,
}

impl<'a, B: Backend> TensorIo<'a, B> {
    /// Weights alone.
    pub fn new(weight: impl Into<B::Mut<'a>>) -> Self {
        Self { weight: weight.into(), grad: None, anchor: None, variance: None }
    }

    /// Adds the gradient.
    #[must_use]
    pub fn grad(mut self, grad: impl Into<B::Ref<'a>>) -> Self {
        self.grad = Some(grad.into());
        self
    }

    /// Adds the anchor.
    #[must_use]
    pub fn anchor(mut self, anchor: impl Into<B::Ref<'a>>) -> Self {
        self.anchor = Some(anchor.into());
        self
    }

    /// Adds running variances (current, anchor).
    #[must_use]
    pub fn variance(mut self, current: impl Into<B::Ref<'a>>, anchor: impl Into<B::Ref<'a>>) -> Self {
        self.variance = Some(Variance { current: current.into(), anchor: anchor.into() });
        self
    }
}

/// Everything one pass over a set works on.
pub struct Job<'j, 'io, B: Backend> {
    /// Names and shapes.
    pub set: &'j ParamSet,
    /// What applies to each tensor.
    pub settings: &'j [Settings],
    /// How the tensors are cut.
    pub plan: &'j Plan,
    /// Borrowed operands, checked: lengths, types and anchors are right.
    pub io: &'j mut [TensorIo<'io, B>],
    /// State of parameter or row size.
    pub slots: &'j mut [Slots<B>],
    /// State of scalar size.
    pub scalars: &'j mut B::Scalars,
    /// Memory the backend made for this set.
    pub workspace: &'j mut B::Workspace,
}

/// A place where steps run.
///
/// Every operation acts on a whole set, and either happens whole or returns an error and changes nothing (a backend
/// that reports errors late, as a GPU does, skips the change on the device).
pub trait Backend: Sized {
    /// Owned memory.
    type Buffer: Send;
    /// Borrowed memory, read.
    type Ref<'a>: Copy;
    /// Borrowed memory, written.
    type Mut<'a>;
    /// The scalars of a set, where the backend wants them.
    type Scalars: Send;
    /// Scratch memory of a set: partial sums, norms, pointer tables.
    type Workspace: Send;

    /// Largest piece of work in elements, and the size where [`EngineOptions`](crate::EngineOptions) leaves it open.
    fn chunk(&self) -> usize {
        CHUNK
    }

    /// Rows of `len` elements that the backend works on at the same time, at least 1: where a piece has room for more, it gets
    /// a multiple of them.
    fn rows_at_a_time(&self, len: usize) -> usize {
        let _ = len;
        1
    }

    /// Element type and length.
    fn describe(data: Self::Ref<'_>) -> (DType, usize);
    /// Element type and length.
    fn describe_mut(data: &Self::Mut<'_>) -> (DType, usize);
    /// Borrows owned memory.
    fn as_ref(buffer: &Self::Buffer) -> Self::Ref<'_>;
    /// Borrows owned memory to write it.
    fn as_mut(buffer: &mut Self::Buffer) -> Self::Mut<'_>;

    /// Borrows memory to be written for a shorter time.
    fn reborrow<'a>(data: &'a mut Self::Mut<'_>) -> Self::Mut<'a>;

    /// Borrows some elements of owned memory. A view need not be aligned to more than its element type.
    ///
    /// # Panics
    ///
    /// If the range lies outside.
    fn view(buffer: &Self::Buffer, range: Range<usize>) -> Self::Ref<'_>;
    /// Borrows some elements of owned memory to write them.
    ///
    /// # Panics
    ///
    /// If the range lies outside.
    fn view_mut(buffer: &mut Self::Buffer, range: Range<usize>) -> Self::Mut<'_>;

    /// `len` zeros.
    ///
    /// # Errors
    ///
    /// When there is no memory or device.
    fn zeros(&self, dtype: DType, len: usize) -> Result<Self::Buffer>;
    /// Copies from the host.
    ///
    /// # Errors
    ///
    /// When there is no memory or device.
    fn upload(&self, data: &Buffer) -> Result<Self::Buffer>;
    /// Copies to the host.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn download(&self, data: &Self::Buffer) -> Result<Buffer>;
    /// A copy of owned memory.
    ///
    /// # Errors
    ///
    /// When there is no memory or device.
    fn duplicate(&self, data: &Self::Buffer) -> Result<Self::Buffer> {
        self.upload(&self.download(data)?)
    }
    /// Copies scalars from the host.
    ///
    /// # Errors
    ///
    /// When there is no memory or device.
    fn upload_scalars(&self, scalars: &[TensorScalars]) -> Result<Self::Scalars>;
    /// Copies scalars to the host.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn download_scalars(&self, scalars: &Self::Scalars) -> Result<Vec<TensorScalars>>;
    /// Makes the scratch memory of a set.
    ///
    /// # Errors
    ///
    /// When there is no memory or device.
    fn workspace(&self, plan: &Plan) -> Result<Self::Workspace>;
    /// The norms that the last step or projection measured: one per unit of `plan`.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn norms(&self, workspace: &Self::Workspace) -> Result<Vec<f64>>;

    /// One step of rule and constraint: gradient check, update, projection.
    ///
    /// # Errors
    ///
    /// [`Error::NonFiniteGradient`](crate::Error::NonFiniteGradient); nothing was changed then.
    fn step(&self, job: Job<'_, '_, Self>, rule: &Rule, options: &StepOptions) -> Result<StepReport>;
    /// Brings what a step needs to the device and takes no step, so that a step that was captured (a CUDA graph) replays with
    /// these operands and options. Nothing to do where there is no such thing.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn prepare_step(&self, job: Job<'_, '_, Self>, rule: &Rule, options: &StepOptions) -> Result<()> {
        let _ = (job, rule, options);
        Ok(())
    }

    /// Waits for everything so far and says what became of the last step, also if it was the replay of a captured one. Nothing
    /// to say where a step itself returns its error.
    ///
    /// # Errors
    ///
    /// Those of the last step, or of one before it that nobody has been told of.
    fn outcome(&self, set: &ParamSet, workspace: &mut Self::Workspace) -> Result<StepReport> {
        let _ = (set, workspace);
        Ok(StepReport::default())
    }

    /// TPGM: projects the weights with the current radii, in place.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn project(&self, job: Job<'_, '_, Self>) -> Result<()>;
    /// TPGM: copies the weights to [`Slot::Remembered`] (unless there is a master) and measures their displacement.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn remember(&self, job: Job<'_, '_, Self>) -> Result<()>;
    /// TPGM: clips the radii and writes what `write` says into the weights.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn write(&self, job: Job<'_, '_, Self>, write: Write) -> Result<()>;
    /// TPGM: the radius gradient, from the gradient of the loss at the projected weights; then Adam on all radii.
    ///
    /// # Errors
    ///
    /// [`Error::NonFiniteGradient`](crate::Error::NonFiniteGradient); no radius was changed then.
    fn update_radii(&self, job: Job<'_, '_, Self>) -> Result<()>;

    /// Pulls: takes the importance ([`Slot::Importance`]) of every tensor that has one from its gradient, if it has one of those.
    ///
    /// # Errors
    ///
    /// [`Error::NonFiniteGradient`](crate::Error::NonFiniteGradient); no importance was changed then.
    fn update_importance(&self, job: Job<'_, '_, Self>) -> Result<()>;

    /// `target = keep * target + take * source` for every tensor: moving averages and interpolation of weights. Targets and
    /// sources may be of different types. With `keep` 0 nobody looks at the targets, which may hold anything: with `take` 1
    /// this is a copy that rounds to their types.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn blend(
        &self,
        plan: &Plan,
        workspace: &mut Self::Workspace,
        targets: &mut [Self::Mut<'_>],
        sources: &[Self::Ref<'_>],
        shares: Blend,
    ) -> Result<()>;
}

/// The shares of [`Backend::blend`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blend {
    /// Factor on the target.
    pub keep: f64,
    /// Factor on the source.
    pub take: f64,
}

/// What [`Backend::write`] puts into the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The projection of the remembered weights, for the time of a held-out batch.
    Trial,
    /// The projection of the remembered weights, for good: masters too.
    Projection,
    /// The remembered weights.
    Remembered,
}

/// What a step says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepReport {
    /// Global norm of the gradients after `grad_scale`, before clipping; measured only when clipping is on.
    pub grad_norm: Option<f64>,
}
