//! How candle's layouts are rows.

use candle_core::Layout;

/// The longest row that the kernels take.
pub(super) const MOST_COLUMNS: usize = 1 << 30;

/// The elements of a tensor as rows of its last dimension, each as far from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowShape {
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// From the start of one row to the next; 0 where all are the same.
    pub(super) stride: usize,
}

impl RowShape {
    /// Nothing where elements of a row are not neighbors, or rows are not the same distance apart.
    pub(super) fn of(layout: &Layout) -> Option<Self> {
        let start = layout.start_offset();
        let (Some((&width, dims)), Some((&step, strides))) =
            (layout.dims().split_last(), layout.stride().split_last())
        else {
            return Some(Self { start, rows: 1, width: 1, stride: 1 });
        };
        if width > 1 && step != 1 {
            return None;
        }
        // From the inside out, a dimension continues what is inside it.
        let (mut rows, mut stride) = (1, None);
        for (&size, &step) in dims.iter().zip(strides).rev().filter(|(size, _)| **size != 1) {
            match stride {
                None => stride = Some(step),
                Some(stride) if step == stride * rows => {}
                Some(_) => return None,
            }
            rows *= size;
        }
        Some(Self { start, rows, width, stride: stride.unwrap_or(width) })
    }

    /// How many elements lie from the first to the last, both included.
    pub(super) fn span(self) -> usize {
        match self.rows {
            0 => 0,
            rows => (rows - 1) * self.stride + self.width,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Tensor};

    use super::*;

    fn shape(x: Result<Tensor>) -> Option<(usize, usize, usize, usize)> {
        RowShape::of(x.unwrap().layout()).map(|rows| (rows.start, rows.rows, rows.width, rows.stride))
    }

    #[test]
    fn rows_are_of_the_last_dimension_and_equally_far_apart() {
        let x = Tensor::zeros((2, 3, 8), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(shape(Ok(x.clone())), Some((0, 6, 8, 8)));
        assert_eq!(shape(x.narrow(2, 4, 3)), Some((4, 6, 3, 8)), "a part of each row");
        assert_eq!(shape(x.narrow(1, 1, 1)), Some((8, 2, 8, 24)), "the second of three rows");
        assert_eq!(shape(x.narrow(1, 1, 2)), None, "two of three rows");
        assert_eq!(shape(x.narrow(0, 1, 1)), Some((24, 3, 8, 8)));
        assert_eq!(shape(x.transpose(0, 1)), None);
        assert_eq!(shape(x.transpose(1, 2)), None);
        assert_eq!(shape(x.narrow(2, 7, 1)), Some((7, 6, 1, 8)), "rows of one");
        assert_eq!(shape(x.flatten_all().unwrap().narrow(0, 3, 5)), Some((3, 1, 5, 5)));
        let row = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(shape(row.broadcast_as((5, 2, 8))), Some((0, 10, 8, 0)), "one row ten times");
        assert_eq!(shape(row.reshape((8, 1)).unwrap().broadcast_as((8, 4))), None, "neighbors that are one");
        assert_eq!(shape(row.sum_all()), Some((0, 1, 1, 1)));
    }

    #[test]
    fn a_span_ends_with_the_last_row() {
        let span = |rows, width, stride| RowShape { start: 9, rows, width, stride }.span();
        assert_eq!((span(3, 4, 4), span(3, 4, 10), span(3, 4, 0), span(0, 4, 4)), (12, 24, 4, 0));
    }
}
