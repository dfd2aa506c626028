//! Shapes of CLIP models.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file;
use crate::error::{Error, Result};
use crate::layers::Statistics;
use crate::models::Activation;
use crate::models::attention::check_heads;
use crate::models::block::BlockShape;
use crate::models::config::{check_sizes, in_file};
use crate::models::image::ImageShape;
use crate::models::residual::{Halving, ResNetBlock, StagesShape};

/// The shape of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// Width of the space that images and texts are embedded in.
    pub projection_dim: usize,
    /// The text tower.
    pub text: ClipTextConfig,
    /// The image tower.
    pub image: ClipImageConfig,
}

/// The shape of the image tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipImageConfig {
    /// A vision transformer.
    Vit(ClipVitConfig),
    /// A ResNet.
    ResNet(ClipResNetConfig),
}

/// The shape of the text tower: `text_config` in the `config.json` of a checkpoint from Hugging Face. Defaults are those of
/// ViT-B/32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of a token's vector; a multiple of `num_attention_heads`.
    pub hidden_size: usize,
    /// Width inside a feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of an attention.
    pub num_attention_heads: usize,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// Activation inside a feed-forward block.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The token that ends a text. Where old files say 2, the largest id of a text is meant, here as in Hugging Face's code.
    pub eos_token_id: u32,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    pub(super) fn block(&self) -> BlockShape {
        BlockShape {
            size: self.hidden_size,
            heads: self.num_attention_heads,
            inner: self.intermediate_size,
            activation: self.hidden_act,
            eps: self.layer_norm_eps,
            input_bias: true,
            gated: false,
            layer_scale: None,
            dropout: 0.0,
            attention_dropout: 0.0,
        }
    }
}

/// The shape of a vision transformer: `vision_config` in the `config.json` of a checkpoint from Hugging Face. Defaults are
/// those of ViT-B/32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVitConfig {
    /// Width of a token's vector; a multiple of `num_attention_heads`.
    pub hidden_size: usize,
    /// Width inside a feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of an attention.
    pub num_attention_heads: usize,
    /// Side of an image in pixels; a multiple of `patch_size`.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Channels of an image.
    pub num_channels: usize,
    /// Activation inside a feed-forward block.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipVitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            num_channels: 3,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVitConfig {
    pub(super) fn shape(&self) -> ImageShape {
        ImageShape {
            block: BlockShape {
                size: self.hidden_size,
                heads: self.num_attention_heads,
                inner: self.intermediate_size,
                activation: self.hidden_act,
                eps: self.layer_norm_eps,
                input_bias: true,
                gated: false,
                layer_scale: None,
                dropout: 0.0,
                attention_dropout: 0.0,
            },
            blocks: self.num_hidden_layers,
            image: self.image_size,
            patch: self.patch_size,
            channels: self.num_channels,
            registers: 0,
        }
    }
}

/// The shape of a ResNet. Defaults are those of RN50.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipResNetConfig {
    /// Blocks of each stage.
    pub layers: [usize; 4],
    /// Channels behind the stem; even. The last stage has 32 times as many.
    pub width: usize,
    /// Heads of the pooling attention.
    pub heads: usize,
    /// Side of an image in pixels; a multiple of 32.
    pub image_size: usize,
    /// Channels of an image.
    pub channels: usize,
    /// What batch norms normalize with while training.
    pub statistics: Statistics,
}

impl Default for ClipResNetConfig {
    fn default() -> Self {
        Self {
            layers: [3, 4, 6, 3],
            width: 64,
            heads: 32,
            image_size: 224,
            channels: 3,
            statistics: Statistics::Batch,
        }
    }
}

impl ClipResNetConfig {
    pub(super) fn stages(&self) -> StagesShape {
        StagesShape {
            block: ResNetBlock::Bottleneck,
            layers: self.layers,
            width: self.width,
            halving: Halving::Averaged,
            statistics: self.statistics,
        }
    }

