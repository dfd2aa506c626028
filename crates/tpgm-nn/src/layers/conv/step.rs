//! One convolution of images whose channels lie side by side: its kernels, and the gradients.

use rayon::prelude::*;
use tpgm_core::Element;

use super::columns::Columns;
use super::multiply::{Into, View, multiply};
use super::padding::Axis;
use super::stencil::{self, Stencil};
use crate::layers::float::Float;
use crate::layers::storage::{fill, rows_per_piece};

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) groups: usize,
    /// Rows and columns.
    pub(crate) axes: [Axis; 2],
}

impl Sizes {
    /// Elements of a channel of an image.
    pub(super) fn from(&self) -> usize {
        self.axes[0].size * self.axes[1].size
    }

    /// Elements of a channel of its result.
    pub(super) fn to(&self) -> usize {
        self.axes[0].out * self.axes[1].out
    }

    /// Elements of a channel of the kernel.
    pub(super) fn taps(&self) -> usize {
        self.axes[0].kernel * self.axes[1].kernel
    }

    /// Elements of the kernel of one output.
    pub(super) fn kernel(&self) -> usize {
        self.taps() * self.inputs / self.groups
    }

    /// Whether each channel has a kernel of its own.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.inputs == self.groups && self.outputs == self.groups
    }

    /// Whether it is a matrix product with the image itself.
    fn is_plain(&self) -> bool {
        let plain = |axis: &Axis| axis.kernel == 1 && axis.stride == 1 && axis.out == axis.size;
        self.groups == 1 && self.axes.iter().all(plain)
    }

    /// A weight in candle's order, (outputs, inputs of the group, taps), in that of [`Step`], each output times its factor.
    pub(super) fn fold<C: Float>(&self, weight: &[C], factor: impl Fn(usize) -> C + Sync) -> Vec<C> {
        let (taps, of_group) = (self.taps(), self.inputs / self.groups);
        let mut folded = vec![C::ZERO; weight.len()];
        if self.is_depthwise() {
            for (output, weight) in weight.chunks(taps).enumerate() {
                let factor = factor(output);
                for (tap, &w) in weight.iter().enumerate() {
                    folded[tap * self.outputs + output] = w * factor;
                }
            }
            return folded;
        }
        let kernel = self.kernel();
        let rows = rows_per_piece(kernel);
        folded.par_chunks_mut(rows * kernel).enumerate().for_each(|(i, piece)| {
            for (j, to) in piece.chunks_mut(kernel).enumerate() {
                let output = i * rows + j;
                let (weight, factor) = (&weight[output * kernel..(output + 1) * kernel], factor(output));
                for (tap, to) in to.chunks_mut(of_group).enumerate() {
                    let weight = weight[tap..].iter().step_by(taps);
                    to.iter_mut().zip(weight).for_each(|(to, &w)| *to = w * factor);
                }
            }
        });
        folded
    }

    /// The way back for a gradient. Also, for each output, the sum of its products with the weight.
    pub(super) fn unfold<T: Element, C: Float>(
        &self,
        gradient: &[f64],
        weight: &[C],
        factor: impl Fn(usize) -> f64 + Sync,
    ) -> (Vec<T>, Vec<f64>) {
        let (taps, of_group, kernel) = (self.taps(), self.inputs / self.groups, self.kernel());
        let rows = rows_per_piece(kernel);
        let (unfolded, products) = fill::<T, Vec<f64>>(weight.len(), rows * kernel, |range, piece| {
            let weight = weight[range.clone()].chunks(kernel);
            let mut products = vec![];
            for (j, (to, weight)) in piece.chunks_mut(kernel).zip(weight).enumerate() {
                let output = range.start / kernel + j;
                let factor = factor(output);
                // Where the gradient of the first tap is, and how far those of two taps are apart.
                let (first, of_tap) = match self.is_depthwise() {
                    true => (output, self.outputs),
                    false => (output * kernel, of_group),
                };
                let mut product = 0.0;
                let inputs = to.chunks_mut(taps).zip(weight.chunks(taps)).enumerate();
                for (input, (to, weight)) in inputs {
                    let gradient = gradient[first + input..].iter().step_by(of_tap);
                    for ((to, w), gradient) in to.iter_mut().zip(weight).zip(gradient) {
                        product += gradient * w.to_f64();
                        *to = T::from_f64(gradient * factor);
                    }
                }
                products.push(product);
            }
            products
        });
        (unfolded, products.concat())
    }
}

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

    /// The result `y` for some images `x`.
    pub(super) fn forward(&self, x: &[C], y: &mut [C], room: &mut Vec<C>) {
        let Sizes { inputs, outputs, groups, .. } = self.sizes;
        match &self.kind {
            Kind::Plain => {
                let x = View::new(x, y.len() / outputs, inputs, inputs);
                multiply(x, self.weight(0).t(), y, outputs, Into::Replace);
            }
            Kind::Windows(columns) => columns.for_each_piece(x, room, |group, rows, columns| {
                let y = &mut y[rows.start * outputs + group * (outputs / groups)..];
                multiply(columns, self.weight(group).t(), y, outputs, Into::Replace);
            }),
            Kind::Depthwise { forward, .. } => {
                let (from, to) = (self.sizes.from() * inputs, self.sizes.to() * outputs);
                for (x, y) in x.chunks(from.max(1)).zip(y.chunks_mut(to.max(1))) {
                    stencil::apply(forward, x, &self.weight, inputs, y);
                }
            }
        }
    }

    /// The gradient `dx` of some images, whose result has the gradient `grad`.
    pub(super) fn input_gradient(&self, grad: &[C], dx: &mut [C], room: &mut Vec<C>) {
        let Sizes { inputs, outputs, groups, .. } = self.sizes;
        match &self.kind {
            Kind::Plain => {
                let grad = View::new(grad, grad.len() / outputs, outputs, outputs);
                multiply(grad, self.weight(0), dx, inputs, Into::Replace);
            }
            Kind::Windows(columns) => columns.add_up(dx, room, |group, rows, columns, width| {
                let of_group = outputs / groups;
                let grad = &grad[rows.start * outputs + group * of_group..];
                let grad = View::new(grad, rows.len(), of_group, outputs);
                multiply(grad, self.weight(group), columns, width, Into::Replace);
            }),
            Kind::Depthwise { backward, .. } => {
                let (from, to) = (self.sizes.from() * inputs, self.sizes.to() * outputs);
                for (grad, dx) in grad.chunks(to.max(1)).zip(dx.chunks_mut(from.max(1))) {
                    stencil::apply(backward, grad, &self.weight, inputs, dx);
                }
            }
        }
    }

    /// Adds the gradient of the weight, in the order of the weight.
    pub(super) fn add_weight_gradient(&self, x: &[C], grad: &[C], sums: &mut [C], room: &mut Vec<C>) {
        let Sizes { inputs, outputs, groups, .. } = self.sizes;
        match &self.kind {
            Kind::Plain => {
                let rows = grad.len() / outputs;
                let (grad, x) = (View::new(grad, rows, outputs, outputs), View::new(x, rows, inputs, inputs));
                multiply(grad.t(), x, sums, inputs, Into::Add);
            }
            Kind::Windows(columns) => columns.for_each_piece(x, room, |group, rows, columns| {
                let (of_group, kernel) = (outputs / groups, self.sizes.kernel());
                let grad = &grad[rows.start * outputs + group * of_group..];
                let grad = View::new(grad, rows.len(), of_group, outputs);
                multiply(grad.t(), columns, &mut sums[group * of_group * kernel..], kernel, Into::Add);
            }),
            Kind::Depthwise { .. } => {
                let (from, to) = (self.sizes.from() * inputs, self.sizes.to() * outputs);
                for (x, grad) in x.chunks(from.max(1)).zip(grad.chunks(to.max(1))) {
                    stencil::add_weight_gradient(&self.sizes.axes, x, grad, inputs, sums);
                }
            }
        }
    }
}
