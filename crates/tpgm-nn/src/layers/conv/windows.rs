//! Windows of images as columns of a matrix, there and back, and the products with it.

use std::ops::Range;

use candle_core::{Result, Shape};
use rayon::prelude::*;
use tpgm_core::{Buffer, Element, Slice};

use super::Convolve;
use super::matrix::{Matrix, Source, values};
use crate::layers::float::Float;
use crate::layers::storage::{round, rows_per_piece, scratch, store, widen};

/// Positions of the result that one matrix product computes, at most, unless an image has more: small images are taken
/// together. Fixed, so that sums over them do not depend on the number of threads.
const POSITIONS: usize = 1024;

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    op: Convolve,
    pub(super) batch: usize,
    inputs: usize,
    height: usize,
    width: usize,
    pub(super) outputs: usize,
    kernel_height: usize,
    kernel_width: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
}

impl Windows {
    pub(super) fn new(op: Convolve, x: &Shape, weight: &Shape) -> Result<Self> {
        let (batch, inputs, height, width) = x.dims4()?;
        let (outputs, _, kernel_height, kernel_width) = weight.dims4()?;
        let count = |size: usize, kernel: usize| (size + 2 * op.padding - kernel) / op.stride + 1;
        let (out_height, out_width) = (count(height, kernel_height), count(width, kernel_width));
        Ok(Self {
            op,
            batch,
            inputs,
            height,
            width,
            outputs,
            kernel_height,
            kernel_width,
            out_height,
            out_width,
        })
    }

    /// Elements of a channel of the input.
    fn plane(&self) -> usize {
        self.height * self.width
    }

    /// Elements of a channel of the result.
    fn positions(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Elements of the kernel in a channel.
    fn kernel(&self) -> usize {
        self.kernel_height * self.kernel_width
    }

    /// Rows of the columns' matrix.
    fn rows(&self) -> usize {
        self.inputs * self.kernel()
    }

    /// True if the columns are the image itself.
    fn is_plain(&self) -> bool {
        self.kernel() == 1 && self.op.stride == 1 && self.op.padding == 0
    }

    /// Images that are taken together.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (batch, size) = (self.batch, (POSITIONS / self.positions().max(1)).max(1));
        (0..batch.div_ceil(size)).map(move |i| i * size..batch.min((i + 1) * size))
    }

    /// Calls `f` with every line of a plane that a row of the columns' matrix meets: the first element of the line in the
    /// input, and the row's positions that it fills.
    #[inline(always)]
    fn for_each_line(&self, at: usize, mut f: impl FnMut(usize, Range<usize>)) {
        let Convolve { stride, padding } = self.op;
        let (ky, kx) = (at / self.kernel_width, at % self.kernel_width);
        // Positions whose element lies inside the image.
        let inside = |k: usize, size: usize, out: usize| {
            let first = padding.saturating_sub(k).div_ceil(stride);
            let end = if size + padding > k { (size + padding - k - 1) / stride + 1 } else { 0 };
            first..end.min(out)
        };
        let columns = inside(kx, self.width, self.out_width);
        if columns.is_empty() {
            return;
        }
        for row in inside(ky, self.height, self.out_height) {
            let y = row * stride + ky - padding;
            let x = columns.start * stride + kx - padding;
            let line = row * self.out_width;
            f(y * self.width + x, line + columns.start..line + columns.end);
        }
    }

    /// The columns of some images: a row for every element of the kernel, in every channel, and in it the elements that it
    /// meets, image after image.
    fn columns<C: Float + Element>(&self, x: Slice<'_>, images: &Range<usize>) -> Vec<C> {
        let image = self.inputs * self.plane();
        let x = widen::<C>(x.sub(images.start * image..images.end * image));
        let (width, stride) = (images.len() * self.positions(), self.op.stride);
        let mut columns = vec![C::ZERO; self.rows() * width];
        let rows = rows_per_piece(width);
        columns.par_chunks_mut((rows * width).max(1)).enumerate().for_each(|(i, piece)| {
            for (j, row) in piece.chunks_mut(width).enumerate() {
                let (channel, at) = ((i * rows + j) / self.kernel(), (i * rows + j) % self.kernel());
                for (image, row) in row.chunks_mut(self.positions()).enumerate() {
                    let plane = (image * self.inputs + channel) * self.plane();
                    let plane = &x[plane..plane + self.plane()];
                    self.for_each_line(at, |from, to| {
                        let to = &mut row[to];
                        if stride == 1 {
                            to.copy_from_slice(&plane[from..from + to.len()]);
                        } else {
                            to.iter_mut()
                                .zip(plane[from..].iter().step_by(stride))
                                .for_each(|(to, &x)| *to = x);
                        }
                    });
                }
            }
        });
        columns
    }

