//! The shapes of vision transformers.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::timm;
use crate::error::{Error, Result};
use crate::models::Activation;
use crate::models::block::BlockShape;
use crate::models::config::{Entries, Kind, in_file};
use crate::models::image::ImageShape;

/// The shape of a model: `config.json` of a checkpoint from Hugging Face. Unknown entries are ignored; defaults are those
/// of ViT-B/16. Checkpoints from timm have presets, or a `config.json` that names one.
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
    /// Register tokens; 0 for as many as the checkpoint has.
    pub num_register_tokens: usize,
    /// What LayerScale's factors start with in a model made anew. With a value a checkpoint must have them, without it may.
    pub layerscale_value: Option<f64>,
    /// Whether the feed-forward blocks are SwiGLUs, with an `intermediate_size` behind their gate.
    pub use_swiglu_ffn: bool,
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
            num_register_tokens: 0,
            layerscale_value: None,
            use_swiglu_ffn: false,
        }
    }
}

const KIND: Kind = Kind {
    what: "the configuration of a ViT model",
    types: &[("vit", "ViT"), ("dinov2", "Dinov2"), ("dinov2_with_registers", "Dinov2WithRegisters")],
    entries: &[
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
        "num_channels",
        "hidden_act",
        "mlp_ratio",
        "architecture",
    ],
};

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

    /// Reads a `config.json` of a ViT or of DINOv2, with registers or without: its `model_type` says which, or the class in
    /// `architectures`; without both it is a ViT. timm's, whose `architecture` is for example `vit_base_patch16_224`, has the
    /// sizes of that name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`] also for a file that has none of the entries, [`Error::ModelType`] for other models
    /// (DeiT, BEiT, Swin, ...) or [`Error::ModelConfig`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut entries = KIND.read(path)?;
        if let Some(architecture) =
            entries.get("architecture").filter(|_| !entries.contains_key("model_type"))
        {
            let name = architecture.as_str().unwrap_or_default();
            let config = in_file(path, timm::read(name, &entries))?.ok_or_else(|| Error::ModelType {
                path: path.to_owned(),
                entry: "architecture",
                value: architecture.as_str().map_or_else(|| architecture.to_string(), str::to_owned),
                what: KIND.what,
                supported: timm::SUPPORTED.to_vec(),
            })?;
            in_file(path, config.validate())?;
            return Ok(config);
        }
        let defaults = match entries.get("model_type").and_then(Value::as_str) {
            None | Some("vit") => Self::default(),
            Some(dinov2) => {
                let registers = if dinov2 == "dinov2" { 0 } else { 4 };
                in_file(path, dinov2_width(&mut entries))?;
                Self {
                    layer_norm_eps: 1e-6,
                    patch_size: 14,
                    num_register_tokens: registers,
                    layerscale_value: Some(1.0),
                    ..Self::default()
                }
            }
        };
        let config = KIND.parse(path, entries, &defaults)?;
        in_file(path, config.validate())?;
        Ok(config)
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub fn validate(&self) -> Result<()> {
        self.shape().validate()
    }

    pub(super) fn shape(&self) -> ImageShape {
        ImageShape {
            block: BlockShape {
                size: self.hidden_size,
                heads: self.num_attention_heads,
                inner: self.intermediate_size,
                activation: self.hidden_act,
                eps: self.layer_norm_eps,
                input_bias: self.qkv_bias,
                gated: self.use_swiglu_ffn,
                layer_scale: self.layerscale_value,
                dropout: self.hidden_dropout_prob,
                attention_dropout: self.attention_probs_dropout_prob,
            },
            blocks: self.num_hidden_layers,
            image: self.image_size,
            patch: self.patch_size,
            channels: self.num_channels,
            registers: self.num_register_tokens,
        }
    }
}

/// DINOv2's files have `mlp_ratio` in place of `intermediate_size`, and round a SwiGLU's width up to a multiple of 8.
fn dinov2_width(entries: &mut Entries) -> Result<()> {
    let bad = |entry, problem: &str| Err(Error::ModelConfig { entry, problem: problem.to_owned() });
    let size = match entries.get("hidden_size").map_or(Some(768), Value::as_u64) {
        Some(size) if size < 1 << 24 => size as f64,
        _ => return bad("hidden_size", "it is no size"),
    };
    let ratio = match entries.get("mlp_ratio").map_or(Some(4.0), Value::as_f64) {
        Some(ratio) if (0.0..256.0).contains(&ratio) => ratio,
        _ => return bad("mlp_ratio", "it is no number from 0 to 256"),
    };
    let width = (size * ratio) as u64;
    let gated = entries.get("use_swiglu_ffn").and_then(Value::as_bool) == Some(true);
    let width = if gated { ((width as f64 * 2.0 / 3.0) as u64).div_ceil(8) * 8 } else { width };
    entries.insert("intermediate_size".to_owned(), width.into());
    Ok(())
}
