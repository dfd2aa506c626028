//! One convolution of images whose channels lie side by side: its kernels, and the gradients.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::columns::Columns;
use super::layout::uninit;
use super::multiply::{View, add_product, multiply};
use super::sizes::Sizes;
use super::stencil::{self, Stencil};
use crate::layers::float::Float;
use crate::layers::storage::cleared;

/// Elements of rows that a product gives at a time: they stay in the L2 cache for what follows.
const ELEMENTS: usize = 96 * 1024;

/// Such rows, at least: for each block the whole weight is read.
const ROWS: usize = 512;

/// A convolution as it is computed.
#[derive(Debug)]
pub(super) struct Step<C> {
    pub(super) sizes: Sizes,
    /// (outputs, taps, inputs of the group), or (taps, channels) if depthwise.
    weight: Vec<C>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A kernel of one element: the image is the matrix.
    Plain,
    /// Windows are copied into the rows of a matrix.
    Windows(Columns),
    Depthwise {
        forward: Stencil,
        backward: Stencil,
    },
}

impl<C: Float> Step<C> {
    /// With a weight that was [folded](Sizes::fold).
    pub(super) fn new(sizes: Sizes, weight: Vec<C>) -> Self {
        let kind = if sizes.is_depthwise() {
            let [rows, columns] = &sizes.axes;
            Kind::Depthwise {
                forward: Stencil {
                    rows: stencil::forward(rows),
                    columns: stencil::forward(columns),
                    from_width: columns.size,
                    kernel_width: columns.kernel,
                    to_width: columns.out,
                },
                backward: Stencil {
                    rows: stencil::backward(rows),
                    columns: stencil::backward(columns),
                    from_width: columns.out,
                    kernel_width: columns.kernel,
                    to_width: columns.size,
                },
            }
        } else if sizes.is_plain() {
            Kind::Plain
        } else {
            Kind::Windows(Columns::new(&sizes))
        };
        Self { sizes, weight, kind }
    }

