//! Raw views of the operands, so that threads can work on disjoint pieces of the same tensor.
//!
//! This is the only module of the crate that turns pointers into slices.

use std::ops::Range;

use crate::backend::{Backend, TensorIo};
use crate::backend::{Slot, Slots};
use crate::cpu::Cpu;
use crate::element::{DType, Element, Real, Slice, SliceMut, bf16, f16};
use crate::params::{AnchorKind, Settings};
use crate::plan::BLOCK;

/// A borrowed slice without its lifetime: pointer, length, element type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    data: *mut u8,
    len: usize,
    dtype: DType,
}

// SAFETY: an operand is a pointer and two numbers; every access goes through its unsafe methods, whose callers promise
// that no two threads touch the same elements unless all of them read.
unsafe impl Send for Operand {}
// SAFETY: as above.
unsafe impl Sync for Operand {}

impl Operand {
    pub(super) fn read(slice: Slice<'_>) -> Self {
        let (dtype, len) = (slice.dtype(), slice.len());
        let data = match slice {
            Slice::F64(x) => x.as_ptr().cast_mut().cast(),
            Slice::F32(x) => x.as_ptr().cast_mut().cast(),
            Slice::F16(x) => x.as_ptr().cast_mut().cast(),
            Slice::BF16(x) => x.as_ptr().cast_mut().cast(),
        };
        Self { data, len, dtype }
    }

    pub(super) fn write(mut slice: SliceMut<'_>) -> Self {
        let (dtype, len) = (slice.dtype(), slice.len());
        let data = match slice.reborrow() {
            SliceMut::F64(x) => x.as_mut_ptr().cast(),
            SliceMut::F32(x) => x.as_mut_ptr().cast(),
            SliceMut::F16(x) => x.as_mut_ptr().cast(),
            SliceMut::BF16(x) => x.as_mut_ptr().cast(),
        };
        Self { data, len, dtype }
    }

    pub(super) fn dtype(self) -> DType {
        self.dtype
    }

    /// # Safety
    ///
    /// The slice this was made from must still be borrowed, and for `'a` nobody writes to the elements of `range`.
    #[inline(always)]
    pub(super) unsafe fn slice<'a>(self, range: Range<usize>) -> Slice<'a> {
        assert!(range.start <= range.end && range.end <= self.len);
        let len = range.end - range.start;
        // SAFETY: the range is inside the slice (asserted), the type is its own, and the caller vouches for the borrow.
        unsafe {
            match self.dtype {
                DType::F64 => {
                    Slice::F64(std::slice::from_raw_parts(self.data.cast::<f64>().add(range.start), len))
                }
                DType::F32 => {
                    Slice::F32(std::slice::from_raw_parts(self.data.cast::<f32>().add(range.start), len))
                }
                DType::F16 => {
                    Slice::F16(std::slice::from_raw_parts(self.data.cast::<f16>().add(range.start), len))
                }
                DType::BF16 => {
                    Slice::BF16(std::slice::from_raw_parts(self.data.cast::<bf16>().add(range.start), len))
                }
            }
        }
    }

    /// # Safety
    ///
    /// The slice this was made from must be mutable and still borrowed, and for `'a` nobody else touches the elements of
    /// `range`.
    #[inline(always)]
    pub(super) unsafe fn slice_mut<'a>(self, range: Range<usize>) -> SliceMut<'a> {
        match self.dtype {
            // SAFETY: the caller's promise is the callee's condition.
            DType::F64 => SliceMut::F64(unsafe { self.typed_mut(range) }),
            // SAFETY: as above.
            DType::F32 => SliceMut::F32(unsafe { self.typed_mut(range) }),
            // SAFETY: as above.
            DType::F16 => SliceMut::F16(unsafe { self.typed_mut(range) }),
            // SAFETY: as above.
            DType::BF16 => SliceMut::BF16(unsafe { self.typed_mut(range) }),
        }
    }

    /// # Safety
    ///
    /// As [`Operand::slice_mut`].
    #[inline(always)]
    pub(super) unsafe fn typed_mut<'a, T: Element>(self, range: Range<usize>) -> &'a mut [T] {
        assert!(self.dtype == T::DTYPE && range.start <= range.end && range.end <= self.len);
        // SAFETY: range and type are right (asserted), and the caller vouches for the borrow.
        unsafe {
            std::slice::from_raw_parts_mut(self.data.cast::<T>().add(range.start), range.end - range.start)
        }
    }
}

impl Operand {
    /// Runs `f` on the elements of `range` in compute type: in place, or in `stage` and rounded back.
    ///
    /// # Safety
    ///
    /// As [`Operand::slice_mut`].
    #[inline(always)]
    pub(super) unsafe fn update<C: Real>(
        self,
        range: Range<usize>,
        stage: &mut Stage<C>,
        f: impl FnOnce(&mut [C]),
    ) {
        let len = range.len();
        // SAFETY: the caller's promise is the callee's condition.
        let data = unsafe { self.slice_mut(range) };
        if data.dtype() == C::DTYPE {
            if let Some(data) = C::direct_mut(data) {
                f(data);
            }
        } else {
            let stage = stage.block(len);
            C::load(data.as_slice(), stage);
            f(stage);
            C::store(stage, data);
        }
    }
}

