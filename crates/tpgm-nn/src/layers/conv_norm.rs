//! A convolution, its batch norm and an activation as one layer.

use candle_core::{ModuleT, Result, Tensor};

use super::activation::{hard_swish, relu, relu6, silu};
use super::batch_norm::BatchNorm;
use super::conv::Conv2d;

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

    fn layers(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        use candle_core::Module;
        self.activation.apply(&self.norm.forward_t(&self.conv.forward(x)?, train)?)
    }
}

impl ModuleT for ConvNorm {
    /// Maps `x` of shape (batch, inputs, height, width) as [`Conv2d`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Conv2d`] and [`BatchNorm`].
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.layers(x, train)
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

/// Several [`ConvNorm`] one after the other, and a shortcut around them: the inverted residual of MobileNetV2, and the block of
/// EfficientNet without squeeze-excite.
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
        let y = self.layers.iter().try_fold(x.clone(), |x, layer| layer.forward_t(&x, train))?;
        match self.shortcut {
            Shortcut::None => Ok(y),
            Shortcut::Input => y + x,
        }
    }
}
