//! The CPU backend: fused passes over all tensors at once, on rayon's threads.
//!
//! The same input gives the same bits on any number of threads: the [`Plan`] fixes what is added up in which order, and
//! kernels sum over a fixed number of lanes.
//!
//! # Memory traffic
//!
//! Bytes per parameter of one [`Optimizer::step`](crate::Optimizer::step), f32, AdamW. "Check" is the pass over the
//! gradients that makes sure that a step happens whole or not at all; constraints that need a look at the gradient
//! anyway share it.
//!
//! | constraint | check and sums | move | second pass | total |
//! |---|---|---|---|---|
//! | none, fixed scale | g: 4 | w g m v, write w m v: 28 | | 32 |
//! | L2-SP | g: 4 | + anchor: 32 | | 36 |
//! | pull | g: 4 | 28, + anchor where it pulls there: 32; + importance: 4 more | | 32 to 40 |
//! | fixed radius, TPGM; MARS | g: 4 | + anchor: 32 | in cache | 36 |
//! | fixed radius, TPGM; L2 | g: 4 | + anchor: 32 | w a, write w: 12, read from the last-level cache | 48 |
//! | FTP | g c: 8 | + anchor, write c: 36 | in cache | 44 |
//! | FTP, low memory | g w a: 12 | + anchor: 32 | in cache | 44 |
//! | SPD | g w a: 12 | 28, + anchor where the gradient points home: 32 | 12 where decay fires | 40 to 56 |
//! | DiGraP | g w a d: 16 | + anchor, write d: 36 | | 52 |
//!
//! With [`Gradients::Trust`](crate::Gradients::Trust) the first column drops out where it holds the gradient alone; elsewhere it
//! is read just before the tensor moves, which then finds in the last-level cache what fits there.
//! SGD with momentum moves 8 bytes less than AdamW, AMSGrad 8 more.
//! Importance of a pull is taken from gradients for 4 bytes, then 12.
//!
//! Bytes per parameter that are kept between two steps, f32, besides weights and anchors: moments of AdamW 8 (AMSGrad 12, SGD with
//! momentum 4); FTP's displacement and DiGraP's direction 4; a pull 0, its importance 4; an average of the weights, such as a
//! teacher's, 4. `state B` of the measured rows of `benches/RESULTS.md` is this.
//! A [`Projector`](crate::Projector) projects for 12 bytes (MARS, f32) or 20, 8 of them from the last-level cache (L2).

mod advance;
mod blend;
mod decide;
mod importance;
mod kernels;
mod lanes;
mod measure;
mod operand;
mod project;
mod pull;
mod settle;
mod simd;
pub(crate) mod step;
mod tensors;

use std::ops::Range;
use std::sync::Arc;

use self::advance::PieceNorms;
use self::measure::PieceSums;
use self::operand::Operands;
use self::simd::Simd;

use crate::backend::Slots;
use crate::backend::{Backend, Blend, Job, StepReport, TensorIo, Write};
use crate::element::{Buffer, DType, Slice, SliceMut};
use crate::error::{Error, Result};
use crate::params::Settings;
use crate::plan::Plan;
use crate::rule::Rule;
use crate::scalars::TensorScalars;
use crate::step::StepOptions;

/// The CPU backend. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cpu {
    pool: Option<Arc<rayon::ThreadPool>>,
    simd: Simd,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// Runs on rayon's current pool: the global one, or the one the call is made from.
    pub fn new() -> Self {
        Self { pool: None, simd: Simd::detect() }
    }

    /// Runs on `threads` threads of its own, at least 1. Results have the same bits as with any other number.
    ///
    /// # Errors
    ///
    /// [`Error::ThreadPool`] if the threads cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .build()
            .map_err(|error| Error::ThreadPool { threads, reason: error.to_string() })?;
        Ok(Self { pool: Some(Arc::new(pool)), ..Self::new() })
    }

    /// The same without the CPU's own vector instructions. Results have the same bits; only tests need this.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn baseline(mut self) -> Self {
        self.simd = Simd::Baseline;
        self
    }

    /// Runs `work` on a thread of the pool. Handing work to the pool from outside costs tens of microseconds, so a whole
    /// call goes in once; passes inside it find themselves there already.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None if rayon::current_thread_index().is_some() => work(),
            None => rayon::scope(|_| work()),
        }
    }
}

