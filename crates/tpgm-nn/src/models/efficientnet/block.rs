//! The inverted residual block.

use candle_core::{D, Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;

use super::names::{BlockNames, Pair};
use super::{EfficientNetActivation, EfficientNetConfig, EfficientNetGate, InvertedResidual};
use crate::error::Result as OurResult;
use crate::layers::{Dropout, DropoutRng, Linear};
use crate::models::conv_norm::{ConvNorm, ConvShape};

#[derive(Debug, Clone)]
pub(super) struct Block {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    squeeze: Option<Squeeze>,
    project: ConvNorm,
    /// Whether the input is added, and how often not, while training.
    residual: Option<Dropout>,
}

impl Block {
    /// `skipped` is the probability that an image skips the block.
    pub(super) fn new(
        inputs: usize,
        shape: &InvertedResidual,
        config: &EfficientNetConfig,
        names: &BlockNames,
        (skipped, rng): (f64, &DropoutRng),
        vb: &VarBuilder,
    ) -> OurResult<Self> {
        let &InvertedResidual { expanded, kernel, stride, outputs, squeezed, activation } = shape;
        let conv = |inputs, outputs, activation, names: &Pair| {
            conv_norm(ConvShape::pointwise(inputs, outputs), activation, config, names, vb)
        };
        let depthwise =
            ConvShape { kernel, stride, groups: expanded, ..ConvShape::pointwise(expanded, expanded) };
        Ok(Self {
            expand: (inputs != expanded)
                .then(|| conv(inputs, expanded, Some(activation), &names.expand))
                .transpose()?,
            depthwise: conv_norm(depthwise, Some(activation), config, &names.depthwise, vb)?,
            squeeze: squeezed
                .map(|squeezed| {
                    Squeeze::new((expanded, squeezed), activation, config.gate, &names.squeeze, vb)
                })
                .transpose()?,
            project: conv(expanded, outputs, None, &names.project)?,
            residual: (stride == 1 && inputs == outputs).then(|| Dropout::new(skipped, rng)).transpose()?,
        })
    }

    /// Maps (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride), rounded up.
    pub(super) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut y = match &self.expand {
            Some(expand) => self.depthwise.forward(&expand.forward(x, train)?, train)?,
            None => self.depthwise.forward(x, train)?,
        };
        if let Some(squeeze) = &self.squeeze {
            y = squeeze.forward(&y)?;
        }
        let y = self.project.forward(&y, train)?;
        match &self.residual {
            None => Ok(y),
            Some(skips) if train && skips.probability() > 0.0 => {
                // One element for each image: dropped, or made larger, as the block's result is.
                let kept = Tensor::ones((x.dim(0)?, 1, 1, 1), x.dtype(), x.device())?;
                x + y.broadcast_mul(&skips.forward_t(&kept, true)?)?
            }
            Some(_) => x + y,
        }
    }
}

/// A convolution with norm and activation of this network.
pub(super) fn conv_norm(
    shape: ConvShape,
    activation: Option<EfficientNetActivation>,
    config: &EfficientNetConfig,
    names: &Pair,
    vb: &VarBuilder,
) -> Result<ConvNorm> {
    let norm = (config.norm_eps, config.norm_momentum, config.statistics);
    ConvNorm::new(shape, config.padding, norm, activation, names, vb)
}

/// Squeeze-and-excitation (Hu et al., arXiv 1709.01507): a factor for each channel, from the means of all channels.
#[derive(Debug, Clone)]
struct Squeeze {
    layers: [Dense; 2],
    activation: EfficientNetActivation,
    gate: EfficientNetGate,
}

impl Squeeze {
    fn new(
        (channels, squeezed): (usize, usize),
        activation: EfficientNetActivation,
        gate: EfficientNetGate,
        names: &Pair,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let activation = match gate {
            EfficientNetGate::Sigmoid => activation,
            EfficientNetGate::HardSigmoid => EfficientNetActivation::Relu,
        };
        let [reduce, expand] = names;
        let layers = [
            Dense::new(channels, squeezed, true, vb.pp(reduce))?,
            Dense::new(squeezed, channels, true, vb.pp(expand))?,
        ];
        Ok(Self { layers, activation, gate })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [reduce, expand] = &self.layers;
        let y = expand.forward(&self.activation.apply(&reduce.forward(&mean(x)?)?)?)?;
        let factors = match self.gate {
            EfficientNetGate::Sigmoid => candle_nn::ops::sigmoid(&y)?,
            EfficientNetGate::HardSigmoid => ((y + 3.0)?.clamp(0.0, 6.0)? / 6.0)?,
        };
        x.broadcast_mul(&factors.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?)
    }
}

/// The mean over each image: (batch, channels).
pub(super) fn mean(x: &Tensor) -> Result<Tensor> {
    x.flatten_from(2)?.mean(D::Minus1)
}

/// A linear layer of vectors, whose weight may be a convolution's of one, with a bias.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    /// Takes `weight`, of shape (outputs, inputs), or (outputs, inputs, 1, 1) for a convolution's, and `bias`.
    pub(super) fn new(inputs: usize, outputs: usize, conv: bool, vb: VarBuilder) -> Result<Self> {
        let shape = if conv { vec![outputs, inputs, 1, 1] } else { vec![outputs, inputs] };
        let init = candle_nn::init::DEFAULT_KAIMING_NORMAL;
        let bias = vb.get_with_hints(outputs, "bias", candle_nn::Init::Const(0.0))?;
        Ok(Self { weight: vb.get_with_hints(shape, "weight", init)?, bias })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Linear::new(self.weight.flatten_from(1)?, Some(self.bias.clone())).forward(x)
    }
}
