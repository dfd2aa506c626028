//! Products of matrices in slices, on the thread that asks for them: by the crate that candle multiplies with.

use super::super::float::Float;

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

/// What becomes of what lies in the result's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    Replace,
    Add,
}

/// The product of `a` and `b` in rows of `y` that lie `row` elements apart.
pub(super) fn multiply<C: Float>(a: View<'_, C>, b: View<'_, C>, y: &mut [C], row: usize, into: Into) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "inner dimensions are equal");
    if m * n == 0 {
        return;
    }
    if k == 0 {
        if into == Into::Replace {
            y.chunks_mut(row).take(m).for_each(|y| y[..n].fill(C::ZERO));
        }
        return;
    }
    assert!(a.fits() && b.fits() && (m - 1) * row + n <= y.len() && n <= row, "matrices lie in their slices");
    // SAFETY: the lines above checked that every element of the three matrices lies in its slice; the rows of `y`, which nobody
    // else holds, do not overlap; and f32 and f64 are types that the crate knows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            row as isize,
            into == Into::Add,
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
