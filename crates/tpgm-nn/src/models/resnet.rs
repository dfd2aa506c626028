//! ResNets (He et al., arXiv 1512.03385), with the stride in the convolution of three, as torchvision has them.
//!
//! ```no_run
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use tpgm_nn::models::resnet::{ResNetClassifier, ResNetConfig};
//!
//! let vars = VarMap::new(); // made anew; `Params::var_builder` of `tpgm-candle` is over a checkpoint
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let model = ResNetClassifier::new(&ResNetConfig::resnet50(), 345, vb)?;
//! let images = Tensor::zeros((32, 3, 224, 224), DType::F32, &Device::Cpu)?; // normalized as in pre-training
//! let logits = model.forward(&images, true)?;
//! # Ok::<(), tpgm_nn::Error>(())
//! ```
//!
//! Names are those of torchvision's files (`resnet50-11ad3fa6.pth`). MoCo-v3's file (`r-50-1000ep.pth.tar`) has the encoder
//! under `module.base_encoder.`, with a projector where the head will be: take `vb.pp("module.base_encoder")`, or with
//! `tpgm-candle` `Params::rename("", "module.base_encoder.")`. What that file has besides (`module.momentum_encoder.*`,
//! `module.predictor.*`, the projector `module.base_encoder.fc.*`) is not asked for.

use std::path::Path;

use candle_core::{Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{Kind, check_sizes, in_file};
use super::hook::Hook;
pub use super::residual::ResNetBlock;
use super::residual::{Halving, Stages, StagesShape, conv_norm};
use crate::error::{Error, Result as OurResult};
use crate::layers::{ConvActivation, ConvNorm, Linear, MaxPool2d, Statistics, global_avg_pool, linear};

/// The shape of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResNetConfig {
    /// The kind of block.
    pub block: ResNetBlock,
    /// Blocks of each stage.
    pub layers: [usize; 4],
    /// Channels behind the first convolution.
    pub width: usize,
    /// Channels of an image.
    pub channels: usize,
    /// What batch norms normalize with while training.
    pub statistics: Statistics,
}

const KIND: Kind = Kind {
    what: "the configuration of a ResNet",
    types: &[],
    entries: &["block", "layers", "width", "channels", "statistics"],
};

impl ResNetConfig {
    /// ResNet-18.
    pub fn resnet18() -> Self {
        Self::usual(ResNetBlock::Basic, [2, 2, 2, 2])
    }

    /// ResNet-34.
    pub fn resnet34() -> Self {
        Self::usual(ResNetBlock::Basic, [3, 4, 6, 3])
    }

    /// ResNet-50.
    pub fn resnet50() -> Self {
        Self::usual(ResNetBlock::Bottleneck, [3, 4, 6, 3])
    }

    /// ResNet-101.
    pub fn resnet101() -> Self {
        Self::usual(ResNetBlock::Bottleneck, [3, 4, 23, 3])
    }

    /// ResNet-152.
    pub fn resnet152() -> Self {
        Self::usual(ResNetBlock::Bottleneck, [3, 8, 36, 3])
    }

    fn usual(block: ResNetBlock, layers: [usize; 4]) -> Self {
        Self { block, layers, width: 64, channels: 3, statistics: Statistics::Batch }
    }

    /// Keeps the running statistics of the pre-training, or not: see [`Statistics`].
    #[must_use]
    pub fn statistics(self, statistics: Statistics) -> Self {
        Self { statistics, ..self }
    }

    /// Numbers per image that [`ResNet::forward`] returns.
    pub fn features(&self) -> usize {
        self.stages().outputs()
    }

    /// Reads a file with the entries of this type, all of them; unknown entries are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`], [`Error::ModelType`] for a configuration of Hugging Face, whose ResNets have other
    /// names and other entries, or [`Error::ModelConfig`].
    pub fn from_file(path: impl AsRef<Path>) -> OurResult<Self> {
        let path = path.as_ref();
        let entries = KIND.read(path)?;
        let config: Self = serde_json::from_value(Value::Object(entries))
            .map_err(|problem| Error::file(path, KIND.what, problem))?;
        in_file(path, config.validate())?;
        Ok(config)
    }

