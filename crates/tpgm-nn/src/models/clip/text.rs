//! CLIP's text tower.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::names::projection;
use super::{ClipConfig, ClipLayout};
use crate::error::Result as OurResult;
use crate::layers::{AttentionMask, DropoutRng, Embedding, LayerNorm, Linear, layer_norm};
use crate::models::attention::Place;
use crate::models::block::{self, BlockParts};
use crate::models::hook::{tapped_in_place, untouched};
use crate::models::ids::checked;
use crate::models::transformer::Transformer;

/// The text tower: an embedding per text, from token ids.
#[derive(Debug, Clone)]
pub struct ClipText {
    tokens: Embedding,
    positions: Tensor,
    blocks: Vec<Transformer>,
    norm: LayerNorm,
    projection: Linear,
    end: u32,
}

/// As `eos_token_id`: the largest id of a text ends it.
const LARGEST: u32 = 2;

impl ClipText {
    /// Takes `text_model.*` and `text_projection` (Hugging Face), or `token_embedding`, `positional_embedding`,
    /// `transformer.*`, `ln_final` and `text_projection` (OpenAI).
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`](crate::Error::ModelConfig), or a parameter that `vb` has not, or not in this shape.
    pub fn new(config: &ClipConfig, layout: ClipLayout, vb: VarBuilder) -> OurResult<Self> {
        config.validate()?;
        let (text, names) = (&config.text, layout.text());
        let (size, shape) = (text.hidden_size, text.block());
        let blocks = vb.pp(names.blocks);
        let parts = BlockParts::find(&shape, &names.block, &blocks.pp(0))?;
        let block = |i| block::block(&shape, &names.block, &parts, &DropoutRng::new(0), &blocks.pp(i));
        let widths = (size, config.projection_dim);
        Ok(Self {
            tokens: Embedding::new(vb.get((text.vocab_size, size), names.tokens)?),
            positions: vb.get((text.max_position_embeddings, size), names.positions)?,
            blocks: (0..text.num_hidden_layers).map(block).collect::<OurResult<_>>()?,
            norm: layer_norm(size, text.layer_norm_eps, vb.pp(names.norm))?,
            projection: projection(layout, ["text_projection"; 2], widths, &vb)?,
            end: text.eos_token_id,
        })
    }

    /// Embeddings of shape (batch, projection), not normalized, for token ids of shape (batch, length). A text ends with its
    /// end-of-text token; what follows is padding and changes nothing.
    ///
    /// # Errors
    ///
    /// Texts longer than the position embeddings, a token outside the vocabulary, a text without end, or a wrong shape.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.forward_with(ids, untouched)
    }

    /// [`ClipText::forward`] with a hook: see [hidden states](crate::models#hidden-states). Hidden states have the shape
    /// (batch, length, hidden size).
    ///
    /// # Errors
    ///
    /// As [`ClipText::forward`], what the hook returns, or a hook that changes more than numbers.
    pub fn forward_with(
        &self,
        ids: &Tensor,
        mut hook: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (batch, length) = ids.dims2()?;
        let longest = self.positions.dim(0)?;
        if length > longest {
            candle_core::bail!("texts have {length} tokens, the model takes up to {longest}")
        }
        let ends = self.ends(ids)?;
        let positions = self.positions.narrow(0, 0, length)?;
        let mut x = self.tokens.forward(ids)?.broadcast_add(&positions)?;
        let place = Place { mask: Some(&AttentionMask::Causal), rotary: None };
        const WHY: &str = "each token has one of the position embeddings and a place in the mask";
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&tapped_in_place(&mut hook, i, x, WHY)?, place, false)?;
        }
        let x = tapped_in_place(&mut hook, self.blocks.len(), x, WHY)?;
        // Norm and projection look at each token alone, so those of the ends suffice.
        let ends = Tensor::from_vec(ends, batch, x.device())?;
        let x = x.flatten(0, 1)?.index_select(&ends, 0)?;
        self.projection.forward(&self.norm.forward(&x)?)
    }

    /// Where each text ends, in the tokens of all texts one after the other.
    fn ends(&self, ids: &Tensor) -> Result<Vec<u32>> {
        let rows = checked("token", ids, self.tokens.embeddings().dim(0)?)?;
        let end = |(i, row): (usize, &Vec<i64>)| {
            let token = match self.end {
                LARGEST => row.iter().copied().max(),
                token => Some(i64::from(token)),
            };
            match row.iter().position(|&id| Some(id) == token) {
                Some(at) => Ok((i * row.len() + at) as u32),
                None => candle_core::bail!("text {i} has no end-of-text token ({})", self.end),
            }
        };
        rows.iter().enumerate().map(end).collect()
    }
}
