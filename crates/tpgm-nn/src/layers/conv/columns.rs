//! Windows of images whose channels lie side by side, as rows of a matrix, there and back.

use std::ops::Range;

use super::layout::grown;
use super::multiply::View;
use super::padding::Axis;
use super::sizes::Sizes;
use crate::layers::float::Float;

/// Elements of the matrix that are made at a time: what stays in the L2 cache until it is multiplied.
const ELEMENTS: usize = 96 * 1024;

/// Rows that are made at a time, at least: for each such piece the whole weight is read, and its whole gradient written.
const ROWS: usize = 256;

/// How windows become rows: (taps, inputs of the group) each.
#[derive(Debug)]
pub(super) struct Columns {
    axes: [Axis; 2],
    inputs: usize,
    groups: usize,
    /// Rows that are made at a time.
    piece: usize,
}

impl Columns {
    pub(super) fn new(sizes: &Sizes) -> Self {
        let piece = (ELEMENTS / sizes.kernel().max(1)).max(ROWS);
        Self { axes: sizes.axes, inputs: sizes.inputs, groups: sizes.groups, piece }
    }

    fn positions(&self) -> usize {
        self.axes[0].out * self.axes[1].out
    }

    fn image(&self) -> usize {
        self.axes[0].size * self.axes[1].size * self.inputs
    }

    /// Elements of a row.
    fn width(&self) -> usize {
        self.axes[0].kernel * self.axes[1].kernel * self.inputs / self.groups
    }

    /// Pieces of all rows of some images.
    fn pieces(&self, images: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, piece) = (images * self.positions(), self.piece);
        (0..rows.div_ceil(piece)).map(move |i| i * piece..rows.min((i + 1) * piece))
    }

    /// Calls `f` with each group, rows and the matrix of these rows, in the order of rows.
    pub(super) fn for_each_piece<C: Float>(
        &self,
        x: &[C],
        room: &mut Vec<C>,
        mut f: impl FnMut(usize, Range<usize>, View<'_, C>),
    ) {
        let (width, of_group) = (self.width(), self.inputs / self.groups);
        for rows in self.pieces(x.len() / self.image().max(1)) {
            for group in 0..self.groups {
                let room = grown(room, rows.len() * width);
                // What lies in front of the next line, beyond the edges, is zero.
                let mut done = 0;
                self.for_each_line(rows.clone(), |at, from, taps| {
                    room[done..at].fill(C::ZERO);
                    done = at + taps * of_group;
                    let to = &mut room[at..done];
                    if self.groups == 1 {
                        to.copy_from_slice(&x[from..from + to.len()]);
                    } else {
                        for (i, to) in to.chunks_mut(of_group).enumerate() {
                            let from = from + i * self.inputs + group * of_group;
                            to.copy_from_slice(&x[from..from + of_group]);
                        }
                    }
                });
                room[done..].fill(C::ZERO);
                f(group, rows.clone(), View::new(room, rows.len(), width, width));
            }
        }
    }

    /// Adds the rows that `f` writes to where their elements lie in `dx`. It gets a group, rows, the place for the matrix, and
    /// its width.
    pub(super) fn add_up<C: Float>(
        &self,
        dx: &mut [C],
        room: &mut Vec<C>,
        mut f: impl FnMut(usize, Range<usize>, &mut [C], usize),
    ) {
        let (width, of_group) = (self.width(), self.inputs / self.groups);
        for rows in self.pieces(dx.len() / self.image().max(1)) {
            for group in 0..self.groups {
                let room = grown(room, rows.len() * width);
                f(group, rows.clone(), room, width);
                self.for_each_line(rows.clone(), |at, from, taps| {
                    let row = &room[at..at + taps * of_group];
                    if self.groups == 1 {
                        dx[from..from + row.len()].iter_mut().zip(row).for_each(|(dx, &x)| *dx += x);
                    } else {
                        for (i, row) in row.chunks(of_group).enumerate() {
                            let from = from + i * self.inputs + group * of_group;
                            dx[from..from + of_group].iter_mut().zip(row).for_each(|(dx, &x)| *dx += x);
                        }
                    }
                });
            }
        }
    }

    /// Calls `f` with every line of a window inside the image, in order: where it starts in the rows and in the images, and how
    /// many elements of the kernel it has.
    #[inline(always)]
    fn for_each_line(&self, rows: Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
        let [height, width] = &self.axes;
        let (positions, of_group) = (self.positions(), self.inputs / self.groups);
        for (i, row) in rows.enumerate() {
            let (image, position) = (row / positions, row % positions);
            let (top, left) = (position / width.out * height.stride, position % width.out * width.stride);
            // Elements of the kernel inside the image.
            let inside = |start: usize, axis: &Axis| {
                let end = (axis.before + axis.size).saturating_sub(start).min(axis.kernel);
                axis.before.saturating_sub(start).min(end)..end
            };
            let columns = inside(left, width);
            if columns.is_empty() {
                continue;
            }
            for ky in inside(top, height) {
                let y = image * height.size + top + ky - height.before;
                let x = left + columns.start - width.before;
                let at = i * self.width() + (ky * width.kernel + columns.start) * of_group;
                f(at, (y * width.size + x) * self.inputs, columns.len());
            }
        }
    }
}
