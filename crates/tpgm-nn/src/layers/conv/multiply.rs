//! Products of matrices in slices, on the thread that asks for them: by the crate that candle multiplies with.

use std::mem::MaybeUninit;

use crate::layers::float::Float;

/// A matrix in a slice: element (i, j) lies at `i * row + j * column`.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a, C> {
    data: &'a [C],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a, C> View<'a, C> {
    /// Rows that lie `row` elements apart.
    pub(super) fn new(data: &'a [C], rows: usize, columns: usize, row: usize) -> Self {
        Self { data, rows, columns, row, column: 1 }
    }

    /// The transposed matrix.
    pub(super) fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }

    /// The last element lies inside the slice.
    fn fits(&self) -> bool {
        let last = (self.rows - 1) * self.row + (self.columns - 1) * self.column;
        last < self.data.len()
    }
}

/// The product of `a` and `b` in rows of `y` that lie `row` elements apart. Every element of these rows is written.
pub(super) fn multiply<C: Float>(a: View<'_, C>, b: View<'_, C>, y: &mut [MaybeUninit<C>], row: usize) {
    let (m, n) = (a.rows, b.columns);
    if a.columns == 0 {
        y.chunks_mut(row.max(1)).take(m).for_each(|y| y[..n].fill(MaybeUninit::new(C::ZERO)));
        return;
    }
    assert_fits(&a, &b, y.len(), row);
    // SAFETY: the line above checked what the function asks for, and nothing is read of `y`.
    unsafe { gemm(a, b, y.as_mut_ptr().cast(), row, false) }
}

/// Adds the product of `a` and `b` to rows of `y` that lie `row` elements apart.
pub(super) fn add_product<C: Float>(a: View<'_, C>, b: View<'_, C>, y: &mut [C], row: usize) {
    if a.columns == 0 {
        return;
    }
    assert_fits(&a, &b, y.len(), row);
    // SAFETY: the line above checked what the function asks for.
    unsafe { gemm(a, b, y.as_mut_ptr(), row, true) }
}

fn assert_fits<C>(a: &View<'_, C>, b: &View<'_, C>, len: usize, row: usize) {
    assert_eq!(a.columns, b.rows, "inner dimensions are equal");
    let fits = || a.fits() && b.fits() && (a.rows - 1) * row + b.columns <= len && b.columns <= row;
    assert!(a.rows * b.columns == 0 || fits(), "matrices lie in their slices");
}

/// # Safety
///
/// Either there are no elements, or all of them lie in their slices, rows of `y` do not overlap and nobody else has them; if the
/// product is to be added, they have values.
unsafe fn gemm<C: Float>(a: View<'_, C>, b: View<'_, C>, y: *mut C, row: usize, add: bool) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    if m * n == 0 {
        return;
    }
    // SAFETY: by what this function asks for; and f32 and f64 are types that the crate knows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y,
            1,
            row as isize,
            add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            C::ONE,
            C::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