    /// Adds the gradients of columns up where they came from: `dx` holds the images.
    fn add_columns<T: Element, C: Float>(&self, columns: &[C], images: usize, dx: &mut [T]) {
        let (width, stride) = (images * self.positions(), self.op.stride);
        let planes = rows_per_piece(self.plane());
        dx.par_chunks_mut((planes * self.plane()).max(1)).enumerate().for_each(|(i, piece)| {
            let mut dx_scratch = scratch::<T, C>(self.plane());
            for (j, dx) in piece.chunks_mut(self.plane()).enumerate() {
                let (image, channel) = ((i * planes + j) / self.inputs, (i * planes + j) % self.inputs);
                store(dx, &mut dx_scratch, |dx: &mut [C]| {
                    dx.fill(C::ZERO);
                    for at in 0..self.kernel() {
                        let start = (channel * self.kernel() + at) * width + image * self.positions();
                        let row = &columns[start..start + self.positions()];
                        self.for_each_line(at, |to, from| {
                            let (dx, row) = (&mut dx[to..], &row[from]);
                            // A step that is not known to be 1 keeps the loop from being vectorized.
                            if stride == 1 {
                                dx.iter_mut().zip(row).for_each(|(dx, &x)| *dx += x);
                            } else {
                                dx.iter_mut().step_by(stride).zip(row).for_each(|(dx, &x)| *dx += x);
                            }
                        });
                    }
                });
            }
        });
    }

    /// Channels of some images side by side: (outputs, images x positions), from (images, outputs, positions).
    fn channels_matrix<'a, C: Float + Element>(
        &self,
        y: Source<'a>,
        images: &Range<usize>,
    ) -> Result<Matrix<'a>> {
        let (positions, width) = (self.positions(), images.len() * self.positions());
        let image = self.outputs * positions;
        if images.len() == 1 {
            return y.matrix::<C>(images.start * image, self.outputs, width);
        }
        let y = widen::<C>(y.slice()?.sub(images.start * image..images.end * image));
        let mut gathered = vec![C::ZERO; self.outputs * width];
        for (i, y) in y.chunks(positions).enumerate() {
            let start = i % self.outputs * width + i / self.outputs * positions;
            gathered[start..start + positions].copy_from_slice(y);
        }
        Ok(Matrix::new(gathered, self.outputs, width))
    }

    /// The way back from channels side by side.
    fn scatter<T: Element, C: Float>(&self, gathered: &[C], images: usize, y: &mut [T]) {
        let (positions, width) = (self.positions(), images * self.positions());
        let planes = rows_per_piece(positions);
        y.par_chunks_mut((planes * positions).max(1)).enumerate().for_each(|(i, piece)| {
            let mut y_scratch = scratch::<T, C>(positions);
            for (j, y) in piece.chunks_mut(positions).enumerate() {
                let (image, output) = ((i * planes + j) / self.outputs, (i * planes + j) % self.outputs);
                let start = output * width + image * positions;
                store(y, &mut y_scratch, |y: &mut [C]| {
                    y.copy_from_slice(&gathered[start..start + positions]);
                });
            }
        });
    }

    pub(super) fn forward<T: Element, C: Float + Element>(
        &self,
        x: Source<'_>,
        weight: Source<'_>,
    ) -> Result<Buffer> {
        let weight = weight.matrix::<C>(0, self.outputs, self.rows())?;
        let image = self.outputs * self.positions();
        let mut y = vec![T::default(); self.batch * image];
        for images in self.groups() {
            let product = weight.times(&self.columns_matrix::<C>(x, &images)?)?;
            let y = &mut y[images.start * image..images.end * image];
            self.scatter::<T, C>(values(&product), images.len(), y);
        }
        Ok(T::buffer(y))
    }

    fn columns_matrix<'a, C: Float + Element>(
        &self,
        x: Source<'a>,
        images: &Range<usize>,
    ) -> Result<Matrix<'a>> {
        let width = images.len() * self.positions();
        if self.is_plain() && images.len() == 1 {
            return x.matrix::<C>(images.start * self.inputs * self.plane(), self.inputs, width);
        }
        Ok(Matrix::new(self.columns::<C>(x.slice()?, images), self.rows(), width))
    }

    /// Gradients of input and weight, of those that are wanted.
    pub(super) fn gradients<T: Element, C: Float + Element>(
        &self,
        x: Source<'_>,
        weight: Source<'_>,
        grad: Source<'_>,
        wanted: (bool, bool),
    ) -> Result<Gradients> {
        let weight = weight.matrix::<C>(0, self.outputs, self.rows())?.transposed()?;
        let image = self.inputs * self.plane();
        let mut dx = wanted.0.then(|| vec![T::default(); self.batch * image]);
        let mut dw = wanted.1.then(|| vec![0.0; self.outputs * self.rows()]);
        for images in self.groups() {
            let grad = self.channels_matrix::<C>(grad, &images)?;
            if let Some(dw) = &mut dw {
                let part = grad.times(&self.columns_matrix::<C>(x, &images)?.transposed()?)?;
                dw.iter_mut().zip(values::<C>(&part)).for_each(|(dw, x)| *dw += x.to_f64());
            }
            if let Some(dx) = &mut dx {
                let columns = weight.times(&grad)?;
                let dx = &mut dx[images.start * image..images.end * image];
                self.add_columns::<T, C>(values(&columns), images.len(), dx);
            }
        }
        Ok(Gradients { x: dx.map(T::buffer), weight: dw.map(|dw| T::buffer(round(&dw))) })
    }
}

/// Those that were wanted.
pub(super) struct Gradients {
    pub(super) x: Option<Buffer>,
    pub(super) weight: Option<Buffer>,
}
