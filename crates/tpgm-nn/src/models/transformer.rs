//! The block that all transformers here are made of: attention and a feed-forward network, each with a residual connection and a norm.
//! It is one operation to candle wherever it can be (`layers/tape.rs`).

#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};

use super::attention::{Attention, Place};
use crate::layers::{Activation, AnyNorm, Dropout, LayerNorm, Linear, Parts, RmsNorm, Tape, Value, block};
use crate::lora::Lora;

/// Where the norms are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// In front of what they are the norms of (Xiong et al., arXiv 2002.04745, figure 1b): ViT, CLIP, Llama.
    NormFirst,
    /// Behind the sum with the residual connection (figure 1a): BERT.
    NormLast,
}

#[derive(Debug, Clone)]
pub(super) enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl<'a> From<&'a Norm> for AnyNorm<'a> {
    fn from(norm: &'a Norm) -> Self {
        match norm {
            Norm::Layer(norm) => norm.into(),
            Norm::Rms(norm) => norm.into(),
        }
    }
}

/// The feed-forward network.
#[derive(Debug, Clone)]
pub(super) enum Feed {
    Plain {
        wide: Linear,
        activation: Activation,
        narrow: Linear,
    },
    /// A SwiGLU (Shazeer, arXiv 2002.05202) whose first half of `wide` is the gate of the second.
    Joined {
        wide: Linear,
        narrow: Linear,
    },
    /// A SwiGLU of three layers: the gate, its factor, and what narrows their product.
    Gated(Box<[Lora<Linear>; 3]>),
}

impl Feed {
    fn forward(&self, tape: &mut Tape, x: &Value, train: bool) -> Result<Value> {
        match self {
            Feed::Plain { wide, activation, narrow } => {
                let inner = tape.activated(x, wide, *activation)?;
                tape.linear(&inner, narrow)
            }
            Feed::Joined { wide, narrow } => {
                let both = tape.linear(x, wide)?;
                let inner = tape.gated_halves(&both)?;
                tape.linear(&inner, narrow)
            }
            Feed::Gated(layers) => {
                let [gate, up, down] = &**layers;
                let (gate, up) = (gate.in_block(tape, x, train)?, up.in_block(tape, x, train)?);
                let inner = tape.gated_silu(&gate, &up)?;
                down.in_block(tape, &inner, train)
            }
        }
    }
}

/// A block. Of two parts, the first is of attention and the second of the feed-forward network.
#[derive(Debug, Clone)]
pub(super) struct Transformer {
    pub(super) order: Order,
    pub(super) norms: [Norm; 2],
    pub(super) attention: Attention,
    pub(super) feed: Feed,
    /// LayerScale (Touvron et al., arXiv 2103.17239): a factor for each feature of what attention and network add.
    pub(super) scales: Option<[Tensor; 2]>,
    /// Of what they add.
    pub(super) dropouts: [Dropout; 2],
}

impl Transformer {
    /// Maps `x` of shape (batch, length, size) to the same shape.
    pub(super) fn forward(&self, x: &Tensor, place: Place<'_>, train: bool) -> Result<Tensor> {
        let layers = |tape: &mut Tape, x: &Value| self.layers(tape, x, place, train);
        block("transformer-block", x, self.parts(place), layers)
    }

    fn parts(&self, place: Place<'_>) -> Parts {
        Parts {
            factors: self.scales.is_some(),
            odd_norm: self.norms.iter().any(|norm| !AnyNorm::from(norm).has_kernel()),
            trained_constant: place.is_trained(),
        }
    }

    fn layers(&self, tape: &mut Tape, x: &Value, place: Place<'_>, train: bool) -> Result<Value> {
        let [first, second] = &self.norms;
        match self.order {
            Order::NormFirst => {
                let normed = tape.norm(x, first)?;
                let attended = self.attention.forward(tape, &normed, place, train)?;
                let attended = self.added(tape, &attended, 0, train)?;
                let [sum, normed] = tape.add_norm(&attended, x, second)?;
                let fed = self.feed.forward(tape, &normed, train)?;
                let fed = self.added(tape, &fed, 1, train)?;
                tape.add(&fed, &sum)
            }
            Order::NormLast => {
                let attended = self.attention.forward(tape, x, place, train)?;
                let attended = self.added(tape, &attended, 0, train)?;
                let [_, x] = tape.add_norm(&attended, x, first)?;
                let fed = self.feed.forward(tape, &x, train)?;
                let fed = self.added(tape, &fed, 1, train)?;
                let [_, x] = tape.add_norm(&fed, &x, second)?;
                Ok(x)
            }
        }
    }

    /// What a part adds.
    fn added(&self, tape: &mut Tape, y: &Value, part: usize, train: bool) -> Result<Value> {
        let y = tape.dropout(y, &self.dropouts[part], train)?;
        match &self.scales {
            Some(scales) => tape.factors(&y, &scales[part]),
            None => Ok(y),
        }
    }
}
