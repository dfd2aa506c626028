//! Vision transformers (Dosovitskiy et al., arXiv 2010.11929) with a class token: ViT, DeiT without distillation, and DINOv2
//! (arXiv 2304.07193), also with registers (arXiv 2309.16588).
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
//!
//! What some checkpoints have and others lack is found by its name, and then used: LayerScale (`ls1.gamma`,
//! `layer_scale1.lambda1`), register tokens (`reg_token`, `register_tokens`), norms of queries and keys (`attn.q_norm`), a
//! norm in front of the blocks (`norm_pre`), and a SwiGLU as feed-forward network (`mlp.weights_in`, `mlp.w12`; where timm
//! calls it `mlp.fc1`, [`VitConfig::use_swiglu_ffn`] says so).

mod config;
mod names;
mod timm;

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

pub use self::config::VitConfig;
pub use self::names::VitLayout;
use super::hook::untouched;
use super::image::ImageTransformer;
use crate::error::Result as OurResult;
use crate::layers::{DropoutRng, Linear, linear};

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
    /// [`Error::ModelConfig`](crate::Error::ModelConfig), [`Error::UnknownLayout`](crate::Error::UnknownLayout),
    /// [`Error::ModelTensor`](crate::Error::ModelTensor) for a tensor that changes what the model computes and is not
    /// supported, or a parameter that `vb` has not, or not in this shape.
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
        let names = layout.found(&vb)?;
        Ok(Self { transformer: ImageTransformer::new(&config.shape(), &names, dropout, &vb)? })
    }

    /// The class token after the last norm, of shape (batch, hidden size), for images of shape (batch, channels, height,
    /// width). Drops out if `train`.
    ///
    /// # Errors
    ///
    /// Images of another size than the model's.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_with(images, train, untouched)
    }

    /// [`Vit::forward`] with a hook: see [hidden states](crate::models#hidden-states). Hidden states have the shape (batch, tokens,
    /// hidden size); prompts may be among their tokens, behind the first one.
    ///
    /// # Errors
    ///
    /// As [`Vit::forward`], what the hook returns, or a hook that changes more than the number of tokens.
    pub fn forward_with(
        &self,
        images: &Tensor,
        train: bool,
        mut hook: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.transformer.class_token(images, train, &mut hook)
    }

    /// All tokens after the last norm, of shape (batch, 1 + registers + patches, hidden size): the class token, register
    /// tokens if the model has them, and the patches.
    ///
    /// # Errors
    ///
    /// As [`Vit::forward`].
    pub fn tokens(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.transformer.tokens(images, train, &mut untouched)
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
    /// `vit.`, `dinov2.` or `dinov2_with_registers.`, or not. A checkpoint without a head, or with one for other classes:
    /// declare it with `Params::head` of `tpgm-candle`. So too for DINOv2 with Hugging Face's own head, which sees the mean over
    /// the patches beside the class token; the one here sees the class token.
    ///
    /// # Errors
    ///
    /// As [`Vit::new`].
    pub fn new(config: &VitConfig, classes: usize, dropout: &DropoutRng, vb: VarBuilder) -> OurResult<Self> {
        let encoder = names::encoder(&vb);
        let layout = VitLayout::find(&encoder)?;
        Ok(Self {
            encoder: Vit::with_layout(config, layout, dropout, encoder)?,
            head: linear(config.hidden_size, classes, vb.pp(layout.head()))?,
        })
    }

    /// The encoder.
    pub fn encoder(&self) -> &Vit {
        &self.encoder
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
