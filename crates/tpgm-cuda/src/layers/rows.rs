//! Operands of layers: rows of elements in device memory.

use tpgm_core::DType;

use super::error::{Error, Result};
use crate::memory::{View, ViewMut};

/// Rows of one length, read: row `i` starts `i * stride` elements behind the first.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    view: View<'a>,
    shape: Shape,
}

/// Rows of one length, written: as [`Rows`], and they do not overlap.
#[derive(Debug)]
pub struct RowsMut<'a> {
    view: ViewMut<'a>,
    shape: Shape,
}

/// How rows lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) width: usize,
    stride: usize,
}

impl Shape {
    fn contiguous(len: usize, width: usize) -> Result<Self> {
        match len.checked_rem(width) {
            Some(0) => Ok(Self { rows: len / width, width, stride: width }),
            None if len == 0 => Ok(Self { rows: 0, width, stride: 0 }),
            _ => Err(Error::Shape {
                layer: "rows",
                operand: "view",
                got: format!("{len} elements"),
                expected: format!("whole rows of {width} are"),
            }),
        }
    }

    fn strided(len: usize, rows: usize, width: usize, stride: usize) -> Result<Self> {
        let end = rows.saturating_sub(1).checked_mul(stride).and_then(|last| last.checked_add(width));
        if rows == 0 || end.is_some_and(|end| end <= len) {
            return Ok(Self { rows, width, stride });
        }
        Err(Error::Shape {
            layer: "rows",
            operand: "view",
            got: format!("{len} elements"),
            expected: format!("{rows} rows of {width}, {stride} apart, are"),
        })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows of {}", self.rows, self.width)
    }
}

impl<'a> Rows<'a> {
    /// Rows of `width` elements, one behind the other.
    ///
    /// # Errors
    ///
    /// If the view does not end with a row.
    pub fn new(view: View<'a>, width: usize) -> Result<Self> {
        Ok(Self { view, shape: Shape::contiguous(view.len(), width)? })
    }

    /// `rows` rows of `width` elements, `stride` elements from one start to the next. With a stride of 0 all are the same.
    ///
    /// # Errors
    ///
    /// If the view ends before the last row does.
    pub fn strided(view: View<'a>, rows: usize, width: usize, stride: usize) -> Result<Self> {
        Ok(Self { view, shape: Shape::strided(view.len(), rows, width, stride)? })
    }
}

impl<'a> RowsMut<'a> {
    /// Rows of `width` elements, one behind the other.
    ///
    /// # Errors
    ///
    /// As [`Rows::new`].
    pub fn new(view: ViewMut<'a>, width: usize) -> Result<Self> {
        let shape = Shape::contiguous(view.as_view().len(), width)?;
        Ok(Self { view, shape })
    }

    /// `rows` rows of `width` elements, `stride` elements from one start to the next.
    ///
    /// # Errors
    ///
    /// As [`Rows::strided`], and if rows overlap.
    pub fn strided(view: ViewMut<'a>, rows: usize, width: usize, stride: usize) -> Result<Self> {
        let shape = Shape::strided(view.as_view().len(), rows, width, stride)?;
        if rows > 1 && stride < width {
            return Err(Error::Shape {
                layer: "rows",
                operand: "view",
                got: format!("rows of {width} that start {stride} apart"),
                expected: format!("a stride of {width} or more is"),
            });
        }
        Ok(Self { view, shape })
    }
}

/// Rows as the kernels see them: `Rows` of `kernels/layers/layer.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Table {
    pub(super) address: u64,
    pub(super) stride: u64,
}

/// Looks at the operands of one call: they must fit the first.
pub(super) struct Operands {
    layer: &'static str,
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// True while all rows seen can be read four elements at a time.
    vector: bool,
}

impl Operands {
    /// # Errors
    ///
    /// If the element type is none of f32, bf16 and f16, or rows are longer than kernels count.
    pub(super) fn new(layer: &'static str, operand: &'static str, first: &Rows<'_>) -> Result<Self> {
        let (dtype, Shape { rows, width, .. }) = (first.view.dtype(), first.shape);
        if dtype == DType::F64 {
            return Err(Error::DType { layer, operand, got: dtype, expected: "f32, bf16 or f16" });
        }
        if width > MOST_COLUMNS {
            let expected = format!("at most {MOST_COLUMNS} elements a row are");
            return Err(Error::Shape { layer, operand, got: first.shape.to_string(), expected });
        }
        Ok(Self { layer, dtype, rows, width, vector: width.is_multiple_of(4) })
    }

