//! Vision transformers (Dosovitskiy et al., arXiv 2010.11929): ViT and DeiT, with a class token.
//!
//! ```no_run
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use tpgm_nn::DropoutRng;
//! use tpgm_nn::models::vit::{VitClassifier, VitConfig};
//!
//! let config = VitConfig::base_patch16_224();
//! let vars = VarMap::new(); // made anew; `Params::var_builder` of `tpgm-candle` is over a checkpoint
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let model = VitClassifier::new(&config, 10, &DropoutRng::new(0), vb)?;
//! let images = Tensor::zeros((32, 3, 224, 224), DType::F32, &Device::Cpu)?; // normalized as in pre-training
//! let logits = model.forward(&images, true)?;
//! # Ok::<(), tpgm_nn::Error>(())
//! ```

use std::path::Path;

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::Activation;
use super::attention::{AttentionNames, InputNames};
use super::block::{BlockNames, BlockShape};
use super::config;
use super::image::{ImageNames, ImageShape, ImageTransformer};
use crate::error::{Error, Result as OurResult};
use crate::layers::{DropoutRng, Linear, linear};

/// The shape of a model: `config.json` of a checkpoint from Hugging Face. Unknown entries are ignored; defaults are those
/// of ViT-B/16. Checkpoints from timm have presets instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VitConfig {
    /// Width of a token's vector; a multiple of `num_attention_heads`.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of an attention.
    pub num_attention_heads: usize,
    /// Width inside a feed-forward block.
    pub intermediate_size: usize,
    /// Activation inside a feed-forward block.
    pub hidden_act: Activation,
    /// Probability of dropout after embeddings, attentions and feed-forward blocks, in `[0, 1)`.
    pub hidden_dropout_prob: f64,
    /// Probability of dropout of attention weights, in `[0, 1)`.
    pub attention_probs_dropout_prob: f64,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Side of an image in pixels; a multiple of `patch_size`.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Channels of an image.
    pub num_channels: usize,
    /// Whether query, key and value have a bias.
    pub qkv_bias: bool,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            layer_norm_eps: 1e-12,
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            qkv_bias: true,
        }
    }
}

impl VitConfig {
    /// timm's `vit_tiny_patch16_224`.
    pub fn tiny_patch16_224() -> Self {
        Self::timm(192, 12, 3)
    }

    /// timm's `vit_small_patch16_224`.
    pub fn small_patch16_224() -> Self {
        Self::timm(384, 12, 6)
    }

    /// timm's `vit_base_patch16_224`.
    pub fn base_patch16_224() -> Self {
        Self::timm(768, 12, 12)
    }

    /// timm's `vit_large_patch16_224`.
    pub fn large_patch16_224() -> Self {
        Self::timm(1024, 24, 16)
    }

    fn timm(size: usize, blocks: usize, heads: usize) -> Self {
        Self {
            hidden_size: size,
            num_hidden_layers: blocks,
            num_attention_heads: heads,
            intermediate_size: 4 * size,
            layer_norm_eps: 1e-6,
            ..Self::default()
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`] or [`Error::ModelConfig`].
    pub fn from_file(path: impl AsRef<Path>) -> OurResult<Self> {
        let config: Self = config::read(path.as_ref(), "the configuration of a ViT model")?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub fn validate(&self) -> OurResult<()> {
        self.shape().validate()
    }

    fn shape(&self) -> ImageShape {
        ImageShape {
            block: BlockShape {
                size: self.hidden_size,
                heads: self.num_attention_heads,
                inner: self.intermediate_size,
                activation: self.hidden_act,
                eps: self.layer_norm_eps,
                input_bias: self.qkv_bias,
                dropout: self.hidden_dropout_prob,
                attention_dropout: self.attention_probs_dropout_prob,
            },
            blocks: self.num_hidden_layers,
            image: self.image_size,
            patch: self.patch_size,
            channels: self.num_channels,
        }
    }
}

/// Whose names a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitLayout {
    /// `embeddings.cls_token`, `encoder.layer.0.attention.attention.query`, `layernorm`, `classifier`; with a head, all but
    /// the head under `vit.`.
    HuggingFace,
    /// `cls_token`, `blocks.0.attn.qkv`, `norm`, `head`.
    Timm,
}

impl VitLayout {
    const ALL: [Self; 2] = [Self::HuggingFace, Self::Timm];

    /// The layout of the encoder that `vb` has.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayout`] if it has neither class token.
    pub fn find(vb: &VarBuilder) -> OurResult<Self> {
        let layout = Self::ALL.into_iter().find(|layout| vb.contains_tensor(layout.names().class_token));
        layout.ok_or_else(|| Error::UnknownLayout {
            model: "ViT",
            prefix: vb.prefix(),
            tensors: Self::ALL.map(|layout| layout.names().class_token).to_vec(),
        })
    }

    fn names(self) -> &'static ImageNames {
        match self {
            VitLayout::HuggingFace => &HUGGING_FACE,
            VitLayout::Timm => &TIMM,
        }
    }

