//! From a fused operation to candle's custom operations: what a new layer fills in. Its arguments come as arrays, so that nothing
//! is written once per number of arguments. A layer that has kernels for GPUs says so with [`on_gpu`](super::gpu::on_gpu).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use tpgm_core::Slice;

use super::gpu;
#[cfg(any(feature = "cuda", test))]
use super::gpu::{Fresh, Home, Input};
use super::storage::elements;

/// A contiguous tensor on the CPU.
#[derive(Clone, Copy)]
pub(super) struct Arg<'a> {
    op: &'static str,
    pub(super) storage: &'a CpuStorage,
    pub(super) layout: &'a Layout,
}

impl<'a> Arg<'a> {
    /// Its elements.
    pub(super) fn slice(&self) -> Result<Slice<'a>> {
        elements(self.op, self.storage, self.layout)
    }

    pub(super) fn dims(&self) -> &'a [usize] {
        self.layout.dims()
    }

    pub(super) fn shape(&self) -> &'a Shape {
        self.layout.shape()
    }
}

/// An operation of `N` tensors that is computed on the CPU, forward and backward, and by kernels where it has them.
pub(super) trait Fused<const N: usize>: Sized + Send + Sync + 'static {
    /// What messages call it.
    fn name(&self) -> &'static str;

    /// True if it has kernels: [`Fused::forward_on`] and [`Fused::backward_on`].
    fn kernels(&self) -> bool {
        false
    }

    /// The result, contiguous, and its shape.
    fn forward(&self, args: [Arg<'_>; N]) -> Result<(CpuStorage, Shape)>;

    /// The gradients of the arguments, at least of those that want one ([`Tensor::track_op`]), from the arguments, the result and
    /// the result's gradient, all contiguous.
    fn backward(&self, args: [&Tensor; N], y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; N]>;

    /// [`Fused::forward`] by kernels, of arguments that are contiguous or rows with gaps.
    #[cfg(any(feature = "cuda", test))]
    fn forward_on<H: Home>(&self, _on: &H, _args: [Input<'_, H>; N]) -> Result<Fresh<H>> {
        candle_core::bail!("{}: there is no kernel", self.name())
    }

    /// [`Fused::backward`] by kernels, where all but the result may be rows with gaps.
    #[cfg(any(feature = "cuda", test))]
    fn backward_on<H: Home>(
        &self,
        _on: &H,
        _args: [&Tensor; N],
        _y: &Tensor,
        _grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        candle_core::bail!("{}: there is no kernel", self.name())
    }
}

/// The operation of a tensor, made contiguous if need be.
pub(super) fn apply1<F: Fused<1>>(op: F, x: &Tensor) -> Result<Tensor> {
    gpu::laid_out(op.kernels(), x)?.apply_op1(Custom(op))
}

/// The operation of two tensors, made contiguous if need be.
pub(super) fn apply2<F: Fused<2>>(op: F, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let [x, y] = [gpu::laid_out(op.kernels(), x)?, gpu::laid_out(op.kernels(), y)?];
    x.apply_op2(&y, Custom(op))
}

/// The operation of three tensors, made contiguous if need be.
pub(super) fn apply3<F: Fused<3>>(op: F, x: &Tensor, y: &Tensor, z: &Tensor) -> Result<Tensor> {
    let [x, y] = [gpu::laid_out(op.kernels(), x)?, gpu::laid_out(op.kernels(), y)?];
    let z = gpu::laid_out(op.kernels(), z)?;
    x.apply_op3(&y, &z, Custom(op))
}

/// A fused operation as candle's.
pub(super) struct Custom<F>(pub(super) F);

impl<F> Custom<F> {
    fn forward<const N: usize>(&self, args: [(&CpuStorage, &Layout); N]) -> Result<(CpuStorage, Shape)>
    where
        F: Fused<N>,
    {
        #[cfg(test)]
        if let Some(host) = gpu::host::running().filter(|_| self.0.kernels()) {
            return gpu::forward(&self.0, &host, args);
        }
        let op = self.0.name();
        self.0.forward(args.map(|(storage, layout)| Arg { op, storage, layout }))
    }

    /// The one place where a tensor's device chooses who goes backward.
    fn backward<const N: usize>(
        &self,
        args: [&Tensor; N],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]>
    where
        F: Fused<N>,
    {
        let grad = gpu::laid_out(self.0.kernels(), grad)?;
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = y.device() {
            return self.0.backward_on(&gpu::cuda::Stream::of(device)?, args, y, &grad);
        }
        #[cfg(test)]
        if let Some(host) = gpu::host::running().filter(|_| self.0.kernels()) {
            return self.0.backward_on(&host, args, y, &grad);
        }
        self.0.backward(args, y, &grad)
    }
}

/// candle's trait for operations of so many tensors, with the storages, layouts and tensors as its functions name them.
macro_rules! custom {
    ($trait:ident, $n:literal, $grads:ty, $returned:expr, $(($storage:ident, $layout:ident, $arg:ident)),*) => {
        impl<F: Fused<$n>> $trait for Custom<F> {
            fn name(&self) -> &'static str {
                self.0.name()
            }

            fn cpu_fwd(&self, $($storage: &CpuStorage, $layout: &Layout),*) -> Result<(CpuStorage, Shape)> {
                self.forward([$(($storage, $layout)),*])
            }

            #[cfg(feature = "cuda")]
            fn cuda_fwd(
                &self,
                $($storage: &candle_core::CudaStorage, $layout: &Layout),*
            ) -> Result<(candle_core::CudaStorage, Shape)> {
                let args = [$(($storage, $layout)),*];
                gpu::forward(&self.0, &gpu::cuda::Stream::of(&args[0].0.device)?, args)
            }

            fn bwd(&self, $($arg: &Tensor,)* y: &Tensor, grad: &Tensor) -> Result<$grads> {
                Ok($returned(self.backward([$($arg),*], y, grad)?))
            }
        }
    };
}

custom!(CustomOp1, 1, Option<Tensor>, |[a]: [_; 1]| a, (s1, l1, a));
custom!(CustomOp2, 2, (Option<Tensor>, Option<Tensor>), <_>::from, (s1, l1, a), (s2, l2, b));
custom!(
    CustomOp3,
    3,
    (Option<Tensor>, Option<Tensor>, Option<Tensor>),
    <_>::from,
    (s1, l1, a),
    (s2, l2, b),
    (s3, l3, c)
);

/// An operation of any number of tensors, whose result is there.
pub(super) trait Many: Send + Sync + 'static {
    /// What messages call it.
    fn name(&self) -> &'static str;

    /// The gradients of the arguments, at least of those that want one ([`Tensor::track_op`]).
    fn backward(&self, args: &[Tensor], y: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// The result of an operation, from which gradients flow to all of its arguments.
///
/// candle's operations have at most three arguments. So each argument that wants a gradient hangs on a link, a tensor of one zero
/// that depends on the argument and on the link before, and the result depends on the last link. Going backward, candle comes to
/// the result first, where all gradients are computed at once, and then to the links, which hand them out.
pub(super) fn apply_many(op: impl Many, args: Vec<Tensor>, y: (CpuStorage, Shape)) -> Result<Tensor> {
    let found = Arc::new(Mutex::new(vec![]));
    let mut last: Option<Tensor> = None;
    for (index, arg) in args.iter().enumerate().filter(|(_, arg)| arg.track_op()) {
        let link = Link { name: op.name(), index, found: found.clone() };
        last = Some(match last {
            None => arg.apply_op1(link)?,
            Some(last) => arg.apply_op2(&last, link)?,
        });
    }
    match last {
        Some(last) => last.apply_op1(End { op, args, y: Mutex::new(Some(y)), found }),
        None => Ok(Tensor::from_storage(candle_core::Storage::Cpu(y.0), y.1, BackpropOp::none(), false)),
    }
}

/// Gradients on their way from the end to the links.
type Found = Arc<Mutex<Vec<Option<Tensor>>>>;

struct Link {
    name: &'static str,
    index: usize,
    found: Found,
}

impl Link {
    fn zero() -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn gradient(&self) -> Option<Tensor> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get_mut(self.index).and_then(Option::take)
    }
}

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::zero()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradient())
    }
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::zero()
    }

    fn bwd(
        &self,
        _: &Tensor,
        last: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.gradient(), Some(last.zeros_like()?)))
    }
}

struct End<F> {
    op: F,
    args: Vec<Tensor>,
    y: Mutex<Option<(CpuStorage, Shape)>>,
    found: Found,
}

impl<F: Many> CustomOp1 for End<F> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.y.lock().unwrap_or_else(PoisonError::into_inner).take();
        y.ok_or_else(|| candle_core::Error::msg("the result of an operation was taken twice"))
    }

    fn bwd(&self, last: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grads = self.op.backward(&self.args, y, &grad.contiguous()?)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = grads;
        Ok(Some(last.zeros_like()?))
    }
}
