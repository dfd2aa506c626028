//! The operands of a call as the kernels see them.

use bytemuck::Zeroable;
use tpgm_core::backend::Variance;
use tpgm_core::{AnchorKind, DType, Settings, Slot, Slots, TensorIo};

use crate::device::Device;
use crate::gpu::Gpu;
use crate::memory::View;
use crate::tables::{self, Operands};

/// The element types of some operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Types {
    /// Nothing seen yet.
    Open,
    /// All of one type.
    All(DType),
    /// Different ones.
    Mixed,
}

impl Types {
    /// Takes one more operand in. Operands without elements do not matter.
    fn add(&mut self, view: View<'_>) {
        if view.is_empty() {
            return;
        }
        *self = match *self {
            Types::Open => Types::All(view.dtype()),
            Types::All(dtype) if dtype == view.dtype() => *self,
            _ => Types::Mixed,
        };
    }
}

/// Which kernels a call takes, by the element types of its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Of weights, gradients and variances.
    pub(crate) main: Types,
    /// Of anchors and their variances, and of averages.
    pub(crate) anchors: Types,
}

impl Storage {
    const OPEN: Storage = Storage { main: Types::Open, anchors: Types::Open };
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
        let Storage { mut main, mut anchors } = Storage::OPEN;
        let take = |types: &mut Types, view: Option<View<'_>>| match view {
            Some(view) => {
                types.add(view);
                (view.address(), tables::dtype(view.dtype()))
            }
            None => (0, 0),
        };
        let mut operands = Vec::with_capacity(io.len());
        let mut dtypes = Vec::with_capacity(io.len());
        for ((io, slots), settings) in io.iter().zip(slots).zip(settings) {
            let pretrained = settings.anchor == AnchorKind::Pretrained;
            let (weight, dtype) = take(&mut main, Some(io.weight.as_view()));
            let (grad, grad_dtype) = take(&mut main, io.grad);
            let (anchor, anchor_dtype) = take(&mut anchors, io.anchor.filter(|_| pretrained));
            let (current, before) = match io.variance {
                Some(Variance { current, anchor }) => (Some(current), Some(anchor)),
                None => (None, None),
            };
            let (variance, variance_dtype) = take(&mut main, current);
            let (anchor_variance, anchor_variance_dtype) = take(&mut anchors, before);
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
        Self { operands, dtypes, storage: Storage { main, anchors } }
    }

    /// Of a blend: targets in the column of weights but stored as anchors are, sources in that of gradients.
    pub(crate) fn blend<'a>(pairs: impl Iterator<Item = (View<'a>, View<'a>)>) -> Self {
        let mut storage = Storage::OPEN;
        let (operands, dtypes) = pairs
            .map(|(target, source)| {
                storage.anchors.add(target);
                storage.main.add(source);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: DType, len: usize) -> View<'static> {
        // SAFETY: nobody reads it.
        unsafe { View::from_raw(256, len, dtype) }
    }

    #[test]
    fn averages_are_stored_as_anchors() {
        use DType::{BF16, F16, F32};
        let storage = |pairs: &[(View<'static>, View<'static>)]| Bound::blend(pairs.iter().copied()).storage;
        let average = (view(F32, 4), view(BF16, 4));
        assert_eq!(
            storage(&[average, average]),
            Storage { main: Types::All(BF16), anchors: Types::All(F32) }
        );
        let other = (view(F32, 4), view(F16, 4));
        assert_eq!(storage(&[average, other]), Storage { main: Types::Mixed, anchors: Types::All(F32) });
        // What has no elements does not matter.
        let empty = (view(F16, 0), view(F16, 0));
        assert_eq!(storage(&[empty]), Storage::OPEN);
        assert_eq!(storage(&[empty, average]), storage(&[average]));
    }
}
