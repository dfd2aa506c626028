//! The inverted residual block.

use candle_core::{Module, ModuleT, Result, Tensor};
use candle_nn::{Init, VarBuilder, init};

use super::names::{BlockNames, Pair};
use super::{
    EfficientNetActivation, EfficientNetConfig, EfficientNetGate, EfficientNetPadding, InvertedResidual,
};
use crate::error::Result as OurResult;
use crate::layers::{
    Conv2d, ConvActivation, ConvBlock, ConvNorm, Dropout, DropoutRng, Linear, Order, Padding, Shortcut,
    batch_norm, global_avg_pool, hard_sigmoid, scale_channels, sigmoid,
};

const KERNELS: Init = init::DEFAULT_KAIMING_NORMAL;

impl From<EfficientNetActivation> for ConvActivation {
    fn from(activation: EfficientNetActivation) -> Self {
        match activation {
            EfficientNetActivation::Relu => ConvActivation::Relu,
            EfficientNetActivation::Relu6 => ConvActivation::Relu6,
            EfficientNetActivation::Silu => ConvActivation::Silu,
            EfficientNetActivation::HardSwish => ConvActivation::HardSwish,
        }
    }
}

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConvShape {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) groups: usize,
}

impl ConvShape {
    /// A convolution of one.
    pub(super) fn pointwise(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, kernel: 1, stride: 1, groups: 1 }
    }

    /// The convolution, its norm and what follows them; `names` are those of convolution and norm.
    pub(super) fn load(
        self,
        activation: ConvActivation,
        config: &EfficientNetConfig,
        names: &Pair,
        vb: &VarBuilder,
    ) -> Result<ConvNorm> {
        let Self { inputs, outputs, kernel, stride, groups } = self;
        let padding = match config.padding {
            EfficientNetPadding::Same => Padding::Same,
            EfficientNetPadding::Symmetric => Padding::Symmetric(kernel / 2),
        };
        let shape = (outputs, inputs / groups, kernel, kernel);
        let weight = vb.pp(&names[0]).get_with_hints(shape, "weight", KERNELS)?;
        let norm = batch_norm(outputs, config.norm_eps, vb.pp(&names[1]))?
            .momentum(config.norm_momentum)?
            .statistics(config.statistics);
        Ok(ConvNorm::new(
            Conv2d::new(weight).stride(stride).padding(padding).groups(groups),
            norm,
            activation,
        ))
    }
}

/// A block, in front of its squeeze-and-excitation and behind it.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// All of it where nothing is between.
    convs: ConvBlock,
    squeezed: Option<(Squeeze, ConvNorm)>,
    /// Where the input is added here and not by `convs`: how often the block is skipped while training.
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
        let mut convs = vec![];
        if inputs != expanded {
            let expand = ConvShape::pointwise(inputs, expanded);
            convs.push(expand.load(activation.into(), config, &names.expand, vb)?);
        }
        let depthwise = ConvShape { inputs: expanded, outputs: expanded, kernel, stride, groups: expanded };
        convs.push(depthwise.load(activation.into(), config, &names.depthwise, vb)?);
        let project = ConvShape::pointwise(expanded, outputs);
        let project = project.load(ConvActivation::None, config, &names.project, vb)?;
        let adds = stride == 1 && inputs == outputs;
        let squeeze =
            |squeezed| Squeeze::new((expanded, squeezed), activation, config.gate, &names.squeeze, vb);
        let Some(squeeze) = squeezed.map(squeeze).transpose()? else {
            convs.push(project);
            let whole = skipped == 0.0;
            let shortcut = if adds && whole { Shortcut::Input } else { Shortcut::None };
            let residual = (adds && !whole).then(|| Dropout::new(skipped, rng)).transpose()?;
            return Ok(Self { convs: ConvBlock::new(convs, shortcut), squeezed: None, residual });
        };
        Ok(Self {
            convs: ConvBlock::new(convs, Shortcut::None),
            squeezed: Some((squeeze, project)),
            residual: adds.then(|| Dropout::new(skipped, rng)).transpose()?,
        })
    }

    /// Whether it is computed as one operation, and can take and return pixels.
    pub(super) fn is_whole(&self, x: &Tensor, train: bool) -> bool {
        self.squeezed.is_none() && self.residual.is_none() && self.convs.is_whole(x, train)
    }

    /// Maps (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride), rounded up.
    pub(super) fn forward(&self, x: &Tensor, orders: [Order; 2], train: bool) -> Result<Tensor> {
        let mut y = self.convs.forward_ordered(x, orders, train)?;
        if let Some((squeeze, project)) = &self.squeezed {
            y = project.forward_t(&squeeze.forward(&y)?, train)?;
        }
        match &self.residual {
            None => Ok(y),
            Some(skips) if train && skips.probability() > 0.0 => {
                // One element for each image: dropped, or made larger, as the block's result is.
                let kept = Tensor::ones((x.dim(0)?, 1), x.dtype(), x.device())?;
                let kept = skips.forward_t(&kept, true)?.broadcast_as((x.dim(0)?, x.dim(1)?))?;
                x + scale_channels(&y, &kept)?
            }
            Some(_) => x + y,
        }
    }
}

/// Squeeze-and-excitation (Hu et al., arXiv 1709.01507): a factor for each channel, from the means of all channels.
#[derive(Debug, Clone)]
struct Squeeze {
    layers: [Dense; 2],
    activation: ConvActivation,
    gate: EfficientNetGate,
}

impl Squeeze {
    fn new(
        (channels, squeezed): (usize, usize),
        activation: EfficientNetActivation,
        gate: EfficientNetGate,
        [reduce, expand]: &Pair,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let activation = match gate {
            EfficientNetGate::Sigmoid => activation.into(),
            EfficientNetGate::HardSigmoid => ConvActivation::Relu,
        };
        let layers = [
            Dense::new(channels, squeezed, true, vb.pp(reduce))?,
            Dense::new(squeezed, channels, true, vb.pp(expand))?,
        ];
        Ok(Self { layers, activation, gate })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [reduce, expand] = &self.layers;
        let y = expand.forward(&self.activation.apply(&reduce.forward(&global_avg_pool(x)?)?)?)?;
        let factors = match self.gate {
            EfficientNetGate::Sigmoid => sigmoid(&y)?,
            EfficientNetGate::HardSigmoid => hard_sigmoid(&y)?,
        };
        scale_channels(x, &factors)
    }
}

/// A linear layer of vectors, whose weight may be that of a convolution of one, with a bias.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    /// Takes `weight`, of shape (outputs, inputs), or (outputs, inputs, 1, 1) for a convolution's, and `bias`.
    pub(super) fn new(inputs: usize, outputs: usize, conv: bool, vb: VarBuilder) -> Result<Self> {
        let shape = if conv { vec![outputs, inputs, 1, 1] } else { vec![outputs, inputs] };
        let bias = vb.get_with_hints(outputs, "bias", Init::Const(0.0))?;
        Ok(Self { weight: vb.get_with_hints(shape, "weight", KERNELS)?, bias })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Linear::new(self.weight.flatten_from(1)?, Some(self.bias.clone())).forward(x)
    }
}
