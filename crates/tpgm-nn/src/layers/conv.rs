//! Two-dimensional convolution, as a matrix product with the windows of the image as columns.

mod matrix;
mod padding;
mod windows;

use candle_core::{CpuStorage, Module, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, init};

use self::matrix::Source;
pub(super) use self::padding::Axis;
pub use self::padding::Padding;
use self::windows::Windows;
use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::fused::{Arg, Fused, apply2};
use super::storage::{Operand, by_dtype, into_storage, into_tensor};
use crate::error::Error;

const NAME: &str = "conv2d";

/// Convolution without bias, as in front of a norm: `x` of shape (batch, inputs, height, width) becomes (batch, outputs,
/// (height + padding - kernel) / stride + 1, likewise for the width), rounded down, where padding is what lies on both sides
/// together. Outside the image lies zero.
///
/// With n groups, the first nth of the outputs sees the first nth of the inputs, and so on; with as many groups as inputs it is
/// a depthwise convolution.
///
/// Use it in place of `candle_nn::Conv2d`, whose backward pass takes several times as long, fails where the stride leaves
/// other remainders of height and width, and which computes groups one after the other. The columns are made anew for the
/// backward pass, a few images at a time, so memory stays small; their parts of the weight's gradient are added up in f64.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    op: Convolve,
}

impl Conv2d {
    /// A layer with `weight` of shape (outputs, inputs / groups, kernel height, kernel width), stride 1, no padding and one
    /// group.
    pub fn new(weight: Tensor) -> Self {
        Self { weight, op: Convolve { stride: 1, padding: Padding::Symmetric(0), groups: 1 } }
    }

    /// Windows are `stride` elements apart, in both directions.
    #[must_use]
    pub fn stride(self, stride: usize) -> Self {
        Self { op: Convolve { stride, ..self.op }, ..self }
    }

    /// How far windows may reach beyond the edges: a number of elements, the same at each, or any other [`Padding`].
    #[must_use]
    pub fn padding(self, padding: impl Into<Padding>) -> Self {
        Self { op: Convolve { padding: padding.into(), ..self.op }, ..self }
    }

    /// Channels are convolved in `groups` of equal size.
    #[must_use]
    pub fn groups(self, groups: usize) -> Self {
        Self { op: Convolve { groups, ..self.op }, ..self }
    }

    /// The kernels, of shape (outputs, inputs / groups, kernel height, kernel width).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Shapes, element types, devices and options must fit.
    fn check(&self, x: &Tensor) -> Result<()> {
        let args = [x, &self.weight];
        same_kind(NAME, &args)?;
        let (&[_, inputs, ..], &[outputs, of_group, ..]) = (x.dims(), self.weight.dims()) else {
            return Err(shape_error(NAME, FOUR, &args));
        };
        let option = |option, value: usize| {
            Err(Error::LayerOption { op: NAME, option, value: value as f64, range: "at least 1" }.into())
        };
        let Convolve { stride, groups, .. } = self.op;
        if stride == 0 {
            return option("the stride", stride);
        }
        if groups == 0 {
            return option("the number of groups", groups);
        }
        if of_group.checked_mul(groups) != Some(inputs) {
            let expected = "the input must have the weight's channels, times the number of groups";
            return Err(shape_error(NAME, expected, &args));
        }
        if !outputs.is_multiple_of(groups) {
            let expected = "the weight's outputs must be a multiple of the number of groups";
            return Err(shape_error(NAME, expected, &args));
        }
        match self.op.axes(x.dims(), self.weight.dims()) {
            Ok(_) => Ok(()),
            Err(expected) => Err(shape_error(NAME, expected, &args)),
        }
    }
}

/// What a convolution takes.
const FOUR: &str =
    "input and weight must be (batch, inputs, height, width) and (outputs, inputs / groups, height, width)";

impl Module for Conv2d {
    /// Convolves `x` of shape (batch, inputs, height, width).
    ///
    /// # Errors
    ///
    /// If shapes, element types or devices do not fit, stride or groups are 0, or the padded image is smaller than the kernel.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        let Convolve { stride, padding, groups } = self.op;
        match Path::of(x) {
            Path::Fused => apply2(self.op, x, &self.weight),
            Path::Composed => composed::conv2d(x, &self.weight, stride, padding, groups),
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
    padding: Padding,
    groups: usize,
}

impl Convolve {
    /// The windows along height and width, or what does not fit.
    fn axes(&self, x: &[usize], weight: &[usize]) -> std::result::Result<[Axis; 2], &'static str> {
        let (&[_, _, height, width], &[_, _, kernel_height, kernel_width]) = (x, weight) else {
            return Err(FOUR);
        };
        let axis = |size, kernel| {
            Axis::new(self.padding, self.stride, size, kernel)
                .ok_or("the padded image must be at least as large as the kernel")
        };
        Ok([axis(height, kernel_height)?, axis(width, kernel_width)?])
    }
}

impl Fused<2> for Convolve {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, args: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let windows = Windows::new(self, args[0].dims(), args[1].dims())?;
        let [x, weight] = args.map(|arg| Source { storage: arg.storage, layout: arg.layout });
        let y = by_dtype!(x.slice()?.dtype(), T, C => windows.forward::<T, C>(x, weight)?);
        Ok((into_storage(y), (windows.batch, windows.outputs, windows.rows.out, windows.columns.out).into()))
    }

    fn backward(&self, [x, weight]: [&Tensor; 2], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let windows = Windows::new(self, x.dims(), weight.dims())?;
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
