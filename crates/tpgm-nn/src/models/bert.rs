//! BERT encoders (Devlin et al., arXiv 1810.04805) and their family: MiniLM, E5, BGE and other sentence encoders; RoBERTa
//! (arXiv 1907.11692), XLM-RoBERTa and CamemBERT; DistilBERT (arXiv 1910.01108). [`BertConfig::from_file`] finds out which.
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

mod config;
mod names;

use candle_core::{DType, Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

pub use self::config::{BertConfig, BertFamily};
use self::names::BertNames;
use super::attention::{Attention, Place, forbidden};
use super::hook::{tapped_in_place, untouched};
use super::ids::checked;
use super::transformer::{Feed, Norm, Order, Transformer};
use crate::error::Result as OurResult;
use crate::layers::{
    AttentionMask, Dropout, DropoutRng, Embedding, LayerNorm, Linear, embedding, layer_norm, linear,
};

/// A batch of token sequences.
///
/// RoBERTa and its like take positions from the ids: each token but the padding's, [`BertConfig::pad_token_id`], has the
/// position after the one before it, whatever the mask says, as in Hugging Face's code. So pad with that token.
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
    segments: Option<Embedding>,
    norm: LayerNorm,
    dropout: Dropout,
    blocks: Vec<Transformer>,
    config: BertConfig,
}

impl Bert {
    /// Takes `embeddings.*` and `encoder.layer.*`, or DistilBERT's `transformer.layer.*`; for a checkpoint with a prefix
    /// (`bert.`, `roberta.`, `distilbert.`), give `vb.pp("bert")`.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`](crate::Error::ModelConfig), [`Error::ModelTensor`](crate::Error::ModelTensor) for a checkpoint
    /// of another family than `config`'s, or a parameter that `vb` has not, or not in this shape.
    pub fn new(config: &BertConfig, dropout: &DropoutRng, vb: VarBuilder) -> OurResult<Self> {
        config.validate()?;
        let names = BertNames::of(config.model_type, &vb)?;
        let embeddings = vb.pp("embeddings");
        let size = config.hidden_size;
        let table = |n, name: &str| embedding(n, size, embeddings.pp(name));
        let segments = config.segments();
        let blocks = (0..config.num_hidden_layers)
            .map(|i| block(config, names, dropout, &vb.pp(names.blocks).pp(i)))
            .collect::<OurResult<_>>()?;
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: table(config.max_position_embeddings, "position_embeddings")?,
            segments: (segments > 0).then(|| table(segments, "token_type_embeddings")).transpose()?,
            norm: layer_norm(size, config.layer_norm_eps, embeddings.pp("LayerNorm"))?,
            dropout: Dropout::new(config.hidden_dropout_prob, dropout)?,
            blocks,
            config: config.clone(),
        })
    }

    /// Token vectors, of shape (batch, length, hidden size). Drops out if `train`.
    ///
    /// # Errors
    ///
    /// Sequences longer than [`BertConfig::max_length`], a token outside the vocabulary, segments that the model does not
    /// have, or wrong shapes.
    pub fn forward(&self, input: &BertInput, train: bool) -> Result<Tensor> {
        self.forward_with(input, train, untouched)
    }

    /// [`Bert::forward`] with a hook: see [hidden states](crate::models#hidden-states). Hidden states have the shape (batch,
    /// length, hidden size).
    ///
    /// # Errors
    ///
    /// As [`Bert::forward`], what the hook returns, or a hook that changes more than numbers.
    pub fn forward_with(
        &self,
        input: &BertInput,
        train: bool,
        mut hook: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let BertInput { ids, segments, mask } = input;
        let (_, length) = ids.dims2()?;
        let longest = self.config.max_length();
        if length > longest {
            candle_core::bail!("sequences have {length} tokens, the model takes up to {longest}")
        }
        if mask.dims() != ids.dims() {
            candle_core::bail!("the mask has shape {:?}, the ids {:?}", mask.dims(), ids.dims())
        }
        let tokens = checked("token", ids, self.config.vocab_size)?;
        let mut x = self.words.forward(ids)?;
        match (&self.segments, segments) {
            (Some(table), Some(segments)) => {
                checked("segment", segments, self.config.segments())?;
                x = (x + table.forward(segments)?)?;
            }
            (Some(table), None) => x = (x + table.forward(&ids.zeros_like()?)?)?,
            (None, Some(_)) => {
                candle_core::bail!("a {} has no segments", self.config.model_type.name())
            }
            (None, None) => {}
        }
        let positions = self.positions(&tokens, length)?.to_device(ids.device())?;
        let x = x.broadcast_add(&self.positions.forward(&positions)?)?;
        let mut x = self.dropout.forward_t(&self.norm.forward(&x)?, train)?;
        let mask = AttentionMask::Added(additive_mask(mask, x.dtype())?);
        let place = Place { mask: Some(&mask), rotary: None };
        const WHY: &str = "each token has a position and a place in the mask";
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&tapped_in_place(&mut hook, i, x, WHY)?, place, train)?;
        }
        tapped_in_place(&mut hook, self.blocks.len(), x, WHY)
    }

    /// Positions that broadcast to (batch, length).
    fn positions(&self, tokens: &[Vec<i64>], length: usize) -> Result<Tensor> {
        let device = &candle_core::Device::Cpu;
        if !self.config.model_type.counts_behind_padding() {
            return Tensor::arange(0, length as u32, device);
        }
        let padding = self.config.padding();
        let mut positions = Vec::with_capacity(tokens.len() * length);
        for row in tokens {
            let mut last = padding;
            positions.extend(row.iter().map(|&id| {
                let pads = id == i64::from(padding);
                last += u32::from(!pads);
                if pads { padding } else { last }
            }));
        }
        Tensor::from_vec(positions, (tokens.len(), length), device)
    }
}

