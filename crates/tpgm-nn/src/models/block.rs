//! The transformer block of ViT and CLIP: norms first, then attention and a feed-forward network, each added to its input
//! (Xiong et al., arXiv 2002.04745, figure 1b).

use candle_core::{Module, ModuleT, Tensor};
use candle_nn::VarBuilder;

use super::Activation;
use super::attention::{Attention, AttentionNames, Heads};
use crate::error::Result as OurResult;
use crate::layers::{Dropout, DropoutRng, LayerNorm, Linear, layer_norm, linear};

/// What a checkpoint calls the parts of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockNames {
    /// Norms in front of attention and feed-forward network.
    pub(super) norms: [&'static str; 2],
    pub(super) attention: AttentionNames,
    /// The two halves of the feed-forward network.
    pub(super) feed: [&'static str; 2],
}

/// Sizes and options of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockShape {
    pub(super) size: usize,
    pub(super) heads: usize,
    /// Width inside the feed-forward network.
    pub(super) inner: usize,
    pub(super) activation: Activation,
    pub(super) eps: f64,
    /// Whether query, key and value have a bias.
    pub(super) input_bias: bool,
    pub(super) dropout: f64,
    pub(super) attention_dropout: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Block {
    attention_norm: LayerNorm,
    attention: Attention,
    feed_norm: LayerNorm,
    wide: Linear,
    activation: Activation,
    narrow: Linear,
    dropout: Dropout,
}

impl Block {
    pub(super) fn new(
        shape: &BlockShape,
        names: &BlockNames,
        dropout: &DropoutRng,
        vb: &VarBuilder,
    ) -> OurResult<Self> {
        let &BlockShape { size, inner, eps, .. } = shape;
        let heads = Heads::new(shape.heads, Dropout::new(shape.attention_dropout, dropout)?);
        Ok(Self {
            attention_norm: layer_norm(size, eps, vb.pp(names.norms[0]))?,
            attention: Attention::new(size, shape.input_bias, heads, &names.attention, vb)?,
            feed_norm: layer_norm(size, eps, vb.pp(names.norms[1]))?,
            wide: linear(size, inner, vb.pp(names.feed[0]))?,
            activation: shape.activation,
            narrow: linear(inner, size, vb.pp(names.feed[1]))?,
            dropout: Dropout::new(shape.dropout, dropout)?,
        })
    }

    /// Maps `x` of shape (batch, length, size) to the same shape; `mask` is that of [`Heads::attend`].
    pub(super) fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        train: bool,
    ) -> candle_core::Result<Tensor> {
        let attended = self.attention.forward(&self.attention_norm.forward(x)?, mask, train)?;
        let x = (self.dropout.forward_t(&attended, train)? + x)?;
        let wide = self.activation.apply(&self.wide.forward(&self.feed_norm.forward(&x)?)?)?;
        self.dropout.forward_t(&self.narrow.forward(&wide)?, train)? + x
    }
}
