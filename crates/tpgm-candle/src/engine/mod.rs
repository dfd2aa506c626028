//! The one place where a device is chosen.
//!
//! `tpgm-core`'s optimizer, projector and average are generic over the backend. Here they become objects that know
//! candle's tensors and no backend any more. Another device takes a `Bind` and a variant of `Place`.

mod average;
mod error;
mod operands;
mod radii;
mod steps;

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Device, Tensor};
use tpgm_core::plan::CHUNK;
#[cfg(any(feature = "cuda", test))]
use tpgm_core::weight_space::Interpolator;
use tpgm_core::{
    Backend, Constraint, Cpu, EngineOptions, ParamSet, Projector, Rule, Slice, SliceMut, StepOptions,
    StepReport, StepSums, TensorIo, TensorScalars, Tpgm,
};

use self::average::Average;
pub(crate) use self::average::EmaEngine;
pub use self::error::{Error, Result};
pub(crate) use self::operands::{Copies, Operands};
pub(crate) use self::radii::{Projects, RadiusEngine};
pub(crate) use self::steps::StepEngine;
use crate::memory::copy_elements;
use crate::params::Param;

/// A device that steps can run on. Clones share its threads or its stream.
#[derive(Clone)]
pub(crate) enum Place {
    /// The host.
    Cpu(Cpu),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(tpgm_cuda::Cuda),
}

impl Place {
    /// The device that all of `params` are on; `threads` limits the host's.
    pub(crate) fn of(params: &[Param], threads: Option<usize>) -> Result<Self> {
        let home = params.first().map_or(&Device::Cpu, |first| first.var().device());
        if let Some(other) = params.iter().find(|param| !param.var().device().same_device(home)) {
            return Err(Error::Devices {
                tensor: other.name().to_owned(),
                device: other.var().device().location(),
                first: params[0].name().to_owned(),
                expected: home.location(),
            });
        }
        match home {
            Device::Cpu => Ok(Place::Cpu(threads.map_or_else(|| Ok(Cpu::new()), Cpu::with_threads)?)),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Place::Cuda(tpgm_cuda::Cuda::with_stream(device.cuda_stream())?)),
            _ => Err(Error::Device { tensor: params[0].name().to_owned(), device: home.location() }),
        }
    }

    /// Elements of a piece of work where steps of some rows of a tensor, given its sums, are those of the whole, to the bit.
    /// `None` where they are not: on a GPU, which adds up and steps in one.
    pub(crate) fn cuts(&self, options: EngineOptions) -> Option<usize> {
        match self {
            Place::Cpu(_) => Some(options.chunk.map_or(CHUNK, |chunk| chunk.clamp(1, CHUNK))),
            #[cfg(feature = "cuda")]
            Place::Cuda(_) => None,
        }
    }

    /// Sets when a GPU says that it refused a call.
    #[cfg(feature = "cuda")]
    pub(crate) fn reports(self, reports: tpgm_cuda::Reports) -> Self {
        match self {
            Place::Cpu(cpu) => Place::Cpu(cpu),
            Place::Cuda(cuda) => Place::Cuda(cuda.reports(reports)),
        }
    }

    pub(crate) fn optimizer(
        self,
        set: &ParamSet,
        rule: Rule,
        constraint: Constraint,
        options: EngineOptions,
    ) -> Result<Box<dyn StepEngine>> {
        fn on<B: Bind>(
            backend: B,
            (set, rule, constraint, options): (&ParamSet, Rule, Constraint, EngineOptions),
        ) -> Result<Box<dyn StepEngine>> {
            Ok(Box::new(tpgm_core::Optimizer::with_options(backend, set, rule, constraint, options)?))
        }
        let with = (set, rule, constraint, options);
        match self {
            Place::Cpu(cpu) => on(cpu, with),
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => on(cuda, with),
        }
    }

    pub(crate) fn projector(self, set: &ParamSet, tpgm: Tpgm) -> Result<Box<dyn RadiusEngine>> {
        match self {
            Place::Cpu(cpu) => Ok(Box::new(Projector::new(cpu, set, tpgm)?)),
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => {
                let cuda = cuda.reports(tpgm_cuda::Reports::AtOnce);
                Ok(Box::new(Projector::new(cuda, set, tpgm)?))
            }
        }
    }

    /// An average that starts at what the variables hold.
    pub(crate) fn ema(self, set: &ParamSet, operands: &Operands) -> Result<Box<dyn EmaEngine>> {
        fn on<B: Bind + Clone>(
            backend: B,
            set: &ParamSet,
            operands: &Operands,
        ) -> Result<Box<dyn EmaEngine>> {
            #[cfg(any(feature = "cuda", test))]
            let writer = Interpolator::new(backend.clone(), set)?;
            let ema = B::bind(operands, &[], |io| {
                let weights: Vec<_> = io.iter().map(|io| B::read(&io.weight)).collect();
                tpgm_core::Ema::new(backend, set, &weights)
            })?;
            Ok(Box::new(Average {
                ema,
                #[cfg(any(feature = "cuda", test))]
                writer,
            }))
        }
        match self {
            Place::Cpu(cpu) => on(cpu, set, operands),
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => on(cuda, set, operands),
        }
    }

    /// Interpolates all weights of a set at a time.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn interpolator(self, set: &ParamSet) -> Result<Box<dyn InterpolationEngine>> {
        match self {
            Place::Cpu(cpu) => Ok(Box::new(Interpolator::new(cpu, set)?)),
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => Ok(Box::new(Interpolator::new(cuda, set)?)),
        }
    }
}