/// Scratch memory of a set on the CPU. Its vectors keep their capacity, so a step after the first allocates nothing.
#[derive(Debug)]
pub struct Workspace {
    operands: Vec<Operands>,
    sums: Vec<PieceSums>,
    piece_norms: Vec<PieceNorms>,
    parts: Vec<f64>,
    norms: Vec<f64>,
}

impl Workspace {
    /// Takes the addresses of all operands of a call.
    fn bind(
        &mut self,
        io: &mut [TensorIo<'_, Cpu>],
        slots: &mut [Slots<Cpu>],
        settings: &[Settings],
        scalars: &[TensorScalars],
    ) {
        self.operands.clear();
        let tensors = io.iter_mut().zip(slots).zip(settings).zip(scalars);
        self.operands.extend(tensors.map(|(((io, slots), settings), scalars)| {
            Operands::new(io, slots, settings, scalars.master_filled == 0.0)
        }));
    }
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Ref<'a> = Slice<'a>;
    type Mut<'a> = SliceMut<'a>;
    type Scalars = Vec<TensorScalars>;
    type Workspace = Workspace;

    fn describe(data: Slice<'_>) -> (DType, usize) {
        (data.dtype(), data.len())
    }

    fn describe_mut(data: &SliceMut<'_>) -> (DType, usize) {
        (data.dtype(), data.len())
    }

    fn as_ref(buffer: &Buffer) -> Slice<'_> {
        buffer.as_slice()
    }

    fn as_mut(buffer: &mut Buffer) -> SliceMut<'_> {
        buffer.as_mut()
    }

    fn reborrow<'a>(data: &'a mut SliceMut<'_>) -> SliceMut<'a> {
        data.reborrow()
    }

    fn view(buffer: &Buffer, range: Range<usize>) -> Slice<'_> {
        buffer.as_slice().sub(range)
    }

    fn view_mut(buffer: &mut Buffer, range: Range<usize>) -> SliceMut<'_> {
        buffer.as_mut().sub_mut(range)
    }

    fn zeros(&self, dtype: DType, len: usize) -> Result<Buffer> {
        Ok(Buffer::zeros(dtype, len))
    }

    fn upload(&self, data: &Buffer) -> Result<Buffer> {
        Ok(data.clone())
    }

    fn download(&self, data: &Buffer) -> Result<Buffer> {
        Ok(data.clone())
    }

    fn duplicate(&self, data: &Buffer) -> Result<Buffer> {
        Ok(data.clone())
    }

    fn upload_scalars(&self, scalars: &[TensorScalars]) -> Result<Vec<TensorScalars>> {
        Ok(scalars.to_vec())
    }

    fn download_scalars(&self, scalars: &Vec<TensorScalars>) -> Result<Vec<TensorScalars>> {
        Ok(scalars.clone())
    }

    fn workspace(&self, plan: &Plan) -> Result<Workspace> {
        Ok(Workspace {
            operands: Vec::with_capacity(plan.tensors.len()),
            sums: vec![PieceSums::NONE; plan.pieces.len()],
            piece_norms: vec![PieceNorms::EMPTY; plan.pieces.len()],
            parts: vec![0.0; plan.parts],
            norms: vec![0.0; plan.units],
        })
    }

    fn norms(&self, workspace: &Workspace) -> Result<Vec<f64>> {
        Ok(workspace.norms.clone())
    }

    fn step(&self, job: Job<'_, '_, Self>, rule: &Rule, options: &StepOptions) -> Result<StepReport> {
        self.run(|| step::step(self, job, rule, options, &[]))
    }

    fn project(&self, job: Job<'_, '_, Self>) -> Result<()> {
        self.run(|| project::project(self, job))
    }

    fn remember(&self, job: Job<'_, '_, Self>) -> Result<()> {
        self.run(|| project::remember(self, job))
    }

    fn write(&self, job: Job<'_, '_, Self>, write: Write) -> Result<()> {
        self.run(|| project::write(self, job, write))
    }

    fn update_radii(&self, job: Job<'_, '_, Self>) -> Result<()> {
        self.run(|| project::update_radii(self, job))
    }

    fn update_importance(&self, job: Job<'_, '_, Self>) -> Result<()> {
        self.run(|| importance::update(self, job))
    }

    fn blend(
        &self,
        plan: &Plan,
        _: &mut Workspace,
        targets: &mut [SliceMut<'_>],
        sources: &[Slice<'_>],
        shares: Blend,
    ) -> Result<()> {
        self.run(|| blend::blend(self, plan, targets, sources, shares));
        Ok(())
    }
}