    /// Elements one behind the other, as many as there are.
    ///
    /// # Errors
    ///
    /// If the element type is none of f32, bf16 and f16.
    pub(super) fn of_elements(layer: &'static str, operand: &'static str, view: View<'_>) -> Result<Self> {
        let dtype = view.dtype();
        if dtype == DType::F64 {
            return Err(Error::DType { layer, operand, got: dtype, expected: "f32, bf16 or f16" });
        }
        Ok(Self { layer, dtype, rows: 1, width: view.len(), vector: true })
    }

    /// What the kernels are told: 1 if all rows seen so far can be read four elements at a time.
    pub(super) fn vector(&self) -> u32 {
        u32::from(self.vector)
    }

    /// True if there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0 || self.width == 0
    }

    /// Takes all rows, which start at these addresses and have no gaps, for one of `all` elements.
    pub(super) fn flatten(&mut self, all: usize, addresses: impl Iterator<Item = u64>) {
        (self.rows, self.width, self.vector) = (1, all, all.is_multiple_of(4));
        addresses.for_each(|address| self.seen(address, 0));
    }

    fn same_type(&self, operand: &'static str, got: DType) -> Result<()> {
        if got == self.dtype {
            return Ok(());
        }
        let expected = match self.dtype {
            DType::BF16 => "bf16 as the others",
            DType::F16 => "f16 as the others",
            _ => "f32 as the others",
        };
        Err(Error::DType { layer: self.layer, operand, got, expected })
    }

    fn seen(&mut self, address: u64, stride: usize) {
        let bytes = (4 * self.dtype.size()).min(16) as u64;
        self.vector &= address.is_multiple_of(bytes) && (stride.is_multiple_of(4) || self.rows < 2);
    }

    fn take(&mut self, operand: &'static str, view: View<'_>, shape: Shape) -> Result<Table> {
        self.same_type(operand, view.dtype())?;
        if (shape.rows, shape.width) != (self.rows, self.width) {
            let expected = format!("{} rows of {} are", self.rows, self.width);
            return Err(Error::Shape { layer: self.layer, operand, got: shape.to_string(), expected });
        }
        self.seen(view.address(), shape.stride);
        Ok(Table { address: view.address(), stride: shape.stride as u64 })
    }

    /// Rows of the same shape as the first.
    pub(super) fn rows(&mut self, operand: &'static str, rows: &Rows<'_>) -> Result<Table> {
        self.take(operand, rows.view, rows.shape)
    }

    /// Rows of the same shape as the first, to be written.
    pub(super) fn rows_mut(&mut self, operand: &'static str, rows: &RowsMut<'_>) -> Result<Table> {
        self.take(operand, rows.view.as_view(), rows.shape)
    }

    /// Rows of the same width, to be written; and how many there are.
    pub(super) fn other_rows_mut(
        &mut self,
        operand: &'static str,
        rows: &RowsMut<'_>,
    ) -> Result<(Table, usize)> {
        let (view, shape) = (rows.view.as_view(), rows.shape);
        self.same_type(operand, view.dtype())?;
        if shape.width != self.width {
            let expected = format!("rows of {} are", self.width);
            return Err(Error::Shape { layer: self.layer, operand, got: shape.to_string(), expected });
        }
        self.seen(view.address(), 0);
        self.vector &= shape.rows < 2 || shape.stride.is_multiple_of(4);
        Ok((Table { address: view.address(), stride: shape.stride as u64 }, shape.rows))
    }

    /// As [`Operands::rows`] of what may be absent.
    pub(super) fn maybe(&mut self, operand: &'static str, rows: Option<&Rows<'_>>) -> Result<Table> {
        rows.map_or(Ok(Table::default()), |rows| self.rows(operand, rows))
    }

    /// As [`Operands::rows_mut`] of what may be absent.
    pub(super) fn maybe_mut(&mut self, operand: &'static str, rows: Option<&RowsMut<'_>>) -> Result<Table> {
        rows.map_or(Ok(Table::default()), |rows| self.rows_mut(operand, rows))
    }

    /// One element for each column; the address.
    pub(super) fn columns(&mut self, operand: &'static str, view: View<'_>) -> Result<u64> {
        self.same_type(operand, view.dtype())?;
        self.count(operand, view, self.width)?;
        self.seen(view.address(), 0);
        Ok(view.address())
    }

    /// Rows that start at sums of multiples of `strides`, whose end the caller has checked; the address.
    pub(super) fn broadcast(
        &mut self,
        operand: &'static str,
        view: View<'_>,
        strides: &[usize],
    ) -> Result<u64> {
        self.same_type(operand, view.dtype())?;
        strides.iter().for_each(|&stride| self.seen(view.address(), stride));
        Ok(view.address())
    }

    /// `len` elements of the layer's element type, not read four at a time; the address.
    pub(super) fn elements(&self, operand: &'static str, view: View<'_>, len: usize) -> Result<u64> {
        self.same_type(operand, view.dtype())?;
        self.count(operand, view, len)?;
        Ok(view.address())
    }

    /// `len` elements of f32; the address.
    pub(super) fn floats(&self, operand: &'static str, view: View<'_>, len: usize) -> Result<u64> {
        if view.dtype() != DType::F32 {
            return Err(Error::DType { layer: self.layer, operand, got: view.dtype(), expected: "f32" });
        }
        self.count(operand, view, len)?;
        Ok(view.address())
    }

    fn count(&self, operand: &'static str, view: View<'_>, expected: usize) -> Result<()> {
        if view.len() == expected {
            return Ok(());
        }
        let got = format!("{} elements", view.len());
        Err(Error::Shape { layer: self.layer, operand, got, expected: format!("{expected} are") })
    }
}