    /// The weight of a group as a matrix of (outputs of the group, kernel).
    fn weight(&self, group: usize) -> View<'_, C> {
        let (outputs, kernel) = (self.sizes.outputs / self.sizes.groups, self.sizes.kernel());
        View::new(&self.weight[group * outputs * kernel..], outputs, kernel, kernel)
    }

    /// Elements of as many images.
    fn assert_fit(&self, x: usize, y: usize) {
        let (from, to) = (self.sizes.input().len(), self.sizes.output().len());
        assert!(x.is_multiple_of(from) && x / from * to == y, "{x} and {y} elements of as many images");
    }

    /// Writes the result `y` for some images `x`, and calls `done` with rows of it, all of them in order, while they are in the
    /// cache.
    pub(super) fn forward<'a>(
        &self,
        x: &[C],
        y: &'a mut [MaybeUninit<C>],
        room: &mut Vec<C>,
        mut done: impl FnMut(Range<usize>, &mut [C]),
    ) -> &'a mut [C] {
        let Sizes { inputs, outputs, groups, .. } = self.sizes;
        self.assert_fit(x.len(), y.len());
        match &self.kind {
            Kind::Plain => {
                for rows in blocks(y.len() / outputs, inputs.max(outputs)) {
                    let x = View::new(&x[rows.start * inputs..], rows.len(), inputs, inputs);
                    let y = &mut y[rows.start * outputs..rows.end * outputs];
                    multiply(x, self.weight(0).t(), y, outputs);
                    // SAFETY: the product is in all of its rows, which have no gaps.
                    done(rows, unsafe { written(y) });
                }
            }
            Kind::Windows(columns) => columns.for_each_piece(x, room, |group, rows, columns| {
                let y = &mut y[rows.start * outputs..rows.end * outputs];
                multiply(columns, self.weight(group).t(), &mut y[group * (outputs / groups)..], outputs);
                if group + 1 == groups {
                    // SAFETY: the products of all groups are in all of its rows, without gaps.
                    done(rows, unsafe { written(y) });
                }
            }),
            Kind::Depthwise { forward, .. } => {
                let (from, to) = (self.sizes.from(), self.sizes.to());
                let images = x.chunks(from * inputs).zip(y.chunks_mut(to * outputs)).enumerate();
                for (i, (x, y)) in images {
                    let y = cleared(y);
                    stencil::apply(forward, x, &self.weight, inputs, y);
                    done(i * to..(i + 1) * to, y);
                }
            }
        }
        // SAFETY: each kind goes through all rows of the result.
        unsafe { written(y) }
    }

    /// Writes the gradient `dx` of some images, whose result has the gradient `grad`, and calls `done` with rows of it, all of
    /// them in order, while they are in the cache.
    pub(super) fn input_gradient<'a>(
        &self,
        grad: &[C],
        dx: &'a mut [MaybeUninit<C>],
        room: &mut Vec<C>,
        mut done: impl FnMut(Range<usize>, &mut [C]),
    ) -> &'a mut [C] {
        let Sizes { inputs, outputs, .. } = self.sizes;
        self.assert_fit(dx.len(), grad.len());
        match &self.kind {
            Kind::Plain => {
                for rows in blocks(grad.len() / outputs, inputs.max(outputs)) {
                    let grad = View::new(&grad[rows.start * outputs..], rows.len(), outputs, outputs);
                    let dx = &mut dx[rows.start * inputs..rows.end * inputs];
                    multiply(grad, self.weight(0), dx, inputs);
                    // SAFETY: the product is in all of its rows, which have no gaps.
                    done(rows, unsafe { written(dx) });
                }
            }
            Kind::Windows(_) => {
                // As many images as have enough rows.
                let images = (ROWS / self.sizes.to()).max(1);
                let (from, to) = (images * self.sizes.from(), images * self.sizes.to());
                let pieces = dx.chunks_mut(from * inputs).zip(grad.chunks(to * outputs)).enumerate();
                for (i, (dx, grad)) in pieces {
                    let dx = cleared(dx);
                    self.add_input_gradient(grad, dx, room);
                    done(i * from..i * from + dx.len() / inputs, dx);
                }
            }
            Kind::Depthwise { backward, .. } => {
                let (from, to) = (self.sizes.from(), self.sizes.to());
                let images = grad.chunks(to * outputs).zip(dx.chunks_mut(from * inputs)).enumerate();
                for (i, (grad, dx)) in images {
                    let dx = cleared(dx);
                    stencil::apply(backward, grad, &self.weight, inputs, dx);
                    done(i * from..(i + 1) * from, dx);
                }
            }
        }
        // SAFETY: each kind goes through all rows of the gradient.
        unsafe { written(dx) }
    }

    /// Adds the gradient of some images, whose result has the gradient `grad`, to `dx`.
    pub(super) fn add_input_gradient(&self, grad: &[C], dx: &mut [C], room: &mut Vec<C>) {
        let Sizes { inputs, outputs, groups, .. } = self.sizes;
        match &self.kind {
            Kind::Plain => {
                let grad = View::new(grad, grad.len() / outputs, outputs, outputs);
                add_product(grad, self.weight(0), dx, inputs);
            }
            Kind::Windows(columns) => columns.add_up(dx, room, |group, rows, columns, width| {
                let of_group = outputs / groups;
                let grad = &grad[rows.start * outputs + group * of_group..];
                let grad = View::new(grad, rows.len(), of_group, outputs);
                multiply(grad, self.weight(group), uninit(columns), width);
            }),
            Kind::Depthwise { .. } => {
                let mut own = vec![C::ZERO; dx.len()];
                self.input_gradient(grad, uninit(&mut own), room, |_, _| ());
                dx.iter_mut().zip(own).for_each(|(dx, x)| *dx += x);
            }
        }
    }

    /// Adds the gradient of the weight, in the order of the weight, to `sums`, which become it if they are empty.
    pub(super) fn add_weight_gradient(&self, x: &[C], grad: &[C], sums: &mut Vec<C>, room: &mut Vec<C>) {
        let Sizes { inputs, outputs, groups, .. } = self.sizes;
        self.assert_fit(x.len(), grad.len());
        let len = self.sizes.weight();
        if grad.is_empty() {
            return sums.resize(len, C::ZERO);
        }
        // What lies in new memory is not read.
        let is_new = sums.is_empty();
        let put = |a: View<'_, C>, b: View<'_, C>, sums: &mut [MaybeUninit<C>], row, add| {
            if add {
                // SAFETY: the first product, which was not added, is in all of these rows; or the sums were there before.
                add_product(a, b, unsafe { written(sums) }, row);
            } else {
                multiply(a, b, sums, row);
            }
        };
        match &self.kind {
            Kind::Plain => {
                let rows = grad.len() / outputs;
                let (grad, x) = (View::new(grad, rows, outputs, outputs), View::new(x, rows, inputs, inputs));
                put(grad.t(), x, place(sums, len), inputs, !is_new);
            }
            Kind::Windows(columns) => columns.for_each_piece(x, room, |group, rows, columns| {
                let (of_group, kernel) = (outputs / groups, self.sizes.kernel());
                let add = !is_new || rows.start > 0;
                let grad = &grad[rows.start * outputs + group * of_group..];
                let grad = View::new(grad, rows.len(), of_group, outputs);
                let start = group * of_group * kernel;
                let sums = &mut place(sums, len)[start..start + of_group * kernel];
                put(grad.t(), columns, sums, kernel, add);
            }),
            Kind::Depthwise { .. } => {
                sums.resize(len, C::ZERO);
                let (from, to) = (self.sizes.from() * inputs, self.sizes.to() * outputs);
                for (x, grad) in x.chunks(from).zip(grad.chunks(to)) {
                    stencil::add_weight_gradient(&self.sizes.axes, x, grad, inputs, sums);
                }
            }
        }
        // SAFETY: there is at least one row, and so a product of each group in its part of the memory, and no gap between them.
        unsafe { sums.set_len(len) };
    }
}

/// The memory of `len` elements, which are there or come.
fn place<C: Float>(sums: &mut Vec<C>, len: usize) -> &mut [MaybeUninit<C>] {
    if sums.is_empty() {
        sums.reserve_exact(len);
        &mut sums.spare_capacity_mut()[..len]
    } else {
        uninit(&mut sums[..len])
    }
}

/// All of so many rows of so many elements, a block at a time.
fn blocks(rows: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    let block = (ELEMENTS / width.max(1)).max(ROWS);
    (0..rows.div_ceil(block)).map(move |i| i * block..rows.min((i + 1) * block))
}

/// What was written.
///
/// # Safety
///
/// All elements have values.
unsafe fn written<C: Float>(x: &mut [MaybeUninit<C>]) -> &mut [C] {
    // SAFETY: `MaybeUninit<C>` is laid out as `C`; the rest is what this function asks for.
    unsafe { &mut *(std::ptr::from_mut(x) as *mut [C]) }
}
