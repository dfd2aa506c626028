//! Matrices in storage of candle, which multiplies them.

use std::borrow::Cow;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result};
use tpgm_core::{Element, Slice};

use super::NAME;
use crate::dtype::cpu_slice;
use crate::layers::float::Float;
use crate::layers::storage::{Operand, elements, into_storage, widen};

/// A contiguous tensor.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) storage: &'a CpuStorage,
    pub(super) layout: &'a Layout,
}

impl<'a> Source<'a> {
    pub(super) fn of(operand: &'a Operand<'_>) -> Result<Self> {
        let (storage, layout) = operand.storage()?;
        Ok(Self { storage, layout })
    }

    pub(super) fn slice(&self) -> Result<Slice<'a>> {
        elements(NAME, self.storage, self.layout)
    }

    /// A part of it as a matrix in the compute type; copied only if it has another.
    pub(super) fn matrix<C: Float + Element>(
        &self,
        start: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix<'a>> {
        let slice = self.slice()?;
        if C::direct(slice).is_none() {
            let part = widen::<C>(slice.sub(start..start + rows * columns));
            return Ok(Matrix::new(part.into_owned(), rows, columns));
        }
        let start = self.layout.start_offset() + start;
        let layout = Layout::contiguous_with_offset((rows, columns), start);
        Ok(Matrix { data: Cow::Borrowed(self.storage), layout })
    }
}

/// A matrix that candle multiplies.
pub(super) struct Matrix<'a> {
    data: Cow<'a, CpuStorage>,
    layout: Layout,
}

impl Matrix<'_> {
    pub(super) fn new<C: Element>(data: Vec<C>, rows: usize, columns: usize) -> Self {
        Self { data: Cow::Owned(into_storage(C::buffer(data))), layout: Layout::contiguous((rows, columns)) }
    }

    /// Some of its rows.
    pub(super) fn rows(&self, rows: std::ops::Range<usize>) -> Result<Matrix<'_>> {
        let layout = self.layout.narrow(0, rows.start, rows.len())?;
        Ok(Matrix { data: Cow::Borrowed(&self.data), layout })
    }

    pub(super) fn transposed(self) -> Result<Self> {
        Ok(Self { layout: self.layout.transpose(0, 1)?, ..self })
    }

    pub(super) fn times(&self, other: &Self) -> Result<CpuStorage> {
        let ((m, k), (_, n)) = (self.layout.shape().dims2()?, other.layout.shape().dims2()?);
        self.data.matmul(&other.data, (1, m, n, k), &self.layout, &other.layout)
    }
}

/// The elements of a product.
pub(super) fn values<C: Float>(product: &CpuStorage) -> &[C] {
    cpu_slice(product).and_then(C::direct).expect("a product has its factors' type")
}