/// The longest row: kernels count columns in 32 bits, two gradients beside each other too.
pub(super) const MOST_COLUMNS: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn view(len: usize) -> View<'static> {
        // SAFETY: nobody reads it.
        unsafe { View::from_raw(4096, len, DType::F32) }
    }

    #[test]
    fn rows_end_inside_their_view() {
        assert_eq!(Rows::new(view(12), 4).unwrap().shape, Shape { rows: 3, width: 4, stride: 4 });
        assert_eq!(Rows::strided(view(11), 3, 3, 4).unwrap().shape, Shape { rows: 3, width: 3, stride: 4 });
        let error = |result: Result<Rows<'_>>| result.unwrap_err().to_string();
        assert_eq!(
            error(Rows::new(view(12), 5)),
            "rows: `view` has 12 elements, but whole rows of 5 are needed"
        );
        assert_eq!(
            error(Rows::strided(view(10), 3, 3, 4)),
            "rows: `view` has 10 elements, but 3 rows of 3, 4 apart, are needed"
        );
        assert!(Rows::strided(view(10), usize::MAX, 3, 4).is_err());
    }

    #[test]
    fn quads_are_read_where_all_rows_start_at_a_multiple_of_16_bytes() {
        let vector = |len, rows, width, stride, offset| {
            let rows = Rows::strided(view(len).slice(offset..len), rows, width, stride).unwrap();
            let mut operands = Operands::new("test", "x", &rows).unwrap();
            operands.rows("x", &rows).unwrap();
            operands.vector()
        };
        assert_eq!((vector(24, 3, 8, 8, 0), vector(24, 3, 8, 4, 4)), (1, 1));
        assert_eq!((vector(24, 3, 6, 8, 0), vector(30, 3, 8, 9, 0), vector(24, 2, 8, 8, 1)), (0, 0, 0));
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let x = Rows::new(view(12), 4).unwrap();
        let mut operands = Operands::new("test", "x", &x).unwrap();
        let other = Rows::new(view(12), 3).unwrap();
        let text = operands.rows("grad", &other).unwrap_err().to_string();
        assert_eq!(text, "test: `grad` has 4 rows of 3, but 3 rows of 4 are needed");
        let text = operands.columns("weight", view(3)).unwrap_err().to_string();
        assert_eq!(text, "test: `weight` has 3 elements, but 4 are needed");
        // SAFETY: nobody reads it.
        let half = unsafe { View::from_raw(0, 4, DType::F16) };
        let text = operands.columns("weight", half).unwrap_err().to_string();
        assert_eq!(text, "test: `weight` is f16, but must be f32 as the others");
    }
}
