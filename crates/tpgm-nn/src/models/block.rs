//! The transformer blocks of ViT and CLIP, by the names that checkpoints have for their parts.

use candle_nn::{Init, VarBuilder};

use super::Activation;
use super::attention::{Attention, AttentionNames};
use super::config::full_name;
use super::transformer::{Feed, Norm, Order, Transformer};
use crate::error::{Error, Result as OurResult};
use crate::layers::{Dropout, DropoutRng, layer_norm, linear};

/// What a checkpoint calls the parts of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockNames {
    /// Norms in front of attention and feed-forward network.
    pub(super) norms: [&'static str; 2],
    pub(super) attention: AttentionNames,
    /// The two halves of the feed-forward network.
    pub(super) feed: [&'static str; 2],
    /// What these may be called where the network is gated; in a model made anew, the first.
    pub(super) gated_feed: &'static [[&'static str; 2]],
    /// Factors of what attention and feed-forward network add.
    pub(super) scales: Option<[&'static str; 2]>,
    /// Norms of queries and keys.
    pub(super) qk_norms: Option<[&'static str; 2]>,
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
    /// Whether the feed-forward network is a SwiGLU; names that only such a network has say so too.
    pub(super) gated: bool,
    /// What LayerScale's factors start with in a model made anew. A checkpoint has them or not; with a value it must.
    pub(super) layer_scale: Option<f64>,
    pub(super) dropout: f64,
    pub(super) attention_dropout: f64,
}

/// The parts that blocks of one kind have and others lack: the same for all blocks of a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockParts {
    feed: [&'static str; 2],
    gated: bool,
    /// Names and first value of LayerScale's factors.
    scales: Option<([&'static str; 2], f64)>,
    qk_norms: Option<[&'static str; 2]>,
}

impl BlockParts {
    /// What the configuration asks for, and what the first block of a checkpoint has. The others must have the same.
    ///
    /// # Errors
    ///
    /// Norms of queries and keys without biases: these are of two kinds, which names do not tell apart.
    pub(super) fn find(shape: &BlockShape, names: &BlockNames, first: &VarBuilder) -> OurResult<Self> {
        let has = |name: &str| first.contains_tensor(name);
        let weight = |name: &str| format!("{name}.weight");
        let only_gated = names.gated_feed.iter().copied().filter(|feed| *feed != names.feed);
        let gated_feed = only_gated.into_iter().find(|[wide, _]| has(&weight(wide)));
        let made_anew = !has(&weight(names.feed[0]));
        let usual = match names.gated_feed.first() {
            Some(&gated) if shape.gated && made_anew => gated,
            _ => names.feed,
        };
        let qk_norms = names.qk_norms.filter(|norms| norms.iter().any(|norm| has(&weight(norm))));
        let no_bias = |norm: &&&str| has(&weight(norm)) && !has(&format!("{norm}.bias"));
        if let Some(norm) = qk_norms.iter().flatten().find(no_bias) {
            let problem = "without a bias: whether it is a layer norm or an RMS norm is not known, so it is not supported";
            return Err(Error::ModelTensor {
                tensor: full_name(first, &weight(norm)),
                problem: problem.to_owned(),
            });
        }
        Ok(Self {
            feed: gated_feed.unwrap_or(usual),
            gated: shape.gated || gated_feed.is_some(),
            scales: names
                .scales
                .filter(|scales| shape.layer_scale.is_some() || scales.iter().any(|scale| has(scale)))
                .map(|scales| (scales, shape.layer_scale.unwrap_or(1.0))),
            qk_norms,
        })
    }
}

/// A block under these names.
pub(super) fn block(
    shape: &BlockShape,
    names: &BlockNames,
    parts: &BlockParts,
    dropout: &DropoutRng,
    vb: &VarBuilder,
) -> OurResult<Transformer> {
    let &BlockShape { size, inner, eps, .. } = shape;
    let of_attention = Dropout::new(shape.attention_dropout, dropout)?;
    let attention = Attention::new(size, shape.input_bias, shape.heads, of_attention, &names.attention, vb)?;
    let scale = |name: &str, value| vb.get_with_hints(size, name, Init::Const(value));
    let norm = |name: &str| layer_norm(size, eps, vb.pp(name)).map(Norm::Layer);
    let wide = linear(size, if parts.gated { 2 * inner } else { inner }, vb.pp(parts.feed[0]))?;
    let narrow = linear(inner, size, vb.pp(parts.feed[1]))?;
    let dropout = Dropout::new(shape.dropout, dropout)?;
    Ok(Transformer {
        order: Order::NormFirst,
        norms: [norm(names.norms[0])?, norm(names.norms[1])?],
        attention: match parts.qk_norms {
            Some(norms) => attention.with_norms(size, eps, norms, vb)?,
            None => attention,
        },
        feed: match parts.gated {
            true => Feed::Joined { wide, narrow },
            false => Feed::Plain { wide, activation: shape.activation.layer(), narrow },
        },
        scales: match parts.scales {
            Some(([first, second], value)) => Some([scale(first, value)?, scale(second, value)?]),
            None => None,
        },
        dropouts: [dropout.clone(), dropout],
    })
}
