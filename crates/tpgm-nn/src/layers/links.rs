//! One operation of any number of tensors, where candle's have at most three.
//!
//! Each argument that wants a gradient hangs on a link: a tensor of one number that depends on the argument and on the link before.
//! The result depends on the last link. Going backward, candle comes to the result first, because the links are what it was made of:
//! there all gradients are computed at once. Then it comes to the links, which hand them out. Gradients wait for the links by thread,
//! so that a graph can go backward on several threads, and as often as one likes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor};

/// An operation of any number of tensors, whose result is there.
pub(super) trait Many: Send + Sync + 'static {
    /// What messages call it.
    fn name(&self) -> &'static str;

    /// The gradients of the arguments, at least of those that want one ([`Tensor::track_op`]).
    fn backward(&self, args: &[Tensor], y: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// The result of an operation, from which gradients flow to all of its arguments.
pub(super) fn apply_many(op: impl Many, args: Vec<Tensor>, y: (Storage, Shape)) -> Result<Tensor> {
    let found = Found::default();
    let mut wanting = args.iter().enumerate().filter(|(_, arg)| arg.track_op());
    let mut last: Option<Tensor> = None;
    loop {
        // Three arguments: the link before, if there is one, and as many of the operation's as there is room for.
        let mut hung: Vec<(Option<usize>, &Tensor)> = last.iter().map(|last| (None, last)).collect();
        let before = hung.len();
        hung.extend(wanting.by_ref().take(3 - before).map(|(index, arg)| (Some(index), arg)));
        if hung.len() == before {
            break;
        }
        let (indices, tensors): (Vec<_>, Vec<_>) = hung.into_iter().unzip();
        let link = Link { name: op.name(), indices, found: found.clone() };
        let made = match *tensors {
            [a] => a.apply_op1(link),
            [a, b] => a.apply_op2(b, link),
            _ => tensors[0].apply_op3(tensors[1], tensors[2], link),
        };
        last = Some(made?);
    }
    match last {
        Some(last) => last.apply_op1(End { op, args, y: Mutex::new(Some(y)), found }),
        None => Ok(Tensor::from_storage(y.0, y.1, BackpropOp::none(), false)),
    }
}

/// Gradients on their way from the end to the links, of each thread that goes backward; a thread's entry goes with its last gradient.
/// Where an error stops candle between the two, they wait until the thread comes here again, or the graph is dropped.
#[derive(Clone, Default)]
struct Found(Arc<Mutex<HashMap<ThreadId, Vec<Option<Tensor>>>>>);

impl Found {
    fn put(&self, grads: Vec<Option<Tensor>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(thread::current().id(), grads);
    }

    fn take(&self, index: usize) -> Option<Tensor> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let this = thread::current().id();
        let waiting = found.get_mut(&this)?;
        let grad = waiting.get_mut(index)?.take();
        if waiting.iter().all(Option::is_none) {
            found.remove(&this);
        }
        grad
    }
}

struct Link {
    name: &'static str,
    /// Which arguments of the operation its own are; nothing for the link before.
    indices: Vec<Option<usize>>,
    found: Found,
}

impl Link {
    /// Nobody reads the number.
    fn number() -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    #[cfg(feature = "cuda")]
    fn number_beside(storage: &candle_core::CudaStorage) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendDevice;
        // SAFETY: nobody reads the number, and candle adds it up, for which any bits will do.
        let number = unsafe { storage.device.alloc_uninit(&().into(), candle_core::DType::F32) }?;
        Ok((number, ().into()))
    }

    /// candle wants a gradient of the link before, whatever it is.
    fn gradients<const N: usize>(&self, args: [&Tensor; N]) -> [Option<Tensor>; N] {
        std::array::from_fn(|i| match self.indices[i] {
            Some(index) => self.found.take(index),
            None => Some(args[i].detach()),
        })
    }
}

