//! Whole numbers for each row, in device memory.

use std::marker::PhantomData;

/// The type of whole numbers in device memory. Views have no such types: these are addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelType {
    /// 8 bits.
    U8,
    /// 32 bits.
    U32,
    /// 64 bits.
    I64,
}

/// A whole number for each row, in device memory: a class, or a row of an embedding's table.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    address: u64,
    len: usize,
    kind: LabelType,
    data: PhantomData<&'a [u8]>,
}

impl Labels<'_> {
    /// `len` labels from `address` on.
    ///
    /// # Safety
    ///
    /// As [`View::from_raw`](crate::View::from_raw).
    pub unsafe fn from_raw(address: u64, len: usize, kind: LabelType) -> Self {
        Self { address, len, kind, data: PhantomData }
    }

    pub(super) fn address(self) -> u64 {
        self.address
    }

    pub(super) fn len(self) -> usize {
        self.len
    }

    /// `LabelType` of `kernels/layers/labels.cuh`.
    pub(super) fn kind(self) -> u32 {
        1 + self.kind as u32
    }
}
