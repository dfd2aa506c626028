//! From a fused operation to candle's custom operations: what a new layer fills in. Its arguments come as arrays, so that nothing
//! is written once per number of arguments; a device with kernels of its own is to hang here too.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use tpgm_core::Slice;

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

/// An operation of `N` tensors that is computed on the CPU, forward and backward.
pub(super) trait Fused<const N: usize>: Send + Sync + 'static {
    /// What messages call it.
    fn name(&self) -> &'static str;

    /// The result, contiguous, and its shape.
    fn forward(&self, args: [Arg<'_>; N]) -> Result<(CpuStorage, Shape)>;

    /// The gradients of the arguments, at least of those that want one ([`Tensor::track_op`]), from the arguments, the result and
    /// the result's gradient, all contiguous.
    fn backward(&self, args: [&Tensor; N], y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; N]>;
}

/// The operation of a tensor, made contiguous.
pub(super) fn apply1(op: impl Fused<1>, x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Custom(op))
}

/// The operation of two tensors, made contiguous.
pub(super) fn apply2(op: impl Fused<2>, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&y.contiguous()?, Custom(op))
}

/// The operation of three tensors, made contiguous.
pub(super) fn apply3(op: impl Fused<3>, x: &Tensor, y: &Tensor, z: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&y.contiguous()?, &z.contiguous()?, Custom(op))
}

/// A fused operation as candle's.
pub(super) struct Custom<F>(pub(super) F);

impl<F: Fused<1>> CustomOp1 for Custom<F> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let op = self.0.name();
        self.0.forward([Arg { op, storage: x, layout }])
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.0.backward([x], y, &grad.contiguous()?)?;
        Ok(x)
    }
}

impl<F: Fused<2>> CustomOp2 for Custom<F> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = self.0.name();
        let args = [(a, a_layout), (b, b_layout)];
        self.0.forward(args.map(|(storage, layout)| Arg { op, storage, layout }))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.0.backward([a, b], y, &grad.contiguous()?)?;
        Ok((a, b))
    }
}

impl<F: Fused<3>> CustomOp3 for Custom<F> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        c: &CpuStorage,
        c_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = self.0.name();
        let args = [(a, a_layout), (b, b_layout), (c, c_layout)];
        self.0.forward(args.map(|(storage, layout)| Arg { op, storage, layout }))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.0.backward([a, b, c], y, &grad.contiguous()?)?;
        Ok((a, b, c))
    }
}

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
