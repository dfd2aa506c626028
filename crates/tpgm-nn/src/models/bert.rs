//! BERT encoders (Devlin et al., arXiv 1810.04805): BERT, MiniLM, E5, BGE and other sentence encoders of this kind.
//!
//! ```no_run
//! use candle_core::{DType, Device, ModuleT, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use tpgm_nn::DropoutRng;
//! use tpgm_nn::models::bert::{BertClassifier, BertConfig, BertInput, Pooling};
//!
//! let config = BertConfig::from_file("model/config.json")?;
//! let vars = VarMap::new(); // made anew; `Params::var_builder` of `tpgm-candle` is over a checkpoint
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let model = BertClassifier::new(&config, 10, Pooling::Mean, &DropoutRng::new(0), vb)?;
//! let ids = Tensor::zeros((32, 64), DType::U32, &Device::Cpu)?; // from a tokenizer
//! let mask = Tensor::ones((32, 64), DType::U32, &Device::Cpu)?;
//! let logits = model.forward(&BertInput::new(&ids, &mask), true)?;
//! # Ok::<(), tpgm_nn::Error>(())
//! ```

use std::path::Path;

use candle_core::{DType, Module, ModuleT, Result, Tensor};
use candle_nn::{Embedding, VarBuilder, embedding};
use serde::{Deserialize, Serialize};

use super::Activation;
use super::attention::{Attention, AttentionNames, Heads, InputNames, check_heads, forbidden};
use super::config;
use crate::error::{Error, Result as OurResult};
use crate::layers::{Dropout, DropoutRng, LayerNorm, Linear, layer_norm, linear};

/// The shape of a model: `config.json` of a checkpoint. Unknown entries are ignored; defaults are those of BERT base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    /// Number of tokens.
    pub vocab_size: usize,
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
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Number of segments.
    pub type_vocab_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// How positions enter; only `absolute` is supported.
    pub position_embedding_type: String,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            position_embedding_type: "absolute".to_owned(),
        }
    }
}

impl BertConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`] or [`Error::ModelConfig`].
    pub fn from_file(path: impl AsRef<Path>) -> OurResult<Self> {
        let config: Self = config::read(path.as_ref(), "the configuration of a BERT model")?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub fn validate(&self) -> OurResult<()> {
        check_heads("hidden_size", self.hidden_size, self.num_attention_heads)?;
        if self.position_embedding_type != "absolute" {
            let problem = format!("`{}` is not supported, only `absolute`", self.position_embedding_type);
            return Err(Error::ModelConfig { entry: "position_embedding_type", problem });
        }
        Ok(())
    }
}

/// A batch of token sequences.
#[derive(Debug, Clone)]
pub struct BertInput {
    ids: Tensor,
    segments: Option<Tensor>,
    mask: Tensor,
}

impl BertInput {
    /// `ids` and `mask` have the shape (batch, length); `mask` is 1 for tokens and 0 for padding, of any type.
    pub fn new(ids: &Tensor, mask: &Tensor) -> Self {
        Self { ids: ids.clone(), segments: None, mask: mask.clone() }
    }

    /// Adds the segment of each token, of the same shape; without, all are in the first.
    #[must_use]
    pub fn segments(mut self, segments: &Tensor) -> Self {
        self.segments = Some(segments.clone());
        self
    }
}

/// The encoder: token vectors from token ids.
#[derive(Debug, Clone)]
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    segments: Embedding,
    norm: LayerNorm,
    dropout: Dropout,
    blocks: Vec<Block>,
    max_length: usize,
}

impl Bert {
    /// Takes `embeddings.*` and `encoder.layer.*`; for a checkpoint with a prefix (`bert.`), give `vb.pp("bert")`.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`], or a parameter that `vb` has not, or not in this shape.
    pub fn new(config: &BertConfig, dropout: &DropoutRng, vb: VarBuilder) -> OurResult<Self> {
        config.validate()?;
        let embeddings = vb.pp("embeddings");
        let size = config.hidden_size;
        let table = |n, name: &str| embedding(n, size, embeddings.pp(name));
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::new(config, dropout, vb.pp("encoder.layer").pp(i)))
            .collect::<OurResult<_>>()?;
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: table(config.max_position_embeddings, "position_embeddings")?,
            segments: table(config.type_vocab_size, "token_type_embeddings")?,
            norm: layer_norm(size, config.layer_norm_eps, embeddings.pp("LayerNorm"))?,
            dropout: Dropout::new(config.hidden_dropout_prob, dropout)?,
            blocks,
            max_length: config.max_position_embeddings,
        })
    }

    /// Token vectors, of shape (batch, length, hidden size). Drops out if `train`.
    ///
    /// # Errors
    ///
    /// Sequences longer than the position embeddings, a token outside the vocabulary, or wrong shapes.
    pub fn forward(&self, input: &BertInput, train: bool) -> Result<Tensor> {
        let (_, length) = input.ids.dims2()?;
        if length > self.max_length {
            candle_core::bail!("sequences have {length} tokens, the model takes up to {}", self.max_length)
        }
        let positions = Tensor::arange(0, length as u32, input.ids.device())?;
        let words = self.words.forward(&input.ids)?;
        let segments = match &input.segments {
            Some(segments) => self.segments.forward(segments)?,
            None => self.segments.forward(&input.ids.zeros_like()?)?,
        };
        let x = (words + segments)?.broadcast_add(&self.positions.forward(&positions)?)?;
        let mut x = self.dropout.forward_t(&self.norm.forward(&x)?, train)?;
        let mask = additive_mask(&input.mask, x.dtype())?;
        for block in &self.blocks {
            x = block.forward(&x, &mask, train)?;
        }
        Ok(x)
    }
}

