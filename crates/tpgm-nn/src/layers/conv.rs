//! Two-dimensional convolution, as a matrix product with the windows of the image as columns.

mod chain;
mod columns;
mod finish;
mod layout;
mod multiply;
mod operation;
mod padding;
mod sizes;
mod stencil;
mod step;

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder, init};

pub(super) use self::chain::Around;
pub(crate) use self::layout::Order;
pub(super) use self::operation::{Norm, Part, Parts, convolve};
pub(super) use self::padding::Axis;
pub use self::padding::Padding;
pub(super) use self::sizes::Sizes;
use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::conv_norm::ConvActivation;
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

    /// The sizes of a convolution of images of shape `dims`, made of `x`, if shapes, element types, devices and options fit.
    pub(super) fn sizes(&self, op: &'static str, x: &Tensor, dims: &[usize]) -> Result<Sizes> {
        let args = [x, &self.weight];
        same_kind(op, &args)?;
        let (&[_, inputs, ..], &[outputs, of_group, ..]) = (dims, self.weight.dims()) else {
            return Err(shape_error(op, FOUR, &args));
        };
        let option = |option, value: usize| {
            Err(Error::LayerOption { op, option, value: value as f64, range: "at least 1" }.into())
        };
        let Convolve { stride, groups, .. } = self.op;
        if [&dims[1..], self.weight.dims()].concat().contains(&0) {
            return Err(shape_error(op, "only the batch may be empty", &args));
        }
        if stride == 0 {
            return option("the stride", stride);
        }
        if groups == 0 {
            return option("the number of groups", groups);
        }
        if of_group.checked_mul(groups) != Some(inputs) {
            let expected = "the input must have the weight's channels, times the number of groups";
            return Err(shape_error(op, expected, &args));
        }
        if !outputs.is_multiple_of(groups) {
            let expected = "the weight's outputs must be a multiple of the number of groups";
            return Err(shape_error(op, expected, &args));
        }
        match self.op.axes(dims, self.weight.dims()) {
            Ok(axes) => Ok(Sizes { inputs, outputs, groups, axes }),
            Err(expected) => Err(shape_error(op, expected, &args)),
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
        let sizes = self.sizes(NAME, x, x.dims())?;
        let Convolve { stride, padding, groups } = self.op;
        match Path::of(x) {
            Path::Fused => {
                let (weight, activation) = (self.weight.clone(), ConvActivation::None);
                let layers = vec![Part { sizes, weight, norm: None, activation }];
                let orders = [Order::Planes; 2];
                convolve(NAME, x, Parts { layers, around: Around::Nothing, activation, orders })
            }
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
