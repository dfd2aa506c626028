//! The operands of a call as the kernels see them.

use bytemuck::Zeroable;
use tpgm_core::backend::Variance;
use tpgm_core::{AnchorKind, DType, Settings, Slot, Slots, TensorIo};

use crate::device::Device;
use crate::gpu::Gpu;
use crate::memory::View;
use crate::tables::{self, Operands};

/// Which kernels a call takes, by the element types of its weights, gradients, anchors and variances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Nothing seen yet.
    Open,
    /// All of one type.
    Same(DType),
    /// Different ones.
    Mixed,
}

impl Storage {
    /// Takes one more operand in. Operands without elements do not matter.
    fn add(&mut self, view: View<'_>) {
        if view.is_empty() {
            return;
        }
        *self = match *self {
            Storage::Open => Storage::Same(view.dtype()),
            Storage::Same(dtype) if dtype == view.dtype() => *self,
            _ => Storage::Mixed,
        };
    }

    /// Picks the kernel for this storage from those for f32, bf16, f16 and any, in this order.
    pub(crate) fn pick(self, kernels: [&'static str; 4]) -> &'static str {
        let [f32, bf16, f16, any] = kernels;
        match self {
            Storage::Open | Storage::Same(DType::F32) => f32,
            Storage::Same(DType::BF16) => bf16,
            Storage::Same(DType::F16) => f16,
            Storage::Same(DType::F64) | Storage::Mixed => any,
        }
    }
}

/// Addresses and types of all operands of a call.
pub(crate) struct Bound {
    pub(crate) operands: Vec<Operands>,
    /// Of the weights.
    pub(crate) dtypes: Vec<u32>,
    pub(crate) storage: Storage,
}

impl Bound {
    pub(crate) fn new<D: Device>(
        io: &[TensorIo<'_, Gpu<D>>],
        slots: &[Slots<Gpu<D>>],
        settings: &[Settings],
    ) -> Self {
        let mut storage = Storage::Open;
        let mut take = |view: Option<View<'_>>| match view {
            Some(view) => {
                storage.add(view);
                (view.address(), tables::dtype(view.dtype()))
            }
            None => (0, 0),
        };
        let mut operands = Vec::with_capacity(io.len());
        let mut dtypes = Vec::with_capacity(io.len());
        for ((io, slots), settings) in io.iter().zip(slots).zip(settings) {
            let pretrained = settings.anchor == AnchorKind::Pretrained;
            let (weight, dtype) = take(Some(io.weight.as_view()));
            let (grad, grad_dtype) = take(io.grad);
            let (anchor, anchor_dtype) = take(io.anchor.filter(|_| pretrained));
            let (current, before) = match io.variance {
                Some(Variance { current, anchor }) => (Some(current), Some(anchor)),
                None => (None, None),
            };
            let (variance, variance_dtype) = take(current);
            let (anchor_variance, anchor_variance_dtype) = take(before);
            let slot = |slot: Slot| slots.get(slot).map_or(0, |buffer| buffer.view().address());
            operands.push(Operands {
                weight,
                grad,
                anchor,
                variance,
                anchor_variance,
                slots: Slot::ALL.map(slot),
                grad_dtype,
                anchor_dtype,
                variance_dtype,
                anchor_variance_dtype,
            });
            dtypes.push(dtype);
        }
        Self { operands, dtypes, storage }
    }

    /// Of a blend: targets in the column of weights, sources in that of gradients.
    pub(crate) fn blend<'a>(pairs: impl Iterator<Item = (View<'a>, View<'a>)>) -> Self {
        let mut storage = Storage::Open;
        let (operands, dtypes) = pairs
            .map(|(target, source)| {
                storage.add(target);
                storage.add(source);
                let operands = Operands {
                    weight: target.address(),
                    grad: source.address(),
                    grad_dtype: tables::dtype(source.dtype()),
                    ..Operands::zeroed()
                };
                (operands, tables::dtype(target.dtype()))
            })
            .unzip();
        Self { operands, dtypes, storage }
    }
}
