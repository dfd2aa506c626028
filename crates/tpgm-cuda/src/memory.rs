//! Device memory as the backend sees it: owned, or borrowed from the caller.

use std::marker::PhantomData;
use std::ops::Range;

use tpgm_core::DType;

use crate::device::Device;

/// Owned elements on a device.
pub struct Buffer<D: Device> {
    pub(crate) memory: D::Memory,
    address: u64,
    len: usize,
    dtype: DType,
}

impl<D: Device> Buffer<D> {
    pub(crate) fn new(device: &D, memory: D::Memory, dtype: DType, len: usize) -> Self {
        Self { address: device.address(&memory), memory, len, dtype }
    }

    /// All elements.
    pub fn view(&self) -> View<'_> {
        View { address: self.address, len: self.len, dtype: self.dtype, data: PhantomData }
    }

    /// All elements, to be written.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { address: self.address, len: self.len, dtype: self.dtype, data: PhantomData }
    }
}

/// Borrowed elements on a device, read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    address: u64,
    len: usize,
    dtype: DType,
    data: PhantomData<&'a [u8]>,
}

/// Borrowed elements on a device, written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    address: u64,
    len: usize,
    dtype: DType,
    data: PhantomData<&'a mut [u8]>,
}

fn check_range(range: &Range<usize>, len: usize) {
    assert!(range.start <= range.end && range.end <= len, "range {range:?} of {len} elements");
}

impl<'a> View<'a> {
    /// `len` elements of type `dtype` from `address` on.
    ///
    /// # Safety
    ///
    /// For `'a` the memory belongs to the device of the backend that the view is given to, is aligned to the element type,
    /// and is written by nobody, except by calls queued on the backend's own stream before the backend's.
    pub unsafe fn from_raw(address: u64, len: usize, dtype: DType) -> Self {
        Self { address, len, dtype, data: PhantomData }
    }

    /// Address of the first element; 0 if there is none.
    pub fn address(self) -> u64 {
        if self.len == 0 { 0 } else { self.address }
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        self.len
    }

    /// True without elements.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(self) -> DType {
        self.dtype
    }

    /// Some of the elements.
    ///
    /// # Panics
    ///
    /// If the range lies outside.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        check_range(&range, self.len);
        let address = self.address + (range.start * self.dtype.size()) as u64;
        Self { address, len: range.len(), ..self }
    }
}

impl<'a> ViewMut<'a> {
    /// `len` elements of type `dtype` from `address` on.
    ///
    /// # Safety
    ///
    /// As [`View::from_raw`], and for `'a` nobody else reads the memory either.
    pub unsafe fn from_raw(address: u64, len: usize, dtype: DType) -> Self {
        Self { address, len, dtype, data: PhantomData }
    }

    /// The same elements for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { ..*self }
    }

    /// The same elements, read.
    pub fn as_view(&self) -> View<'_> {
        View { address: self.address, len: self.len, dtype: self.dtype, data: PhantomData }
    }

    /// Some of the elements.
    ///
    /// # Panics
    ///
    /// If the range lies outside.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        check_range(&range, self.len);
        let address = self.address + (range.start * self.dtype.size()) as u64;
        Self { address, len: range.len(), ..self }
    }
}