/// 0 for tokens and a very small number for padding, of shape (batch, 1, 1, length).
fn additive_mask(mask: &Tensor, dtype: DType) -> Result<Tensor> {
    let (batch, length) = mask.dims2()?;
    let lowest = forbidden(dtype);
    let mask = mask.to_dtype(DType::F32)?.affine(-lowest, lowest)?;
    mask.to_dtype(dtype)?.reshape((batch, 1, 1, length))
}

fn block(
    config: &BertConfig,
    names: &BertNames,
    dropout: &DropoutRng,
    vb: &VarBuilder,
) -> OurResult<Transformer> {
    let (size, eps) = (config.hidden_size, config.layer_norm_eps);
    let of_attention = Dropout::new(config.attention_probs_dropout_prob, dropout)?;
    let after_attention = match config.model_type {
        BertFamily::DistilBert => 0.0,
        _ => config.hidden_dropout_prob,
    };
    let norm = |name: &str| layer_norm(size, eps, vb.pp(name)).map(Norm::Layer);
    Ok(Transformer {
        order: Order::NormLast,
        attention: Attention::new(
            size,
            true,
            config.num_attention_heads,
            of_attention,
            &names.attention,
            vb,
        )?,
        norms: [norm(names.attended_norm)?, norm(names.norm)?],
        feed: Feed::Plain {
            wide: linear(size, config.intermediate_size, vb.pp(names.feed[0]))?,
            activation: config.hidden_act.layer(),
            narrow: linear(config.intermediate_size, size, vb.pp(names.feed[1]))?,
        },
        scales: None,
        dropouts: [
            Dropout::new(after_attention, dropout)?,
            Dropout::new(config.hidden_dropout_prob, dropout)?,
        ],
    })
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
    /// Takes the encoder's parameters as [`Bert::new`] does, under its family's prefix (`bert.`, `roberta.`, `distilbert.`)
    /// if `vb` has them there, and `classifier.weight` and `classifier.bias`, which a checkpoint without a head lacks:
    /// declare it with `Params::head` of `tpgm-candle`.
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
        let encoder = names::encoder(config.model_type, &vb)?;
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