    /// Checks that the numbers make a model.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub fn validate(&self) -> OurResult<()> {
        let bad = |entry, problem: &str| Err(Error::ModelConfig { entry, problem: problem.to_owned() });
        if self.layers.contains(&0) {
            return bad("layers", "a stage has no blocks");
        }
        if self.width == 0 {
            return bad("width", "must be at least 1");
        }
        if self.channels == 0 {
            return bad("channels", "must be at least 1");
        }
        check_sizes(&[
            ("width", self.width),
            ("channels", self.channels),
            ("layers", self.layers.into_iter().max().unwrap_or_default()),
        ])
    }

    fn stages(&self) -> StagesShape {
        StagesShape {
            block: self.block,
            layers: self.layers,
            width: self.width,
            halving: Halving::Strided,
            statistics: self.statistics,
        }
    }
}

/// The encoder: a vector per image.
#[derive(Debug, Clone)]
pub struct ResNet {
    stem: ConvNorm,
    stages: Stages,
    channels: usize,
}

impl ResNet {
    /// Takes `conv1`, `bn1`, and `layer1` to `layer4`.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`], or a parameter that `vb` has not, or not in this shape.
    pub fn new(config: &ResNetConfig, vb: VarBuilder) -> OurResult<Self> {
        config.validate()?;
        let channels = (config.channels, config.width);
        Ok(Self {
            stem: conv_norm(
                channels,
                (7, 2),
                config.statistics,
                ConvActivation::Relu,
                ["conv1", "bn1"],
                &vb,
            )?,
            stages: Stages::new(&config.stages(), &vb)?,
            channels: config.channels,
        })
    }

    /// The mean over the image behind the last stage, of shape (batch, [`ResNetConfig::features`]), for images of shape
    /// (batch, channels, height, width), of any size. If `train`, batch norms use and move what
    /// [`ResNetConfig::statistics`] says.
    ///
    /// # Errors
    ///
    /// Images of other channels than the model's, or as [`BatchNorm`](crate::BatchNorm) while training.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.run(images, train, None)
    }

    /// [`ResNet::forward`] with a hook: see [hidden states](crate::models#hidden-states). Hidden states have the shape (batch,
    /// channels, height, width); blocks are counted through all stages.
    ///
    /// # Errors
    ///
    /// As [`ResNet::forward`], what the hook returns, or a hook that changes more than numbers.
    pub fn forward_with(
        &self,
        images: &Tensor,
        train: bool,
        mut hook: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.run(images, train, Some(&mut hook))
    }

    fn run(&self, images: &Tensor, train: bool, hook: Option<&mut Hook<'_>>) -> Result<Tensor> {
        if images.rank() != 4 || images.dim(1)? != self.channels {
            let (shape, channels) = (images.dims(), self.channels);
            candle_core::bail!(
                "images of shape {shape:?}: the model takes (batch, {channels}, height, width)"
            )
        }
        let x = self.stem.forward_t(images, train)?;
        let x = MaxPool2d::new((3, 3), (2, 2)).padding((1, 1)).forward(&x)?;
        global_avg_pool(&self.stages.forward(&x, train, hook)?)
    }
}

/// An encoder with a linear head named `fc`.
#[derive(Debug, Clone)]
pub struct ResNetClassifier {
    encoder: ResNet,
    head: Linear,
}

impl ResNetClassifier {
    /// Takes the encoder's parameters as [`ResNet::new`] does, and `fc.weight` and `fc.bias`. A checkpoint without a head, or
    /// with one for other classes: declare it with `Params::head` of `tpgm-candle`.
    ///
    /// # Errors
    ///
    /// As [`ResNet::new`].
    pub fn new(config: &ResNetConfig, classes: usize, vb: VarBuilder) -> OurResult<Self> {
        Ok(Self {
            encoder: ResNet::new(config, vb.clone())?,
            head: linear(config.features(), classes, vb.pp("fc"))?,
        })
    }

    /// The encoder.
    pub fn encoder(&self) -> &ResNet {
        &self.encoder
    }

    /// What the head sees: see [`ResNet::forward`].
    ///
    /// # Errors
    ///
    /// As [`ResNet::forward`].
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
    /// As [`ResNet::forward`].
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.classify(&self.features(images, train)?)
    }
}