/// 0 for tokens and a very small number for padding, of shape (batch, 1, 1, length).
fn additive_mask(mask: &Tensor, dtype: DType) -> Result<Tensor> {
    let (batch, length) = mask.dims2()?;
    let lowest = forbidden(dtype);
    let mask = mask.to_dtype(DType::F32)?.affine(-lowest, lowest)?;
    mask.to_dtype(dtype)?.reshape((batch, 1, 1, length))
}

const ATTENTION: AttentionNames = AttentionNames {
    inputs: InputNames::Separate(["attention.self.query", "attention.self.key", "attention.self.value"]),
    output: "attention.output.dense",
};

#[derive(Debug, Clone)]
struct Block {
    attention: Attention,
    attended_norm: LayerNorm,
    wide: Linear,
    activation: Activation,
    narrow: Linear,
    norm: LayerNorm,
    dropout: Dropout,
}

impl Block {
    fn new(config: &BertConfig, dropout: &DropoutRng, vb: VarBuilder) -> OurResult<Self> {
        let (size, eps) = (config.hidden_size, config.layer_norm_eps);
        let attention_dropout = Dropout::new(config.attention_probs_dropout_prob, dropout)?;
        let heads = Heads::new(config.num_attention_heads, attention_dropout);
        Ok(Self {
            attention: Attention::new(size, true, heads, &ATTENTION, &vb)?,
            attended_norm: layer_norm(size, eps, vb.pp("attention.output.LayerNorm"))?,
            wide: linear(size, config.intermediate_size, vb.pp("intermediate.dense"))?,
            activation: config.hidden_act,
            narrow: linear(config.intermediate_size, size, vb.pp("output.dense"))?,
            norm: layer_norm(size, eps, vb.pp("output.LayerNorm"))?,
            dropout: Dropout::new(config.hidden_dropout_prob, dropout)?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor, train: bool) -> Result<Tensor> {
        let attended = self.attention.forward(x, Some(mask), train)?;
        let x = self.attended_norm.forward(&(self.dropout.forward_t(&attended, train)? + x)?)?;
        let fed = self.narrow.forward(&self.activation.apply(&self.wide.forward(&x)?)?)?;
        self.norm.forward(&(self.dropout.forward_t(&fed, train)? + x)?)
    }
}

/// How a sequence becomes one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean over its tokens, padding left out (sentence-transformers' default).
    Mean,
    /// The vector of its first token.
    Cls,
}

impl Pooling {
    /// From (batch, length, size) to (batch, size). A sequence without tokens is all zeros.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit.
    pub fn apply(self, tokens: &Tensor, mask: &Tensor) -> Result<Tensor> {
        match self {
            Pooling::Cls => tokens.narrow(1, 0, 1)?.squeeze(1),
            Pooling::Mean => {
                let mask = mask.to_dtype(tokens.dtype())?;
                let counts = mask.sum_keepdim(1)?.maximum(1.0)?;
                // A matrix product adds the tokens up: one pass, forward and backward.
                let shares = mask.broadcast_div(&counts)?.unsqueeze(1)?;
                shares.matmul(tokens)?.squeeze(1)
            }
        }
    }
}

/// An encoder, pooled, with a linear head named `classifier`.
#[derive(Debug, Clone)]
pub struct BertClassifier {
    encoder: Bert,
    pooling: Pooling,
    dropout: Dropout,
    head: Linear,
}

impl BertClassifier {
    /// Takes the encoder's parameters as [`Bert::new`] does, under `bert.` if `vb` has them there, and `classifier.weight` and `classifier.bias`, which a checkpoint
    /// without a head lacks: declare it with `Params::head` of `tpgm-candle`.
    ///
    /// # Errors
    ///
    /// As [`Bert::new`].
    pub fn new(
        config: &BertConfig,
        classes: usize,
        pooling: Pooling,
        dropout: &DropoutRng,
        vb: VarBuilder,
    ) -> OurResult<Self> {
        // Checkpoints that were saved with a head of their own have the encoder beside it.
        let prefixed = vb.contains_tensor("bert.embeddings.word_embeddings.weight");
        let encoder = if prefixed { vb.pp("bert") } else { vb.clone() };
        Ok(Self {
            encoder: Bert::new(config, dropout, encoder)?,
            pooling,
            dropout: Dropout::new(config.hidden_dropout_prob, dropout)?,
            head: linear(config.hidden_size, classes, vb.pp("classifier"))?,
        })
    }

    /// The pooled vectors, of shape (batch, hidden size): what the head sees, and all that a linear probe needs.
    ///
    /// # Errors
    ///
    /// As [`Bert::forward`].
    pub fn features(&self, input: &BertInput, train: bool) -> Result<Tensor> {
        self.pooling.apply(&self.encoder.forward(input, train)?, &input.mask)
    }

    /// Logits from pooled vectors, of shape (batch, classes).
    ///
    /// # Errors
    ///
    /// A wrong shape.
    pub fn classify(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        self.head.forward(&self.dropout.forward_t(features, train)?)
    }

    /// Logits, of shape (batch, classes).
    ///
    /// # Errors
    ///
    /// As [`Bert::forward`].
    pub fn forward(&self, input: &BertInput, train: bool) -> Result<Tensor> {
        self.classify(&self.features(input, train)?, train)
    }
}