    fn head(self) -> &'static str {
        match self {
            VitLayout::HuggingFace => "classifier",
            VitLayout::Timm => "head",
        }
    }
}

const HUGGING_FACE: ImageNames = ImageNames {
    patches: "embeddings.patch_embeddings.projection",
    patch_bias: true,
    class_token: "embeddings.cls_token",
    positions: "embeddings.position_embeddings",
    batched: true,
    first_norm: None,
    blocks: "encoder.layer",
    block: BlockNames {
        norms: ["layernorm_before", "layernorm_after"],
        attention: AttentionNames {
            inputs: InputNames::Separate([
                "attention.attention.query",
                "attention.attention.key",
                "attention.attention.value",
            ]),
            output: "attention.output.dense",
        },
        feed: ["intermediate.dense", "output.dense"],
    },
    last_norm: "layernorm",
};

const TIMM: ImageNames = ImageNames {
    patches: "patch_embed.proj",
    patch_bias: true,
    class_token: "cls_token",
    positions: "pos_embed",
    batched: true,
    first_norm: None,
    blocks: "blocks",
    block: BlockNames {
        norms: ["norm1", "norm2"],
        attention: AttentionNames { inputs: InputNames::Joined("attn.qkv"), output: "attn.proj" },
        feed: ["mlp.fc1", "mlp.fc2"],
    },
    last_norm: "norm",
};

/// The encoder: a vector per image.
#[derive(Debug, Clone)]
pub struct Vit {
    transformer: ImageTransformer,
}

impl Vit {
    /// Takes the parameters under the names that `vb` has: see [`VitLayout`]. For a checkpoint with a prefix (`vit.`), give
    /// `vb.pp("vit")`.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`], [`Error::UnknownLayout`], or a parameter that `vb` has not, or not in this shape.
    pub fn new(config: &VitConfig, dropout: &DropoutRng, vb: VarBuilder) -> OurResult<Self> {
        Self::with_layout(config, VitLayout::find(&vb)?, dropout, vb)
    }

    /// Takes the parameters under the names of a given layout, for models that are made anew.
    ///
    /// # Errors
    ///
    /// As [`Vit::new`].
    pub fn with_layout(
        config: &VitConfig,
        layout: VitLayout,
        dropout: &DropoutRng,
        vb: VarBuilder,
    ) -> OurResult<Self> {
        Ok(Self { transformer: ImageTransformer::new(&config.shape(), layout.names(), dropout, &vb)? })
    }

    /// The class token after the last norm, of shape (batch, hidden size), for images of shape (batch, channels, height,
    /// width). Drops out if `train`.
    ///
    /// # Errors
    ///
    /// Images of another size than the model's.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.transformer.class_token(images, train)
    }

    /// All tokens after the last norm, of shape (batch, 1 + patches, hidden size), the class token first.
    ///
    /// # Errors
    ///
    /// As [`Vit::forward`].
    pub fn tokens(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.transformer.tokens(images, train)
    }
}

/// An encoder with a linear head, named `classifier` (Hugging Face) or `head` (timm).
#[derive(Debug, Clone)]
pub struct VitClassifier {
    encoder: Vit,
    head: Linear,
}

impl VitClassifier {
    /// Takes the parameters under the names that `vb` has: see [`VitLayout`]. An encoder from Hugging Face may be under
    /// `vit.` or not. A checkpoint without a head, or with one for other classes: declare it with
    /// `Params::head` of `tpgm-candle`.
    ///
    /// # Errors
    ///
    /// As [`Vit::new`].
    pub fn new(config: &VitConfig, classes: usize, dropout: &DropoutRng, vb: VarBuilder) -> OurResult<Self> {
        let inner = vb.pp("vit");
        let inside = inner.contains_tensor(VitLayout::HuggingFace.names().class_token);
        let encoder = if inside { inner } else { vb.clone() };
        let layout = VitLayout::find(&encoder)?;
        Ok(Self {
            encoder: Vit::with_layout(config, layout, dropout, encoder)?,
            head: linear(config.hidden_size, classes, vb.pp(layout.head()))?,
        })
    }

    /// What the head sees, of shape (batch, hidden size): see [`Vit::forward`].
    ///
    /// # Errors
    ///
    /// As [`Vit::forward`].
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
    /// As [`Vit::forward`].
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.classify(&self.features(images, train)?)
    }
}
