//! Maximum over windows of an image.

use candle_core::{CpuStorage, Module, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::float::Float;
use super::fused::{Arg, Fused, apply1};
use super::gpu::on_gpu;
use super::storage::{
    Operand, by_dtype, fill, into_storage, into_tensor, load, rows_per_piece, scratch, store,
};
use crate::error::Error;

const NAME: &str = "max-pool2d";

/// Maximum over windows: `x` of shape (batch, channels, height, width) becomes (batch, channels,
/// (height + 2 padding - kernel) / stride + 1, likewise for the width), rounded down.
///
/// Use it in place of candle's own `max_pool2d`, whose gradient is too small by the area of the window, and which refuses
/// to go backward through windows that overlap or leave gaps. Among equal elements of a window, the first in row order
/// takes the gradient, as in PyTorch. Outside the image lies minus infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPool2d {
    pub(super) kernel: (usize, usize),
    pub(super) stride: (usize, usize),
    pub(super) padding: (usize, usize),
}

impl MaxPool2d {
    /// Windows of `kernel` = (height, width) elements, `stride` elements apart.
    pub fn new(kernel: (usize, usize), stride: (usize, usize)) -> Self {
        Self { kernel, stride, padding: (0, 0) }
    }

    /// Windows may reach `padding` elements beyond each edge, at most half a window. (ResNet's stem: kernel 3, stride 2,
    /// padding 1.)
    pub fn padding(self, padding: (usize, usize)) -> Self {
        Self { padding, ..self }
    }
}

impl Module for MaxPool2d {
    /// Reduces `x` of shape (batch, channels, height, width).
    ///
    /// # Errors
    ///
    /// If a window or stride is empty, the padding exceeds half a window, or the image is smaller than a window.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        same_kind(NAME, &[x])?;
        let &[_, _, height, width] = x.dims() else {
            return Err(shape_error(NAME, "the input must be (batch, channels, height, width)", &[x]));
        };
        for (kernel, stride, padding) in
            [(self.kernel.0, self.stride.0, self.padding.0), (self.kernel.1, self.stride.1, self.padding.1)]
        {
            let refuse = |option, value: usize, range| {
                Err(Error::LayerOption { op: NAME, option, value: value as f64, range }.into())
            };
            if kernel == 0 {
                return refuse("a side of the window", kernel, "at least 1");
            }
            if stride == 0 {
                return refuse("the stride", stride, "at least 1");
            }
            if padding > kernel / 2 {
                return refuse("the padding", padding, "at most half of the window");
            }
        }
        if height + 2 * self.padding.0 < self.kernel.0 || width + 2 * self.padding.1 < self.kernel.1 {
            return Err(shape_error(NAME, "the padded image must be at least as large as the window", &[x]));
        }
        match Path::with_kernels(x) {
            Path::Fused => apply1(*self, &x.contiguous()?),
            Path::Composed => composed::max_pool2d(x, self.kernel, self.stride, self.padding),
        }
    }
}

/// [`MaxPool2d`] as a function, without padding.
///
/// # Errors
///
/// As [`MaxPool2d::forward`].
pub fn max_pool2d(x: &Tensor, kernel: (usize, usize), stride: (usize, usize)) -> Result<Tensor> {
    Module::forward(&MaxPool2d::new(kernel, stride), x)
}

/// The windows of one image plane.
struct Windows {
    pool: MaxPool2d,
    height: usize,
    width: usize,
    out_height: usize,
    out_width: usize,
}

impl Windows {
    fn new(pool: MaxPool2d, height: usize, width: usize) -> Self {
        let count = |size: usize, kernel: usize, stride: usize, padding: usize| {
            (size + 2 * padding - kernel) / stride + 1
        };
        let out_height = count(height, pool.kernel.0, pool.stride.0, pool.padding.0);
        let out_width = count(width, pool.kernel.1, pool.stride.1, pool.padding.1);
        Self { pool, height, width, out_height, out_width }
    }

    fn input(&self) -> usize {
        self.height * self.width
    }

