//! Multi-head attention, under the names of several kinds of checkpoints.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use crate::error::{Error, Result as OurResult};
use crate::layers::{
    AttentionMask, Dropout, LayerNorm, Linear, Tape, Value, layer_norm, linear, linear_no_bias,
};
use crate::lora::Lora;

/// Where the tokens of a batch are: what attention knows beside their values.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place<'a> {
    pub(super) mask: Option<&'a AttentionMask>,
    /// Cosines and sines of the angles that queries and keys are rotated by.
    pub(super) rotary: Option<[&'a Tensor; 2]>,
}

impl Place<'_> {
    /// True if a gradient flows to what is a constant everywhere else.
    pub(super) fn is_trained(&self) -> bool {
        let mask = matches!(self.mask, Some(AttentionMask::Added(mask)) if mask.track_op());
        mask || self.rotary.iter().flatten().any(|angles| angles.track_op())
    }
}

/// What a checkpoint calls the parts of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionNames {
    pub(super) inputs: InputNames,
    pub(super) output: &'static str,
}

/// How query, key and value are kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum InputNames {
    /// A layer each.
    Separate([&'static str; 3]),
    /// One layer with the three one after the other.
    Joined(&'static str),
    /// The same as PyTorch's `MultiheadAttention` names it: `in_proj_weight` and `in_proj_bias` under this name.
    InProjection(&'static str),
}

/// Self-attention with its projections.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) inputs: Inputs,
    /// Of queries and keys, over the width of a head.
    pub(super) norms: Option<[LayerNorm; 2]>,
    /// Of queries.
    pub(super) heads: usize,
    /// Heads of keys and values, a divisor of `heads`.
    pub(super) groups: usize,
    /// That of the attention weights.
    pub(super) dropout: Dropout,
    pub(super) output: Lora<Linear>,
}

#[derive(Debug, Clone)]
pub(super) enum Inputs {
    Separate(Box<[Lora<Linear>; 3]>),
    Joined(Linear),
}

impl Attention {
    /// An attention over tokens of `size` features; `input_bias` says whether query, key and value have a bias.
    pub(super) fn new(
        size: usize,
        input_bias: bool,
        heads: usize,
        dropout: Dropout,
        names: &AttentionNames,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let layer = |outputs: usize, name: &str| match input_bias {
            true => linear(size, outputs, vb.pp(name)),
            false => linear_no_bias(size, outputs, vb.pp(name)),
        };
        let plain = |name: &str| layer(size, name).map(Lora::plain);
        let inputs = match names.inputs {
            InputNames::Separate([query, key, value]) => {
                Inputs::Separate(Box::new([plain(query)?, plain(key)?, plain(value)?]))
            }
            InputNames::Joined(name) => Inputs::Joined(layer(3 * size, name)?),
            InputNames::InProjection(name) => {
                let vb = vb.pp(name);
                let bias = input_bias.then(|| vb.get(3 * size, "in_proj_bias")).transpose()?;
                Inputs::Joined(Linear::new(vb.get((3 * size, size), "in_proj_weight")?, bias))
            }
        };
        let output = Lora::plain(linear(size, size, vb.pp(names.output))?);
        Ok(Self { inputs, norms: None, heads, groups: heads, dropout, output })
    }

    /// Adds norms of queries and keys (Henry et al., arXiv 2010.04245), named `names`.
    pub(super) fn with_norms(
        self,
        size: usize,
        eps: f64,
        [query, key]: [&str; 2],
        vb: &VarBuilder,
    ) -> Result<Self> {
        let width = size / self.heads;
        let norm = |name: &str| layer_norm(width, eps, vb.pp(name));
        Ok(Self { norms: Some([norm(query)?, norm(key)?]), ..self })
    }

    /// Maps `x` of shape (batch, length, size) to the same shape.
    pub(super) fn forward(&self, tape: &mut Tape, x: &Value, place: Place<'_>, train: bool) -> Result<Value> {
        let [query, key, value] = match &self.inputs {
            Inputs::Separate(layers) => {
                let mut split = |layer: &Lora<Linear>, heads| {
                    let y = layer.in_block(tape, x, train)?;
                    tape.split_heads(&y, heads)
                };
                let [query, key, value] = &**layers;
                [split(query, self.heads)?, split(key, self.groups)?, split(value, self.groups)?]
            }
            Inputs::Joined(layer) => {
                let joined = tape.linear(x, layer)?;
                tape.split_joined(&joined, self.heads)?
            }
        };
        let [query, key] = match &self.norms {
            Some([of_query, of_key]) => [tape.norm(&query, of_query)?, tape.norm(&key, of_key)?],
            None => [query, key],
        };
        let [query, key] = match place.rotary {
            Some(angles) => [tape.rope(&query, angles)?, tape.rope(&key, angles)?],
            None => [query, key],
        };
        let mixed = tape.attention([&query, &key, &value], place.mask, &self.dropout, train)?;
        self.output.in_block(tape, &mixed, train)
    }
}

/// What is added to a score that must not count: the most negative number of half precision, or of the size of f32's. Its
/// exponential is 0.
pub(super) fn forbidden(dtype: DType) -> f64 {
    if dtype == DType::F16 { -65504.0 } else { f64::from(f32::MIN) / 2.0 }
}

/// A width must divide into heads. `entry` is the width's name in the configuration.
pub(super) fn check_heads(entry: &'static str, size: usize, heads: usize) -> OurResult<()> {
    if heads == 0 || size == 0 || !size.is_multiple_of(heads) {
        let problem = format!("{size} does not divide into {heads} heads");
        return Err(Error::ModelConfig { entry, problem });
    }
    Ok(())
}
