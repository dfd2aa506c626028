//! Two-dimensional convolution, as a matrix product with the windows of the image as columns.

mod matrix;
mod windows;

use candle_core::{CpuStorage, Module, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, init};

use self::matrix::Source;
use self::windows::Windows;
use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::fused::{Arg, Fused, apply2};
use super::storage::{Operand, by_dtype, into_storage, into_tensor};
use crate::error::Error;

const NAME: &str = "conv2d";

/// Convolution without bias, as in front of a norm: `x` of shape (batch, inputs, height, width) becomes (batch, outputs,
/// (height + 2 padding - kernel) / stride + 1, likewise for the width), rounded down. Outside the image lies zero.
///
/// Use it in place of `candle_nn::Conv2d`, whose backward pass takes several times as long, and fails where the stride leaves
/// other remainders of height and width. The columns are made anew for the backward pass, a few images at a time, so memory
/// stays small; their parts of the weight's gradient are added up in f64.
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
            Path::Fused => apply2(op, x, &self.weight),
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

impl Fused<2> for Convolve {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, args: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let windows = Windows::new(*self, args[0].shape(), args[1].shape())?;
        let [x, weight] = args.map(|arg| Source { storage: arg.storage, layout: arg.layout });
        let y = by_dtype!(x.slice()?.dtype(), T, C => windows.forward::<T, C>(x, weight)?);
        Ok((into_storage(y), (windows.batch, windows.outputs, windows.out_height, windows.out_width).into()))
    }

    fn backward(&self, [x, weight]: [&Tensor; 2], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let windows = Windows::new(*self, x.shape(), weight.shape())?;
        let wanted = (x.track_op(), weight.track_op());
        let [x_data, weight_data, grad_data] = [x, weight, grad].map(|tensor| Operand::new(NAME, tensor));
        let [x_source, weight_source, grad] =
            [Source::of(&x_data)?, Source::of(&weight_data)?, Source::of(&grad_data)?];
        let grads = by_dtype!(grad.slice()?.dtype(), T, C => {
            windows.gradients::<T, C>(x_source, weight_source, grad, wanted)?
        });
        let tensor = |buffer: Option<_>, shape| buffer.map(|buffer| into_tensor(buffer, shape)).transpose();
        Ok([tensor(grads.x, x.shape())?, tensor(grads.weight, weight.shape())?])
    }
}
