//! The sizes of one convolution, and its weight in another order.

use rayon::prelude::*;
use tpgm_core::Element;

use super::layout::Image;
use super::padding::Axis;
use crate::layers::float::{Float, vectorized};
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

    /// The images that it takes.
    pub(super) fn input(&self) -> Image {
        Image { channels: self.inputs, size: self.from() }
    }

    /// The images that it makes.
    pub(super) fn output(&self) -> Image {
        Image { channels: self.outputs, size: self.to() }
    }

    /// Elements of a channel of the kernel.
    pub(super) fn taps(&self) -> usize {
        self.axes[0].kernel * self.axes[1].kernel
    }

    /// Elements of the kernel of one output.
    pub(super) fn kernel(&self) -> usize {
        self.taps() * self.inputs / self.groups
    }

    /// Elements of all kernels.
    pub(super) fn weight(&self) -> usize {
        self.outputs * self.kernel()
    }

    /// Whether each channel has a kernel of its own.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.inputs == self.groups && self.outputs == self.groups
    }

    /// Whether it is a matrix product with the image itself.
    pub(super) fn is_plain(&self) -> bool {
        let plain = |axis: &Axis| axis.kernel == 1 && axis.stride == 1 && axis.out == axis.size;
        self.groups == 1 && self.axes.iter().all(plain)
    }

    /// A weight in candle's order, (outputs, inputs of the group, taps), in that of [`Step`](super::step::Step), each output times
    /// its factor.
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

    /// The way back for a gradient, which is the sum of `parts`, in order, each output times its factor. Also, for each output,
    /// the sum of its products with the weight.
    pub(super) fn unfold<T: Element, C: Float>(
        &self,
        parts: &[&[C]],
        weight: &[C],
        factor: impl Fn(usize) -> f64 + Sync,
    ) -> (Vec<T>, Vec<f64>) {
        let (taps, of_group, kernel) = (self.taps(), self.inputs / self.groups, self.kernel());
        let rows = rows_per_piece(kernel);
        let (unfolded, products) = fill::<T, Vec<f64>>(weight.len(), rows * kernel, |range, piece| {
            let weight = weight[range.clone()].chunks(kernel);
            let (mut products, mut total) = (vec![], vec![0.0; kernel]);
            for (j, (to, weight)) in piece.chunks_mut(kernel).zip(weight).enumerate() {
                let output = range.start / kernel + j;
                let factor = factor(output);
                total.fill(0.0);
                for part in parts {
                    if self.is_depthwise() {
                        let part = part[output..].iter().step_by(self.outputs);
                        total.iter_mut().zip(part).for_each(|(total, x)| *total += x.to_f64());
                    } else {
                        add_wide(&part[output * kernel..(output + 1) * kernel], &mut total);
                    }
                }
                let mut product = 0.0;
                for (input, (to, weight)) in to.chunks_mut(taps).zip(weight.chunks(taps)).enumerate() {
                    let total = total[input..].iter().step_by(of_group);
                    for ((to, w), total) in to.iter_mut().zip(weight).zip(total) {
                        product += total * w.to_f64();
                        *to = T::from_f64(total * factor);
                    }
                }
                products.push(product);
            }
            products
        });
        (unfolded, products.concat())
    }
}

vectorized! {
    fn add_wide<C>(x: &[C], totals: &mut [f64]) {
        for (total, x) in totals.iter_mut().zip(x) {
            *total += x.to_f64();
        }
    }
}
