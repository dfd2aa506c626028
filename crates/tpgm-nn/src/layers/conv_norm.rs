//! A convolution, its batch norm and an activation as one layer.

use candle_core::{Module, ModuleT, Result, Tensor};

use super::activation::{hard_swish, relu, relu6, silu};
use super::batch_norm::BatchNorm;
use super::check::{Path, same_kind, shape_error};
use super::conv::{Around, Conv2d, Order, Part, Parts, Sizes, convolve};

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

    /// Whether it is computed as one operation: its norm is folded.
    pub(crate) fn is_whole(&self, x: &Tensor, train: bool) -> bool {
        Path::of(x) == Path::Fused && !self.norm.takes_batch(train)
    }

    /// The forward pass for images in a given order, to another. Only where it [is whole](Self::is_whole) may they not be planes.
    pub(crate) fn forward_ordered(&self, x: &Tensor, orders: [Order; 2], train: bool) -> Result<Tensor> {
        forward(std::slice::from_ref(self), x, &Shortcut::None, ConvActivation::None, orders, train)
    }

    /// The layers one after the other.
    fn apart(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.activation.apply(&self.norm.forward_t(&self.conv.forward(x)?, train)?)
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
        self.forward_ordered(x, [Order::Planes; 2], train)
    }
}

/// What [`ConvBlock`] adds to the result of its layers.
#[derive(Debug, Clone)]
pub enum Shortcut {
    /// Nothing.
    None,
    /// Its input.
    Input,
    /// What another layer makes of its input: where a ResNet halves the image or changes the channels.
    Projection(Box<ConvNorm>),
}

/// Several [`ConvNorm`] one after the other, a shortcut around them, and an activation of the sum: the blocks of ResNet, the
/// inverted residual of MobileNetV2, the block of EfficientNet without squeeze-excite, or any other piece of a network.
///
/// Where all norms take their running statistics it is one operation: a few images at a time go through all layers while they are
/// in the cache. Give it as many layers as follow each other.
#[derive(Debug, Clone)]
pub struct ConvBlock {
    layers: Vec<ConvNorm>,
    shortcut: Shortcut,
    activation: ConvActivation,
}

impl ConvBlock {
    /// Such a block, without an activation of the sum.
    pub fn new(layers: Vec<ConvNorm>, shortcut: Shortcut) -> Self {
        Self { layers, shortcut, activation: ConvActivation::None }
    }

    /// What follows the sum of layers and shortcut.
    #[must_use]
    pub fn activation(self, activation: ConvActivation) -> Self {
        Self { activation, ..self }
    }

    /// Its layers, in order.
    pub fn layers(&self) -> &[ConvNorm] {
        &self.layers
    }

    /// What is added to their result.
    pub fn shortcut(&self) -> &Shortcut {
        &self.shortcut
    }

    /// Whether it is computed as one operation.
    pub(crate) fn is_whole(&self, x: &Tensor, train: bool) -> bool {
        is_whole(&self.layers, &self.shortcut, x, train)
    }

    /// The forward pass for images in a given order, to another. Only where it [is whole](Self::is_whole) may they not be planes.
    pub(crate) fn forward_ordered(&self, x: &Tensor, orders: [Order; 2], train: bool) -> Result<Tensor> {
        forward(&self.layers, x, &self.shortcut, self.activation, orders, train)
    }
}

impl ModuleT for ConvBlock {
    /// Maps `x` of shape (batch, inputs, height, width).
    ///
    /// # Errors
    ///
    /// Those of its layers, or if the input, or what the shortcut makes of it, is to be added to a result of another shape.
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_ordered(x, [Order::Planes; 2], train)
    }
}

fn is_whole(layers: &[ConvNorm], shortcut: &Shortcut, x: &Tensor, train: bool) -> bool {
    let around = match shortcut {
        Shortcut::Projection(layer) => Some(&**layer),
        Shortcut::None | Shortcut::Input => None,
    };
    !layers.is_empty() && layers.iter().chain(around).all(|layer| layer.is_whole(x, train))
}

fn forward(
    layers: &[ConvNorm],
    x: &Tensor,
    shortcut: &Shortcut,
    activation: ConvActivation,
    orders: [Order; 2],
    train: bool,
) -> Result<Tensor> {
    let input = orders[0].dims(x.dims());
    let after = |layer: &ConvNorm, dims: &[usize]| {
        let sizes = layer.sizes(x, dims)?;
        Ok::<_, candle_core::Error>((
            sizes,
            vec![dims[0], sizes.outputs, sizes.axes[0].out, sizes.axes[1].out],
        ))
    };
    let mut parts = vec![];
    let mut dims = input.clone();
    for layer in layers {
        let (sizes, result) = after(layer, &dims)?;
        dims = result;
        parts.push((layer, sizes));
    }
    let weights = || layers.iter().map(|layer| layer.conv.weight());
    let refuse = |expected, more| {
        Err(shape_error(NAME, expected, &[x].into_iter().chain(weights()).chain(more).collect::<Vec<_>>()))
    };
    let around = match shortcut {
        Shortcut::None => Around::Nothing,
        Shortcut::Input if dims != input => {
            return refuse("an input that is added must have the shape of the result", None);
        }
        Shortcut::Input => Around::Input,
        Shortcut::Projection(layer) => {
            let (sizes, result) = after(layer, &input)?;
            if result != dims {
                let expected =
                    "the shortcut's projection (the last weight) must give the shape of the layers' result";
                return refuse(expected, Some(layer.conv.weight()));
            }
            parts.push((layer, sizes));
            Around::Layer
        }
    };
    if is_whole(layers, shortcut, x, train) {
        let layers = parts.into_iter().map(|(layer, sizes)| layer.part(sizes)).collect::<Result<_>>()?;
        return convolve(NAME, x, Parts { layers, around, activation, orders });
    }
    let y = layers.iter().try_fold(x.clone(), |y, layer| layer.apart(&y, train))?;
    activation.apply(&match shortcut {
        Shortcut::None => y,
        Shortcut::Input => (y + x)?,
        Shortcut::Projection(layer) => (y + layer.apart(x, train)?)?,
    })
}
