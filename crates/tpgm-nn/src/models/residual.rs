//! The four stages of residual blocks that ResNet and CLIP's ResNet have in common, under torchvision's names.

use candle_core::{ModuleT, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::hook::{Hook, tapped_in_place};
use crate::layers::{
    ConvActivation, ConvBlock, ConvNorm, Order, Shortcut, Statistics, batch_norm, conv2d_no_bias, relu,
};

/// Epsilon of all batch norms.
const EPS: f64 = 1e-5;

/// The kind of block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResNetBlock {
    /// Two convolutions of three: ResNet-18 and 34.
    Basic,
    /// Convolutions of one, three and one, the last with four times the channels: ResNet-50 and larger.
    Bottleneck,
}

impl ResNetBlock {
    /// Channels of its result, in widths.
    pub(super) fn growth(self) -> usize {
        match self {
            ResNetBlock::Basic => 1,
            ResNetBlock::Bottleneck => 4,
        }
    }
}

/// How a block halves the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halving {
    /// By the stride of its convolution of three.
    Strided,
    /// By averages of two by two, which do not alias: behind the convolution of three, and in front of the shortcut's.
    Averaged,
}

/// A convolution that keeps the size of the image but for its stride, its norm, and what follows them. `names` are those of
/// convolution and norm.
pub(super) fn conv_norm(
    (inputs, outputs): (usize, usize),
    (kernel, stride): (usize, usize),
    statistics: Statistics,
    activation: ConvActivation,
    names: [&str; 2],
    vb: &VarBuilder,
) -> Result<ConvNorm> {
    let conv = conv2d_no_bias(inputs, outputs, kernel, vb.pp(names[0]))?;
    let norm = batch_norm(outputs, EPS, vb.pp(names[1]))?;
    Ok(ConvNorm::new(conv.stride(stride).padding(kernel / 2), norm.statistics(statistics), activation))
}

/// Sizes and options of the stages.
#[derive(Debug, Clone, Copy)]
pub(super) struct StagesShape {
    pub(super) block: ResNetBlock,
    /// Blocks of each stage.
    pub(super) layers: [usize; 4],
    /// Channels of the input, and width of the first stage; each following one is twice as wide.
    pub(super) width: usize,
    pub(super) halving: Halving,
    pub(super) statistics: Statistics,
}

impl StagesShape {
    /// Channels of the result.
    pub(super) fn outputs(&self) -> usize {
        8 * self.width * self.block.growth()
    }
}

/// `layer1` to `layer4`. All but the first halve the image.
#[derive(Debug, Clone)]
pub(super) struct Stages {
    blocks: Vec<Block>,
}

impl Stages {
    pub(super) fn new(shape: &StagesShape, vb: &VarBuilder) -> Result<Self> {
        let mut blocks = vec![];
        let mut inputs = shape.width;
        for (stage, &layers) in shape.layers.iter().enumerate() {
            let (width, vb) = (shape.width << stage, vb.pp(format!("layer{}", stage + 1)));
            for layer in 0..layers {
                let stride = if stage > 0 && layer == 0 { 2 } else { 1 };
                blocks.push(Block::new(inputs, width, stride, shape, &vb.pp(layer))?);
                inputs = width * shape.block.growth();
            }
        }
        Ok(Self { blocks })
    }

    /// Maps (batch, width, height, width of the image) to (batch, [`StagesShape::outputs`], an eighth, an eighth). Without a hook,
    /// pixels go from block to block where blocks are one operation: nothing has to be transposed.
    pub(super) fn forward(&self, x: &Tensor, train: bool, hook: Option<&mut Hook<'_>>) -> Result<Tensor> {
        const WHY: &str = "convolutions have no tokens";
        let mut x = x.clone();
        if let Some(hook) = hook {
            for (i, block) in self.blocks.iter().enumerate() {
                x = block.forward(&tapped_in_place(hook, i, x, WHY)?, [Order::Planes; 2], train)?;
            }
            return tapped_in_place(hook, self.blocks.len(), x, WHY);
        }
        let whole: Vec<bool> = self.blocks.iter().map(|block| block.is_whole(&x, train)).collect();
        let mut from = Order::Planes;
        for (i, block) in self.blocks.iter().enumerate() {
            let to = if whole[i] && whole.get(i + 1) == Some(&true) { Order::Pixels } else { Order::Planes };
            x = block.forward(&x, [from, to], train)?;
            from = to;
        }
        Ok(x)
    }
}

#[derive(Debug, Clone)]
enum Block {
    /// All of it is one piece.
    Whole(ConvBlock),
    Averaged {
        /// Its convolutions up to where it averages, and those behind.
        convs: [ConvBlock; 2],
        shortcut: ConvNorm,
        /// Averages over windows of this side behind the second convolution and in front of the shortcut's.
        average: usize,
    },
}

impl Block {
    fn new(inputs: usize, width: usize, stride: usize, shape: &StagesShape, vb: &VarBuilder) -> Result<Self> {
        let outputs = width * shape.block.growth();
        let (stride, average) = match shape.halving {
            Halving::Strided => (stride, 1),
            Halving::Averaged => (1, stride),
        };
        let layer = |channels, window, activation, names| {
            conv_norm(channels, window, shape.statistics, activation, names, vb)
        };
        let (relu, none) = (ConvActivation::Relu, ConvActivation::None);
        let mut convs = match shape.block {
            ResNetBlock::Basic => vec![
                layer((inputs, width), (3, stride), relu, ["conv1", "bn1"])?,
                layer((width, width), (3, 1), none, ["conv2", "bn2"])?,
            ],
            ResNetBlock::Bottleneck => vec![
                layer((inputs, width), (1, 1), relu, ["conv1", "bn1"])?,
                layer((width, width), (3, stride), relu, ["conv2", "bn2"])?,
                layer((width, outputs), (1, 1), none, ["conv3", "bn3"])?,
            ],
        };
        let projection = || layer((inputs, outputs), (1, stride), none, ["downsample.0", "downsample.1"]);
        if average > 1 {
            let last = convs.split_off(2);
            let convs = [convs, last].map(|convs| ConvBlock::new(convs, Shortcut::None));
            return Ok(Self::Averaged { convs, shortcut: projection()?, average });
        }
        let shortcut = if stride > 1 || inputs != outputs {
            Shortcut::Projection(Box::new(projection()?))
        } else {
            Shortcut::Input
        };
        Ok(Self::Whole(ConvBlock::new(convs, shortcut).activation(relu)))
    }

    /// Whether it is computed as one operation, and can take and return pixels.
    fn is_whole(&self, x: &Tensor, train: bool) -> bool {
        match self {
            Self::Whole(block) => block.is_whole(x, train),
            Self::Averaged { .. } => false,
        }
    }

    fn forward(&self, x: &Tensor, orders: [Order; 2], train: bool) -> Result<Tensor> {
        match self {
            Self::Whole(block) => block.forward_ordered(x, orders, train),
            Self::Averaged { convs: [first, last], shortcut, average } => {
                let y = last.forward_t(&first.forward_t(x, train)?.avg_pool2d(*average)?, train)?;
                relu(&(y + shortcut.forward_t(&x.avg_pool2d(*average)?, train)?)?)
            }
        }
    }
}
