//! Windows of images as columns of a matrix, there and back, and the products with it.

use std::ops::Range;

use candle_core::{CpuStorage, Result};
use rayon::prelude::*;
use tpgm_core::{Buffer, Element, Slice};

use super::Convolve;
use super::matrix::{Matrix, Source, values};
use super::padding::Axis;
use crate::layers::float::Float;
use crate::layers::storage::{into_storage, round, rows_per_piece, scratch, store, widen};

/// Positions of the result that one matrix product computes, at most, unless an image has more: small images are taken
/// together. Fixed, so that sums over them do not depend on the number of threads.
const POSITIONS: usize = 1024;

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub(super) batch: usize,
    inputs: usize,
    pub(super) outputs: usize,
    groups: usize,
    pub(super) rows: Axis,
    pub(super) columns: Axis,
}

impl Windows {
    /// Of an input and a weight of these dimensions.
    pub(super) fn new(op: &Convolve, x: &[usize], weight: &[usize]) -> Result<Self> {
        let [rows, columns] = op.axes(x, weight).map_err(candle_core::Error::msg)?;
        Ok(Self { batch: x[0], inputs: x[1], outputs: weight[0], groups: op.groups, rows, columns })
    }

    /// Elements of a channel of the input.
    fn plane(&self) -> usize {
        self.rows.size * self.columns.size
    }

    /// Elements of a channel of the result.
    fn positions(&self) -> usize {
        self.rows.out * self.columns.out
    }

    /// Elements of the kernel in a channel.
    fn kernel(&self) -> usize {
        self.rows.kernel * self.columns.kernel
    }

    /// Rows of the columns' matrix that belong to one group: weights of an output.
    fn taps(&self) -> usize {
        self.inputs / self.groups * self.kernel()
    }

    /// For each group, which rows of the columns' matrix it takes, and which outputs it gives.
    fn groups(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
        let (taps, outputs) = (self.taps(), self.outputs / self.groups);
        (0..self.groups).map(move |i| (i * taps..(i + 1) * taps, i * outputs..(i + 1) * outputs))
    }

    /// True if the columns are the image itself.
    fn is_plain(&self) -> bool {
        self.kernel() == 1 && self.plane() == self.positions() && self.rows.stride * self.columns.stride == 1
    }

    /// Images that are taken together.
    fn batches(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (batch, size) = (self.batch, (POSITIONS / self.positions().max(1)).max(1));
        (0..batch.div_ceil(size)).map(move |i| i * size..batch.min((i + 1) * size))
    }

    /// Calls `f` with every line of a plane that a row of the columns' matrix meets: the first element of the line in the
    /// input, and the row's positions that it fills.
    #[inline(always)]
    fn for_each_line(&self, at: usize, mut f: impl FnMut(usize, Range<usize>)) {
        let (ky, kx) = (at / self.columns.kernel, at % self.columns.kernel);
        let columns = self.columns.inside(kx);
        if columns.is_empty() {
            return;
        }
        let x = columns.start * self.columns.stride + kx - self.columns.before;
        for row in self.rows.inside(ky) {
            let y = row * self.rows.stride + ky - self.rows.before;
            let line = row * self.columns.out;
            f(y * self.columns.size + x, line + columns.start..line + columns.end);
        }
    }

    /// The columns of some images: a row for every element of the kernel, in every channel, and in it the elements that it
    /// meets, image after image.
    fn columns<C: Float + Element>(&self, x: Slice<'_>, images: &Range<usize>) -> Vec<C> {
        let image = self.inputs * self.plane();
        let x = widen::<C>(x.sub(images.start * image..images.end * image));
        let (width, stride) = (images.len() * self.positions(), self.columns.stride);
        let mut columns = vec![C::ZERO; self.inputs * self.kernel() * width];
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
        let (width, stride) = (images * self.positions(), self.columns.stride);
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
        let weight = weight.matrix::<C>(0, self.outputs, self.taps())?;
        let image = self.outputs * self.positions();
        let mut y = vec![T::default(); self.batch * image];
        for images in self.batches() {
            let columns = self.columns_matrix::<C>(x, &images)?;
            let products =
                self.per_group::<C>(|taps, outputs| weight.rows(outputs)?.times(&columns.rows(taps)?))?;
            let y = &mut y[images.start * image..images.end * image];
            self.scatter::<T, C>(values(&products), images.len(), y);
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
        Ok(Matrix::new(self.columns::<C>(x.slice()?, images), self.inputs * self.kernel(), width))
    }

    /// A product for each group, one behind the other.
    fn per_group<C: Float + Element>(
        &self,
        product: impl Fn(Range<usize>, Range<usize>) -> Result<CpuStorage>,
    ) -> Result<CpuStorage> {
        let mut products = self.groups().map(|(taps, outputs)| product(taps, outputs));
        if self.groups == 1 {
            return products.next().expect("there is a group");
        }
        let mut all = vec![];
        for product in products {
            all.extend_from_slice(values::<C>(&product?));
        }
        Ok(into_storage(C::buffer(all)))
    }

    /// Gradients of input and weight, of those that are wanted.
    pub(super) fn gradients<T: Element, C: Float + Element>(
        &self,
        x: Source<'_>,
        weight: Source<'_>,
        grad: Source<'_>,
        wanted: (bool, bool),
    ) -> Result<Gradients> {
        let weight = weight.matrix::<C>(0, self.outputs, self.taps())?;
        let image = self.inputs * self.plane();
        let mut dx = wanted.0.then(|| vec![T::default(); self.batch * image]);
        let mut dw = wanted.1.then(|| vec![0.0; self.outputs * self.taps()]);
        for images in self.batches() {
            let grad = self.channels_matrix::<C>(grad, &images)?;
            if let Some(dw) = &mut dw {
                let columns = self.columns_matrix::<C>(x, &images)?;
                let part = self.per_group::<C>(|taps, outputs| {
                    grad.rows(outputs)?.times(&columns.rows(taps)?.transposed()?)
                })?;
                dw.iter_mut().zip(values::<C>(&part)).for_each(|(dw, x)| *dw += x.to_f64());
            }
            if let Some(dx) = &mut dx {
                let columns = self.per_group::<C>(|_, outputs| {
                    weight.rows(outputs.clone())?.transposed()?.times(&grad.rows(outputs)?)
                })?;
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
