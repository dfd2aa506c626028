//! Two-dimensional convolution, as a matrix product with the windows of the image as columns.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Module, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, init};
use rayon::prelude::*;
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::float::Float;
use super::storage::{
    Operand, by_dtype, elements, into_storage, into_tensor, round, rows_per_piece, scratch, store, widen,
};
use crate::dtype::cpu_slice;
use crate::error::Error;

const NAME: &str = "conv2d";

/// Positions of the result that one matrix product computes, at least: small images are taken together. Fixed, so that
/// sums over them do not depend on the number of threads.
const POSITIONS: usize = 1024;

/// Convolution without bias, as in front of a norm: `x` of shape (batch, inputs, height, width) becomes (batch, outputs,
/// (height + 2 padding - kernel) / stride + 1, likewise for the width), rounded down. Outside the image lies zero.
///
/// Use it in place of `candle_nn::Conv2d`, whose backward pass is slow and takes square images only. The columns are made
/// anew for the backward pass, a few images at a time, so memory stays small.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    stride: usize,
    padding: usize,
}

impl Conv2d {
    /// A layer with `weight` of shape (outputs, inputs, kernel height, kernel width), stride 1 and no padding.
    pub fn new(weight: Tensor) -> Self {
        Self { weight, stride: 1, padding: 0 }
    }

    /// Windows are `stride` elements apart, in both directions.
    #[must_use]
    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// Windows may reach `padding` elements beyond each edge.
    #[must_use]
    pub fn padding(self, padding: usize) -> Self {
        Self { padding, ..self }
    }

    /// The kernels, of shape (outputs, inputs, kernel height, kernel width).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}

impl Module for Conv2d {
    /// Convolves `x` of shape (batch, inputs, height, width).
    ///
    /// # Errors
    ///
    /// If shapes, element types or devices do not fit, the stride is 0, or the image is smaller than the kernel.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        same_kind(NAME, &[x, &self.weight])?;
        let (&[_, inputs, height, width], &[_, expected, kernel_height, kernel_width]) =
            (x.dims(), self.weight.dims())
        else {
            let expected = "input and weight must be (batch, inputs, height, width) and (outputs, inputs, height, width)";
            return Err(shape_error(NAME, expected, &[x, &self.weight]));
        };
        if inputs != expected {
            return Err(shape_error(NAME, "the weight must have the input's channels", &[x, &self.weight]));
        }
        if self.stride == 0 {
            let error =
                Error::LayerOption { op: NAME, option: "the stride", value: 0.0, range: "at least 1" };
            return Err(error.into());
        }
        if height + 2 * self.padding < kernel_height || width + 2 * self.padding < kernel_width {
            let expected = "the padded image must be at least as large as the kernel";
            return Err(shape_error(NAME, expected, &[x, &self.weight]));
        }
        let op = Convolve { stride: self.stride, padding: self.padding };
        match Path::of(x) {
            Path::Fused => x.contiguous()?.apply_op2(&self.weight.contiguous()?, op),
            Path::Composed => composed::conv2d(x, &self.weight, self.stride, self.padding),
        }
    }
}

/// Loads a square kernel: `weight` of shape (outputs, inputs, kernel, kernel).
///
/// # Errors
///
/// If `vb` has no tensor of that name and shape and cannot make one.
pub fn conv2d_no_bias(inputs: usize, outputs: usize, kernel: usize, vb: VarBuilder) -> Result<Conv2d> {
    const INIT: Init = init::DEFAULT_KAIMING_NORMAL;
    Ok(Conv2d::new(vb.get_with_hints((outputs, inputs, kernel, kernel), "weight", INIT)?))
}

#[derive(Debug, Clone, Copy)]
struct Convolve {
    stride: usize,
    padding: usize,
}

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy)]
struct Windows {
    op: Convolve,
    batch: usize,
    inputs: usize,
    height: usize,
    width: usize,
    outputs: usize,
    kernel_height: usize,
    kernel_width: usize,
    out_height: usize,
    out_width: usize,
}

