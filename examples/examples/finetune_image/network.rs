//! The networks that can be fine-tuned.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tpgm_candle::models::Activation;
use tpgm_candle::models::clip::{ClipClassifier, ClipConfig, ClipImageConfig};
use tpgm_candle::models::efficientnet::{EfficientNetClassifier, EfficientNetConfig, EfficientNetLayout};
use tpgm_candle::models::resnet::{ResNetClassifier, ResNetConfig};
use tpgm_candle::models::vit::{VitClassifier, VitConfig};
use tpgm_candle::nn::{DropoutRng, Statistics};
use tpgm_examples::data::images::Transform;
use tpgm_examples::files;

/// A kind of network and its usual size. A `config.json` beside the checkpoint, or --config, says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arch {
    /// ViT-B/16, with the names of Hugging Face or timm
    Vit,
    /// ResNet-50, with the names of torchvision or MoCo-v3
    Resnet50,
    /// EfficientNet-Lite0, with the names of efficientnet_lite_pytorch or timm; its batch norms keep the statistics of the
    /// pre-training
    EfficientnetLite0,
    /// CLIP with a ViT-B/16, with the names of Hugging Face or OpenAI
    ClipVit,
    /// CLIP with its ResNet-50, with the names of OpenAI
    ClipResnet50,
}

/// The shape of a network.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    Vit(VitConfig),
    ResNet(ResNetConfig),
    EfficientNet(EfficientNetConfig),
    Clip(ClipConfig),
}

impl Arch {
    /// The shape, from a file if there is one.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or describes no such network; an activation where there is nothing to choose, or none where
    /// names leave it open.
    pub(crate) fn shape(self, config: Option<&Path>, activation: Option<Activation>) -> Result<Shape> {
        ensure!(
            activation.is_none() || (self.is_clip() && config.is_none()),
            "--activation is for a CLIP without a configuration: here the network has it"
        );
        let asked = || {
            activation.context(
                "--activation quick-gelu or gelu: names of CLIP's checkpoints do not say which it is (OpenAI's have \
                 quick-gelu, OpenCLIP's gelu unless their name ends in -quickgelu); a config.json does, with --config",
            )
        };
        Ok(match (self, config) {
            (Arch::Vit, None) => Shape::Vit(VitConfig::base_patch16_224()),
            (Arch::Vit, Some(path)) => Shape::Vit(VitConfig::from_file(path)?),
            (Arch::Resnet50, None) => Shape::ResNet(ResNetConfig::resnet50()),
            (Arch::Resnet50, Some(path)) => Shape::ResNet(ResNetConfig::from_file(path)?),
            (Arch::EfficientnetLite0, None) => {
                Shape::EfficientNet(EfficientNetConfig::lite0().statistics(Statistics::Running))
            }
            (Arch::EfficientnetLite0, Some(path)) => {
                Shape::EfficientNet(EfficientNetConfig::from_file(path)?.statistics(Statistics::Running))
            }
            (Arch::ClipVit, None) => Shape::Clip(ClipConfig::vit_b16(asked()?)),
            (Arch::ClipVit, Some(path)) => Shape::Clip(ClipConfig::from_file(path)?),
            (Arch::ClipResnet50, None) => Shape::Clip(ClipConfig::rn50(asked()?)),
            (Arch::ClipResnet50, Some(path)) => Shape::Clip(own(path)?),
        })
    }

    /// How its pre-training saw images.
    pub(crate) fn transform(self) -> Transform {
        match self {
            Arch::Vit => Transform::VIT,
            Arch::Resnet50 => Transform::IMAGENET,
            Arch::EfficientnetLite0 => Transform::EFFICIENTNET_LITE,
            Arch::ClipVit | Arch::ClipResnet50 => Transform::CLIP,
        }
    }

    /// Whether it has a text tower.
    pub(crate) fn is_clip(self) -> bool {
        matches!(self, Arch::ClipVit | Arch::ClipResnet50)
    }
}

/// An activation, by its name in configurations or with dashes.
///
/// # Errors
///
/// There is none of this name.
pub(crate) fn activation(name: &str) -> Result<Activation, serde_json::Error> {
    serde_json::from_value(name.replace('-', "_").into())
}

/// A configuration of ours: its checkpoints come without one.
fn own<C: DeserializeOwned>(path: &Path) -> Result<C> {
    files::read_json(path)?.with_context(|| format!("there is no {}", path.display()))
}

impl Shape {
    /// Side of its images in pixels; `None` if it takes any.
    pub(crate) fn side(&self) -> Option<usize> {
        match self {
            Shape::Vit(config) => Some(config.image_size),
            Shape::ResNet(_) | Shape::EfficientNet(_) => None,
            Shape::Clip(config) => match &config.image {
                ClipImageConfig::Vit(image) => Some(image.image_size),
                ClipImageConfig::ResNet(image) => Some(image.image_size),
            },
        }
    }

    /// What the names of the head's tensors begin with. `vb` shows which names the checkpoint has.
    pub(crate) fn head(&self, vb: &VarBuilder) -> &'static str {
        match self {
            Shape::Vit(_) if vb.contains_tensor("cls_token") => "head",
            Shape::ResNet(_) => "fc",
            // Without a layout there is an error soon enough: when the network is made.
            Shape::EfficientNet(_) => {
                EfficientNetLayout::find(vb).map_or("classifier", EfficientNetLayout::head)
            }
            Shape::Vit(_) | Shape::Clip(_) => "classifier",
        }
    }

    /// The network with its head.
    ///
    /// # Errors
    ///
    /// `vb` has no tensor of a name, or of another shape.
    pub(crate) fn network(&self, classes: usize, dropout: &DropoutRng, vb: VarBuilder) -> Result<Network> {
        ensure!(classes > 1, "a classifier of {classes} classes");
        Ok(match self {
            Shape::Vit(config) => Network::Vit(VitClassifier::new(config, classes, dropout, vb)?),
            Shape::ResNet(config) => Network::ResNet(ResNetClassifier::new(config, classes, vb)?),
            Shape::EfficientNet(config) => {
                Network::EfficientNet(EfficientNetClassifier::new(config, classes, dropout, vb)?)
            }
            Shape::Clip(config) => Network::Clip(ClipClassifier::new(config, classes, vb)?),
        })
    }
}

/// A network with its head.
pub(crate) enum Network {
    Vit(VitClassifier),
    ResNet(ResNetClassifier),
    EfficientNet(EfficientNetClassifier),
    Clip(ClipClassifier),
}

impl Network {
    /// Logits, `[images, classes]`.
    pub(crate) fn forward(&self, pixels: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        match self {
            Network::Vit(model) => model.forward(pixels, train),
            Network::ResNet(model) => model.forward(pixels, train),
            Network::EfficientNet(model) => model.forward(pixels, train),
            Network::Clip(model) => model.forward(pixels, train),
        }
    }
}