/// All operands of one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub(super) weight: Operand,
    pub(super) grad: Option<Operand>,
    /// `None`: the anchor is zero, or not used.
    pub(super) anchor: Option<Operand>,
    pub(super) variance: Option<(Operand, Operand)>,
    pub(super) slots: [Option<Operand>; Slot::ALL.len()],
    /// The master has not been filled from the weights yet.
    pub(super) fresh_master: bool,
}

impl Operands {
    pub(super) fn new(
        io: &mut TensorIo<'_, Cpu>,
        slots: &mut Slots<Cpu>,
        settings: &Settings,
        fresh_master: bool,
    ) -> Self {
        let mut operand = |slot: Slot| slots.get_mut(slot).map(|buffer| Operand::write(Cpu::as_mut(buffer)));
        let pretrained = settings.anchor == AnchorKind::Pretrained;
        Self {
            weight: Operand::write(io.weight.reborrow()),
            grad: io.grad.map(Operand::read),
            anchor: io.anchor.filter(|_| pretrained).map(Operand::read),
            variance: io
                .variance
                .map(|variance| (Operand::read(variance.current), Operand::read(variance.anchor))),
            slots: Slot::ALL.map(&mut operand),
            fresh_master,
        }
    }

    pub(super) fn slot(&self, slot: Slot) -> Option<Operand> {
        self.slots[slot as usize]
    }

    /// The elements of `range` of a slot in compute type, or nothing if the tensor lacks the slot.
    ///
    /// # Safety
    ///
    /// As [`Operand::slice_mut`].
    #[inline(always)]
    pub(super) unsafe fn state<'a, C: Real>(&self, slot: Slot, range: Range<usize>) -> &'a mut [C] {
        match self.slot(slot) {
            // SAFETY: the caller's promise is the callee's condition.
            Some(operand) => unsafe { operand.typed_mut(range) },
            None => &mut [],
        }
    }

    /// The weights as the rule knows them: of the master once it is filled.
    #[inline(always)]
    pub(super) fn source(&self) -> Operand {
        match self.slot(Slot::Master) {
            Some(master) if !self.fresh_master => master,
            _ => self.weight,
        }
    }

    /// Runs `f` on the elements of `range` of the weights, in compute type: in the master if there is one, else in place,
    /// else in `stage`; then rounds them into the weights where that is not the same memory.
    ///
    /// # Safety
    ///
    /// As [`Operand::slice_mut`], for weights and master.
    #[inline(always)]
    pub(super) unsafe fn with_weight<C: Real>(
        &self,
        range: Range<usize>,
        stage: &mut Stage<C>,
        f: impl FnOnce(&mut [C]),
    ) {
        if let Some(master) = self.slot(Slot::Master) {
            // SAFETY: the caller's promise is the callee's condition.
            let weight = unsafe { self.weight.slice_mut(range.clone()) };
            // SAFETY: as above.
            let master = unsafe { master.typed_mut::<C>(range) };
            if self.fresh_master {
                C::load(weight.as_slice(), master);
            }
            f(master);
            C::store(master, weight);
        } else {
            // SAFETY: as above.
            unsafe { self.weight.update(range, stage, f) };
        }
    }
}

/// Room to convert one block of another element type. Cleared when first used, which operands of compute type never do.
pub(super) struct Stage<C>(Option<[C; BLOCK]>);

impl<C: Real> Stage<C> {
    pub(super) const EMPTY: Self = Self(None);

    #[inline(always)]
    pub(super) fn block(&mut self, len: usize) -> &mut [C] {
        &mut self.0.get_or_insert([C::ZERO; BLOCK])[..len]
    }
}

/// The elements of `range` in compute type: the memory itself if it has that type, else converted into `stage`; zeros
/// for no operand.
///
/// # Safety
///
/// As [`Operand::slice`].
#[inline(always)]
pub(super) unsafe fn load<'a, C: Real>(
    operand: Option<Operand>,
    range: Range<usize>,
    stage: &'a mut Stage<C>,
) -> &'a [C] {
    let len = range.len();
    let Some(operand) = operand else {
        let zeros = stage.block(len);
        zeros.fill(C::ZERO);
        return zeros;
    };
    // SAFETY: the caller's promise is the callee's condition.
    let slice = unsafe { operand.slice::<'a>(range) };
    match C::direct(slice) {
        Some(direct) => direct,
        None => {
            let converted = stage.block(len);
            C::load(slice, converted);
            converted
        }
    }
}