impl Windows {
    fn new(op: Convolve, x: &Shape, weight: &Shape) -> Result<Self> {
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
    /// input, those of the row's positions, and the step in the input.
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
                            let dx = dx[to..].iter_mut().step_by(stride);
                            dx.zip(&row[from]).for_each(|(dx, &x)| *dx += x);
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

    fn forward<T: Element, C: Float + Element>(&self, x: Source<'_>, weight: Source<'_>) -> Result<Vec<T>> {
        let weight = weight.matrix::<C>(0, self.outputs, self.rows())?;
        let image = self.outputs * self.positions();
        let mut y = vec![T::default(); self.batch * image];
        for images in self.groups() {
            let product = weight.times(&self.columns_matrix::<C>(x, &images)?)?;
            let y = &mut y[images.start * image..images.end * image];
            self.scatter::<T, C>(values(&product), images.len(), y);
        }
        Ok(y)
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
    fn gradients<T: Element, C: Float + Element>(
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
struct Gradients {
    x: Option<Buffer>,
    weight: Option<Buffer>,
}

/// A contiguous tensor.
#[derive(Clone, Copy)]
struct Source<'a> {
    storage: &'a CpuStorage,
    layout: &'a Layout,
}

impl<'a> Source<'a> {
    fn of(operand: &'a Operand<'_>) -> Result<Self> {
        let (storage, layout) = operand.storage()?;
        Ok(Self { storage, layout })
    }

    fn slice(&self) -> Result<Slice<'a>> {
        elements(NAME, self.storage, self.layout)
    }

    /// A part of it as a matrix in the compute type; copied only if it has another.
    fn matrix<C: Float + Element>(&self, start: usize, rows: usize, columns: usize) -> Result<Matrix<'a>> {
        let slice = self.slice()?;
        if C::direct(slice).is_none() {
            let part = widen::<C>(slice.sub(start..start + rows * columns));
            return Ok(Matrix::new(part.into_owned(), rows, columns));
        }
        let start = self.layout.start_offset() + start;
        let layout = Layout::contiguous_with_offset((rows, columns), start);
        Ok(Matrix { data: Cow::Borrowed(self.storage), layout })
    }
}

/// A matrix that candle multiplies.
struct Matrix<'a> {
    data: Cow<'a, CpuStorage>,
    layout: Layout,
}

impl Matrix<'_> {
    fn new<C: Element>(data: Vec<C>, rows: usize, columns: usize) -> Self {
        Self { data: Cow::Owned(into_storage(C::buffer(data))), layout: Layout::contiguous((rows, columns)) }
    }

    fn transposed(self) -> Result<Self> {
        Ok(Self { layout: self.layout.transpose(0, 1)?, ..self })
    }

    fn times(&self, other: &Self) -> Result<CpuStorage> {
        let ((m, k), (_, n)) = (self.layout.shape().dims2()?, other.layout.shape().dims2()?);
        self.data.matmul(&other.data, (1, m, n, k), &self.layout, &other.layout)
    }
}

/// The elements of a product.
fn values<C: Float>(product: &CpuStorage) -> &[C] {
    cpu_slice(product).and_then(C::direct).expect("a product has its factors' type")
}

impl CustomOp2 for Convolve {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let windows = Windows::new(*self, x_layout.shape(), weight_layout.shape())?;
        let x = Source { storage: x, layout: x_layout };
        let weight = Source { storage: weight, layout: weight_layout };
        let y = by_dtype!(x.slice()?.dtype(), T, C => T::buffer(windows.forward::<T, C>(x, weight)?));
        Ok((into_storage(y), (windows.batch, windows.outputs, windows.out_height, windows.out_width).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let windows = Windows::new(*self, x.shape(), weight.shape())?;
        let wanted = (x.track_op(), weight.track_op());
        let grad = grad.contiguous()?;
        let [x_data, weight_data, grad_data] = [x, weight, &grad].map(|tensor| Operand::new(NAME, tensor));
        let [x_source, weight_source, grad] =
            [Source::of(&x_data)?, Source::of(&weight_data)?, Source::of(&grad_data)?];
        let grads = by_dtype!(grad.slice()?.dtype(), T, C => {
            windows.gradients::<T, C>(x_source, weight_source, grad, wanted)?
        });
        let tensor = |buffer: Option<_>, shape| buffer.map(|buffer| into_tensor(buffer, shape)).transpose();
        Ok((tensor(grads.x, x.shape())?, tensor(grads.weight, weight.shape())?))
    }
}
