//! From a fused operation to candle's custom operations: what a new layer fills in. Its arguments come as arrays, so that nothing
//! is written once per number of arguments. A layer that has kernels for GPUs says so with [`on_gpu`](super::gpu::on_gpu).

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor};
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

    /// The result outside of any graph, of arguments as the operation takes them ([`gpu::laid_out`]). It is marked as a variable if
    /// an argument is in a graph, so that [`Tensor::track_op`] says of it too whether its gradient is wanted.
    pub(super) fn run<const N: usize>(&self, args: [&Tensor; N]) -> Result<Tensor>
    where
        F: Fused<N>,
    {
        let locks = args.map(Tensor::storage_and_layout);
        let mut host = Vec::with_capacity(N);
        #[cfg(feature = "cuda")]
        let mut device = Vec::with_capacity(N);
        for (storage, layout) in &locks {
            match &**storage {
                Storage::Cpu(storage) => host.push((storage, *layout)),
                #[cfg(feature = "cuda")]
                Storage::Cuda(storage) => device.push((storage, *layout)),
                _ => {}
            }
        }
        let wanted = args.iter().any(|arg| arg.track_op());
        let tensor = |storage, shape| Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), wanted));
        if let Ok(args) = <[(&CpuStorage, &Layout); N]>::try_from(host) {
            let (storage, shape) = self.forward(args)?;
            return tensor(Storage::Cpu(storage), shape);
        }
        #[cfg(feature = "cuda")]
        if let Ok(args) = <[(&candle_core::CudaStorage, &Layout); N]>::try_from(device) {
            let (storage, shape) = gpu::forward(&self.0, &gpu::cuda::Stream::of(&args[0].0.device)?, args)?;
            return tensor(Storage::Cuda(storage), shape);
        }
        Err(crate::error::Error::LayerDevice { op: self.0.name() }.into())
    }

    /// Where the device of an operation's result chooses who goes backward; a sum with its norm, of two results, chooses in
    /// `norm/residual.rs`.
    pub(super) fn backward<const N: usize>(
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
