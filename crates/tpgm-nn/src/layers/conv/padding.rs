//! Where the windows of a convolution lie.

/// How far the windows of a convolution reach beyond the edges of the image, where zeros lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// The same number of elements beyond each edge: PyTorch's padding.
    Symmetric(usize),
    /// TensorFlow's `SAME`: the result has ceil(size / stride) elements, for which max((ceil(size / stride) - 1) stride +
    /// kernel - size, 0) are needed, half of them (rounded down) before the image and the rest behind it. So with a stride of
    /// two it depends on whether the size is even, and may be asymmetric.
    Same,
}

impl From<usize> for Padding {
    fn from(elements: usize) -> Self {
        Padding::Symmetric(elements)
    }
}

/// Windows along one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Elements of the image.
    pub(crate) size: usize,
    /// Elements of the kernel.
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Zeros in front of the image.
    pub(crate) before: usize,
    /// Zeros behind it.
    pub(crate) after: usize,
    /// Windows: elements of the result.
    pub(crate) out: usize,
}

impl Axis {
    /// Nothing if the stride is 0, or the padded image is smaller than the kernel.
    pub(crate) fn new(padding: Padding, stride: usize, size: usize, kernel: usize) -> Option<Self> {
        let (before, after) = match padding {
            Padding::Symmetric(elements) => (elements, elements),
            Padding::Same => {
                let last = size.checked_div(stride)? + usize::from(!size.is_multiple_of(stride));
                let total = (last.checked_sub(1)? * stride + kernel).saturating_sub(size);
                (total / 2, total - total / 2)
            }
        };
        let beyond = (size + before + after).checked_sub(kernel)?;
        Some(Self { size, kernel, stride, before, after, out: beyond.checked_div(stride)? + 1 })
    }

    /// Windows whose element number `k` lies inside the image.
    pub(crate) fn inside(&self, k: usize) -> std::ops::Range<usize> {
        let first = self.before.saturating_sub(k).div_ceil(self.stride);
        let end = (self.size + self.before).saturating_sub(k).div_ceil(self.stride).min(self.out);
        first.min(end)..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_is_that_of_tensorflow() {
        // (size, kernel, stride) and (before, after, out), by the formula.
        for ((size, kernel, stride), expected) in [
            ((96, 3, 2), (0, 1, 48)),
            ((24, 5, 2), (1, 2, 12)),
            ((7, 3, 2), (1, 1, 4)),
            ((6, 5, 1), (2, 2, 6)),
            ((6, 4, 1), (1, 2, 6)),
            ((6, 1, 3), (0, 0, 2)),
            ((1, 3, 1), (1, 1, 1)),
            ((1, 5, 2), (2, 2, 1)),
        ] {
            let axis = Axis::new(Padding::Same, stride, size, kernel).unwrap();
            assert_eq!((axis.before, axis.after, axis.out), expected, "{size} {kernel} {stride}");
        }
    }

    #[test]
    fn windows_inside_are_those_found_one_by_one() {
        for (padding, stride, size, kernel) in [
            (Padding::Same, 2, 6, 3),
            (Padding::Same, 3, 7, 2),
            (Padding::Symmetric(2), 1, 1, 3),
            (Padding::Symmetric(3), 2, 2, 3),
            (Padding::Symmetric(0), 2, 7, 3),
        ] {
            let axis = Axis::new(padding, stride, size, kernel).unwrap();
            for k in 0..kernel {
                let inside = |out: &usize| (axis.before..axis.before + size).contains(&(out * stride + k));
                let expected: Vec<usize> = (0..axis.out).filter(inside).collect();
                assert_eq!(axis.inside(k).collect::<Vec<_>>(), expected, "{axis:?}, {k}");
            }
        }
    }

    #[test]
    fn what_has_no_windows() {
        assert_eq!(Axis::new(Padding::Symmetric(0), 1, 2, 3), None);
        assert_eq!(Axis::new(Padding::Symmetric(1), 0, 2, 3), None);
        assert_eq!(Axis::new(Padding::Same, 0, 2, 3), None);
        assert_eq!(Axis::new(Padding::Same, 1, 0, 3), None);
    }
}