/// candle's trait for operations of so many tensors.
macro_rules! link {
    ($trait:ident, $grads:ty, $returned:expr, $(($storage:ident, $layout:ident, $arg:ident)),*) => {
        impl $trait for Link {
            fn name(&self) -> &'static str {
                self.name
            }

            fn cpu_fwd(&self, $($storage: &CpuStorage, $layout: &Layout),*) -> Result<(CpuStorage, Shape)> {
                $(let _ = ($storage, $layout);)*
                Self::number()
            }

            #[cfg(feature = "cuda")]
            fn cuda_fwd(
                &self,
                $($storage: &candle_core::CudaStorage, $layout: &Layout),*
            ) -> Result<(candle_core::CudaStorage, Shape)> {
                let args = [$(($storage, $layout)),*];
                Self::number_beside(args[0].0)
            }

            fn bwd(&self, $($arg: &Tensor,)* _: &Tensor, _: &Tensor) -> Result<$grads> {
                Ok($returned(self.gradients([$($arg),*])))
            }
        }
    };
}

link!(CustomOp1, Option<Tensor>, |[a]: [_; 1]| a, (s1, l1, a));
link!(CustomOp2, (Option<Tensor>, Option<Tensor>), <_>::from, (s1, l1, a), (s2, l2, b));
link!(
    CustomOp3,
    (Option<Tensor>, Option<Tensor>, Option<Tensor>),
    <_>::from,
    (s1, l1, a),
    (s2, l2, b),
    (s3, l3, c)
);

struct End<F> {
    op: F,
    args: Vec<Tensor>,
    y: Mutex<Option<(Storage, Shape)>>,
    found: Found,
}

impl<F> End<F> {
    fn result(&self) -> Result<(Storage, Shape)> {
        let y = self.y.lock().unwrap_or_else(PoisonError::into_inner).take();
        y.ok_or_else(|| candle_core::Error::msg("the result of an operation was taken twice"))
    }
}

impl<F: Many> CustomOp1 for End<F> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.result()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => candle_core::bail!("{}: arguments and result are on different devices", self.op.name()),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        match self.result()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => candle_core::bail!("{}: arguments and result are on different devices", self.op.name()),
        }
    }

    fn bwd(&self, last: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut grads = self.op.backward(&self.args, y, &grad.contiguous()?)?;
        for (grad, arg) in grads.iter_mut().zip(&self.args) {
            // No link asks for it.
            if !arg.track_op() {
                *grad = None;
            }
        }
        self.found.put(grads);
        Ok(Some(last.detach()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// A sum that finds a gradient for every argument, wanted or not.
    struct Add;

    impl Many for Add {
        fn name(&self) -> &'static str {
            "add"
        }

        fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![Some(grad.clone()); args.len()])
        }
    }

    #[test]
    fn gradients_wait_only_for_links_that_ask_and_leave_nothing_behind() {
        let var = |x: f32| Var::new(&[x], &Device::Cpu).unwrap();
        let (a, b) = (var(1.0), var(2.0));
        let constant = Tensor::new(&[3f32], &Device::Cpu).unwrap();
        let found = Found::default();
        let end = End {
            op: Add,
            args: vec![a.as_tensor().clone(), constant, b.as_tensor().clone()],
            y: Mutex::new(Some((Storage::Cpu(CpuStorage::F32(vec![6.0])), 1.into()))),
            found: found.clone(),
        };
        // Only the end is in this graph, so that nothing is taken by links.
        let last = var(0.0);
        last.apply_op1(end).unwrap().backward().unwrap();
        let waiting = || {
            let found = found.0.lock().unwrap();
            let entry = found.get(&thread::current().id());
            entry.map(|grads| grads.iter().map(Option::is_some).collect::<Vec<_>>())
        };
        assert_eq!(waiting().unwrap(), [true, false, true]);
        assert!(found.take(0).is_some() && found.take(1).is_none());
        assert_eq!(waiting().unwrap(), [false, false, true]);
        assert!(found.take(2).is_some());
        assert!(found.0.lock().unwrap().is_empty());
    }
}