    fn output(&self) -> usize {
        self.out_height * self.out_width
    }

    /// The part of window number `out` that lies inside the image.
    #[inline(always)]
    fn span(out: usize, kernel: usize, stride: usize, padding: usize, size: usize) -> std::ops::Range<usize> {
        let start = out * stride;
        start.saturating_sub(padding)..(start + kernel - padding).min(size)
    }

    /// Calls `f` with each output position and the position and value of its maximum.
    #[inline(always)]
    fn for_each<C: Float>(&self, plane: &[C], mut f: impl FnMut(usize, usize, C)) {
        let pool = &self.pool;
        for row in 0..self.out_height {
            let rows = Self::span(row, pool.kernel.0, pool.stride.0, pool.padding.0, self.height);
            for column in 0..self.out_width {
                let columns = Self::span(column, pool.kernel.1, pool.stride.1, pool.padding.1, self.width);
                // The first position counts even if its value is minus infinity.
                let mut best = (rows.start * self.width + columns.start, C::NEG_INFINITY);
                for y in rows.clone() {
                    let line = y * self.width;
                    for (x, &value) in columns.clone().zip(&plane[line + columns.start..line + columns.end]) {
                        // A NaN wins, and stays.
                        if value > best.1 || value.is_nan() {
                            best = (line + x, value);
                        }
                    }
                }
                f(row * self.out_width + column, best.0, best.1);
            }
        }
    }

    fn forward<T: Element, C: Float>(&self, x: Slice<'_>, planes: usize) -> Buffer {
        let (input, output) = (self.input(), self.output());
        let (y, _) = fill::<T, ()>(planes * output, rows_per_piece(input) * output, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(input), scratch::<T, C>(output));
            for (i, y) in piece.chunks_mut(output).enumerate() {
                let plane = range.start / output + i;
                let x = load(x.sub(plane * input..(plane + 1) * input), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| self.for_each(x, |to, _, value| y[to] = value));
            }
        });
        T::buffer(y)
    }

    fn gradient<T: Element, C: Float>(&self, x: Slice<'_>, grad: Slice<'_>) -> Buffer {
        let (input, output) = (self.input(), self.output());
        let (dx, _) = fill::<T, ()>(x.len(), rows_per_piece(input) * input, |range, piece| {
            let mut x_scratch = scratch::<T, C>(input);
            let mut dx_scratch = scratch::<T, C>(input);
            let mut grad_scratch = scratch::<T, C>(output);
            for (i, dx) in piece.chunks_mut(input).enumerate() {
                let plane = range.start / input + i;
                let x = load(x.sub(plane * input..(plane + 1) * input), &mut x_scratch);
                let grad = load(grad.sub(plane * output..(plane + 1) * output), &mut grad_scratch);
                store(dx, &mut dx_scratch, |dx: &mut [C]| {
                    dx.fill(C::ZERO);
                    self.for_each(x, |from, at, _| dx[at] += grad[from]);
                });
            }
        });
        T::buffer(dx)
    }
}

impl Fused<1> for MaxPool2d {
    on_gpu!(1, pool);

    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = x.shape().dims4()?;
        let windows = Windows::new(*self, height, width);
        let data = x.slice()?;
        let y = by_dtype!(data.dtype(), T, C => windows.forward::<T, C>(data, batch * channels));
        Ok((into_storage(y), (batch, channels, windows.out_height, windows.out_width).into()))
    }

    fn backward(&self, [x]: [&Tensor; 1], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (_, _, height, width) = x.dims4()?;
        let windows = Windows::new(*self, height, width);
        let (x_data, grad_data) = (Operand::new(NAME, x), Operand::new(NAME, grad));
        let (x_slice, grad_slice) = (x_data.slice()?, grad_data.slice()?);
        let dx = by_dtype!(x_slice.dtype(), T, C => windows.gradient::<T, C>(x_slice, grad_slice));
        Ok([Some(into_tensor(dx, x.shape())?)])
    }
}
