//! A convolution, its batch norm and an activation as one layer.

use candle_core::{Module, ModuleT, Result, Tensor};

use super::activation::{hard_swish, relu, relu6, silu};
use super::batch_norm::BatchNorm;
use super::check::{Path, same_kind, shape_error};
use super::conv::{Conv2d, Part, Sizes, convolve};

const NAME: &str = "conv-norm";

/// What follows the norm in a [`ConvNorm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvActivation {
    /// Nothing.
    None,
    /// [`relu`](crate::relu).
    Relu,
    /// [`relu6`](crate::relu6).
    Relu6,
    /// [`hard_swish`](crate::hard_swish).
    HardSwish,
    /// [`silu`](crate::silu).
    Silu,
}

impl ConvActivation {
    /// Applies it to a tensor.
    ///
    /// # Errors
    ///
    /// If `x` is not of a floating point type.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            ConvActivation::None => Ok(x.clone()),
            ConvActivation::Relu => relu(x),
            ConvActivation::Relu6 => relu6(x),
            ConvActivation::HardSwish => hard_swish(x),
            ConvActivation::Silu => silu(x),
        }
    }
}

/// A convolution, batch norm and an activation: `activation(norm(conv(x)))`.
///
/// Where the norm takes its running statistics, in evaluation or with
/// [`Statistics::Running`](crate::Statistics::Running), the three are one operation: with the factor `s = weight / sqrt(variance +
/// eps)` of the norm, `activation(conv(x, s * kernel) + bias - mean * s)`, and no pass over the image but that of the convolution.
/// Gradients of kernel, weight and bias are exact. Where the norm takes the statistics of the batch, they are computed one after
/// the other.
#[derive(Debug, Clone)]
pub struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm,
    activation: ConvActivation,
}

impl ConvNorm {
    /// A layer made of the three.
    pub fn new(conv: Conv2d, norm: BatchNorm, activation: ConvActivation) -> Self {
        Self { conv, norm, activation }
    }

    /// The convolution.
    pub fn conv(&self) -> &Conv2d {
        &self.conv
    }

    /// The norm.
    pub fn norm(&self) -> &BatchNorm {
        &self.norm
    }

    /// What follows the norm.
    pub fn activation(&self) -> ConvActivation {
        self.activation
    }

    /// The part of a chain that it is where its norm is folded.
    fn part(&self, sizes: Sizes) -> Result<Part> {
        let norm = self.norm.folded()?;
        Ok(Part { sizes, weight: self.conv.weight().clone(), norm: Some(norm), activation: self.activation })
    }

    /// The sizes of its convolution of images of this shape, if everything fits.
    fn sizes(&self, x: &Tensor, dims: &[usize]) -> Result<Sizes> {
        let sizes = self.conv.sizes(NAME, x, dims)?;
        let args = [x, self.conv.weight(), self.norm.weight(), self.norm.bias()];
        same_kind(NAME, &args)?;
        if self.norm.weight().elem_count() != sizes.outputs {
            let expected = "the norm must have the outputs of the convolution";
            return Err(shape_error(NAME, expected, &args));
        }
        Ok(sizes)
    }
}

impl ModuleT for ConvNorm {
    /// Maps `x` of shape (batch, inputs, height, width) as [`Conv2d`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Conv2d`] and [`BatchNorm`].
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        forward(std::slice::from_ref(self), x, Shortcut::None, train)
    }
}

/// What [`ConvBlock`] adds to the result of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortcut {
    /// Nothing.
    None,
    /// Its input.
    Input,
}

/// Several [`ConvNorm`] one after the other, and a shortcut around them: the inverted residual of MobileNetV2, the block of
/// EfficientNet without squeeze-excite, or any other piece of a network without branches.
///
/// Where all norms take their running statistics it is one operation: a few images at a time go through all layers while they are
/// in the cache. Give it as many layers as follow each other.
#[derive(Debug, Clone)]
pub struct ConvBlock {
    layers: Vec<ConvNorm>,
    shortcut: Shortcut,
}

impl ConvBlock {
    /// Such a block.
    pub fn new(layers: Vec<ConvNorm>, shortcut: Shortcut) -> Self {
        Self { layers, shortcut }
    }

    /// Its layers, in order.
    pub fn layers(&self) -> &[ConvNorm] {
        &self.layers
    }
}

impl ModuleT for ConvBlock {
    /// Maps `x` of shape (batch, inputs, height, width).
    ///
    /// # Errors
    ///
    /// Those of its layers, or if the input is to be added to a result of another shape.
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        forward(&self.layers, x, self.shortcut, train)
    }
}

fn forward(layers: &[ConvNorm], x: &Tensor, shortcut: Shortcut, train: bool) -> Result<Tensor> {
    let mut parts = vec![];
    let mut dims = x.dims().to_vec();
    for layer in layers {
        let sizes = layer.sizes(x, &dims)?;
        dims = vec![dims[0], sizes.outputs, sizes.axes[0].out, sizes.axes[1].out];
        parts.push((layer, sizes));
    }
    if shortcut == Shortcut::Input && dims != x.dims() {
        let expected = "an input that is added must have the shape of the result";
        let weights = layers.iter().map(|layer| layer.conv.weight());
        return Err(shape_error(NAME, expected, &std::iter::once(x).chain(weights).collect::<Vec<_>>()));
    }
    let folds = layers.iter().all(|layer| !layer.norm.takes_batch(train));
    if Path::of(x) == Path::Fused && folds && !layers.is_empty() {
        let parts = parts.into_iter().map(|(layer, sizes)| layer.part(sizes)).collect::<Result<_>>()?;
        return convolve(NAME, x, parts, shortcut == Shortcut::Input);
    }
    let one = |y: Tensor, layer: &ConvNorm| {
        layer.activation.apply(&layer.norm.forward_t(&layer.conv.forward(&y)?, train)?)
    };
    let y = layers.iter().try_fold(x.clone(), one)?;
    if shortcut == Shortcut::Input { y + x } else { Ok(y) }
}