/// A backend that can work on candle's memory.
pub(crate) trait Bind: Backend + Send + 'static {
    /// Binds all operands and runs `work` on them. `grads` has one entry per variable, or none at all.
    fn bind<R: Send>(
        operands: &Operands,
        grads: &[Option<Tensor>],
        work: impl FnOnce(&mut [TensorIo<'_, Self>]) -> tpgm_core::Result<R> + Send,
    ) -> Result<R>;

    /// Weights as something to read.
    fn read<'a>(weight: &'a Self::Mut<'_>) -> Self::Ref<'a>;

    /// Writes averages into the variables, rounded to their types.
    fn write_averages(operands: &Operands, average: &mut Average<Self>) -> Result<()>;

    /// The sum of the squares of every gradient, 0 where there is none: see [`tpgm_core::Optimizer::grad_squares`].
    fn squares(
        optimizer: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<f64>>;

    /// Sums of every gradient, piece by piece: see [`tpgm_core::Optimizer::step_sums`].
    fn step_sums(
        optimizer: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Vec<StepSums>>>;

    /// A step that knows sums of some tensors: see [`tpgm_core::Optimizer::step_with_sums`].
    fn step_with(
        optimizer: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
        sums: &[Option<StepSums>],
    ) -> Result<StepReport>;
}

impl Bind for Cpu {
    fn bind<R: Send>(
        operands: &Operands,
        grads: &[Option<Tensor>],
        work: impl FnOnce(&mut [TensorIo<'_, Self>]) -> tpgm_core::Result<R> + Send,
    ) -> Result<R> {
        operands.with_cpu(grads, work)
    }

    fn read<'a>(weight: &'a SliceMut<'_>) -> Slice<'a> {
        weight.as_slice()
    }

    fn write_averages(operands: &Operands, average: &mut Average<Self>) -> Result<()> {
        operands.with_weights(|weights| {
            let pairs = weights.into_iter().zip(average.ema.averages());
            pairs.for_each(|(weight, average)| copy_elements(average.as_slice(), weight));
            Ok(())
        })
    }

    fn squares(
        optimizer: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<f64>> {
        operands.with_cpu(grads, |io| optimizer.grad_squares(io))
    }

    fn step_sums(
        optimizer: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Vec<StepSums>>> {
        operands.with_cpu(grads, |io| optimizer.step_sums(io))
    }

    fn step_with(
        optimizer: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
        sums: &[Option<StepSums>],
    ) -> Result<StepReport> {
        operands.with_cpu(grads, |io| match sums {
            [] => optimizer.step(io, options),
            sums => optimizer.step_with_sums(io, options, sums),
        })
    }
}

#[cfg(feature = "cuda")]
impl Bind for tpgm_cuda::Cuda {
    fn bind<R: Send>(
        operands: &Operands,
        grads: &[Option<Tensor>],
        work: impl FnOnce(&mut [TensorIo<'_, Self>]) -> tpgm_core::Result<R> + Send,
    ) -> Result<R> {
        operands.with_cuda(grads, work)
    }

    fn read<'a>(weight: &'a tpgm_cuda::ViewMut<'_>) -> tpgm_cuda::View<'a> {
        weight.as_view()
    }

    fn write_averages(operands: &Operands, average: &mut Average<Self>) -> Result<()> {
        average.blend_into(operands)
    }

    /// By candle's operations, in the type of the gradients or f32: the last bits are not those of a step's own norm.
    fn squares(
        _: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<f64>> {
        let square = |(i, grad): (usize, &Option<Tensor>)| match grad {
            Some(grad) if grad.elem_count() > 0 => {
                let wide = if grad.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
                let square =
                    grad.to_dtype(wide)?.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                if square.is_finite() {
                    return Ok(square);
                }
                let (tensor, _) = operands.vars().nth(i).expect("there is a gradient per variable");
                let (tensor, what) = (tensor.to_owned(), "squared norm of the gradient");
                Err(tpgm_core::Error::NonFiniteValue { tensor, what }.into())
            }
            _ => Ok(0.0),
        };
        grads.iter().enumerate().map(square).collect()
    }

    /// Of whole tensors, as all are here: their squares alone.
    fn step_sums(
        optimizer: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Vec<StepSums>>> {
        let squares = Self::squares(optimizer, operands, grads)?;
        Ok(squares.into_iter().map(|square| vec![StepSums { square, ..StepSums::default() }]).collect())
    }

    fn step_with(
        optimizer: &mut tpgm_core::Optimizer<Self>,
        operands: &Operands,
        grads: &[Option<Tensor>],
        options: &StepOptions,
        _: &[Option<StepSums>],
    ) -> Result<StepReport> {
        operands.with_cuda(grads, |io| optimizer.step(io, options))
    }
}

/// [`Interpolator`] on some device.
#[cfg(any(feature = "cuda", test))]
pub(crate) trait InterpolationEngine: Send {
    /// `(1 - alpha) * anchor + alpha * weight`, in place.
    fn interpolate(&mut self, operands: &Operands, alpha: f64) -> Result<()>;
}

#[cfg(any(feature = "cuda", test))]
impl<B: Bind> InterpolationEngine for Interpolator<B> {
    fn interpolate(&mut self, operands: &Operands, alpha: f64) -> Result<()> {
        B::bind(operands, &[], |io| self.interpolate(io, alpha))
    }
}

/// Scalars with the names of their tensors.
pub(crate) fn named(set: &ParamSet, scalars: Vec<TensorScalars>) -> Vec<(String, TensorScalars)> {
    set.tensors().iter().map(|spec| spec.name.clone()).zip(scalars).collect()
}