    fn validate(&self) -> Result<()> {
        let bad = |entry, problem: String| Err(Error::ModelConfig { entry, problem });
        if self.layers.contains(&0) {
            return bad("layers", "a stage has no blocks".to_owned());
        }
        check_sizes(&[
            ("width", self.width),
            ("image_size", self.image_size),
            ("channels", self.channels),
            ("layers", self.layers.into_iter().max().unwrap_or_default()),
        ])?;
        if self.width == 0 || !self.width.is_multiple_of(2) {
            return bad("width", format!("{} is no even number above 0", self.width));
        }
        if self.image_size == 0 || !self.image_size.is_multiple_of(32) {
            return bad("image_size", format!("{} pixels cannot be halved five times", self.image_size));
        }
        if self.channels == 0 {
            return bad("channels", "0 channels make no image".to_owned());
        }
        check_heads("width", self.stages().outputs(), self.heads)
    }
}

/// The activation of a preset is asked for: OpenAI's models have [`Activation::QuickGelu`], and so have those of OpenCLIP's whose
/// names end in `-quickgelu`; OpenCLIP's others have [`Activation::Gelu`]. Checkpoints of both have the same names, and the wrong
/// one costs some points of accuracy without a word.
impl ClipConfig {
    /// ViT-B/32.
    pub fn vit_b32(activation: Activation) -> Self {
        Self {
            projection_dim: 512,
            text: ClipTextConfig { hidden_act: activation, ..ClipTextConfig::default() },
            image: ClipImageConfig::Vit(ClipVitConfig { hidden_act: activation, ..ClipVitConfig::default() }),
        }
    }

    /// ViT-B/16.
    pub fn vit_b16(activation: Activation) -> Self {
        let image = ClipVitConfig { patch_size: 16, hidden_act: activation, ..ClipVitConfig::default() };
        Self { image: ClipImageConfig::Vit(image), ..Self::vit_b32(activation) }
    }

    /// ViT-L/14.
    pub fn vit_l14(activation: Activation) -> Self {
        let image = ClipVitConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            patch_size: 14,
            hidden_act: activation,
            ..ClipVitConfig::default()
        };
        let text = ClipTextConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            hidden_act: activation,
            ..ClipTextConfig::default()
        };
        Self { projection_dim: 768, text, image: ClipImageConfig::Vit(image) }
    }

    /// RN50. The activation is that of the text tower; the ResNet has none of the two.
    pub fn rn50(activation: Activation) -> Self {
        Self {
            projection_dim: 1024,
            text: ClipTextConfig { hidden_act: activation, ..ClipTextConfig::default() },
            image: ClipImageConfig::ResNet(ClipResNetConfig::default()),
        }
    }

    /// Reads a `config.json` from Hugging Face, of a model with a vision transformer. Unknown entries are ignored. Where it
    /// has no `hidden_act`, that is `quick_gelu`, as in transformers, which leaves nothing else out either.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`] also for a file that has none of the entries (OpenCLIP's `open_clip_config.json`),
    /// [`Error::ModelType`] for other models (SigLIP, Chinese CLIP, one tower alone) or [`Error::ModelConfig`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config = file::read(path)?;
        in_file(path, config.validate())?;
        Ok(config)
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub fn validate(&self) -> Result<()> {
        if self.projection_dim == 0 {
            let problem = "must be at least 1".to_owned();
            return Err(Error::ModelConfig { entry: "projection_dim", problem });
        }
        check_heads("text_config.hidden_size", self.text.hidden_size, self.text.num_attention_heads)?;
        check_sizes(&[
            ("projection_dim", self.projection_dim),
            ("text_config.vocab_size", self.text.vocab_size),
            ("text_config.hidden_size", self.text.hidden_size),
            ("text_config.intermediate_size", self.text.intermediate_size),
            ("text_config.num_hidden_layers", self.text.num_hidden_layers),
            ("text_config.max_position_embeddings", self.text.max_position_embeddings),
        ])?;
        match &self.image {
            ClipImageConfig::Vit(config) => config.shape().validate(),
            ClipImageConfig::ResNet(config) => config.validate(),
        }
    }
}
