//! Multi-head attention, under the names of several kinds of checkpoints.

use candle_core::{D, DType, Device, Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;

use crate::error::{Error, Result as OurResult};
use crate::layers::{
    Dropout, LayerNorm, Linear, layer_norm, linear, linear_no_bias, matmul, matmul_transposed,
    softmax_last_dim,
};

/// Heads that attend: `softmax(q k^T / sqrt(width of a head)) v`.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    count: usize,
    dropout: Dropout,
}

impl Heads {
    /// `dropout` is that of the attention weights.
    pub(super) fn new(count: usize, dropout: Dropout) -> Self {
        Self { count, dropout }
    }

    /// `query` has the shape (batch, queries, size), `key` and `value` (batch, keys, size); `mask`, which broadcasts to
    /// (batch, heads, queries, keys), is added to the scores. Returns (batch, queries, size).
    pub(super) fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let (batch, queries, size) = query.dims3()?;
        let width = size / self.count;
        let split = |x: &Tensor| x.reshape((batch, (), self.count, width))?.transpose(1, 2)?.contiguous();
        let query = split(&(query * (width as f64).powf(-0.5))?)?;
        let scores = matmul_transposed(&query, &split(key)?)?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let weights = self.dropout.forward_t(&softmax_last_dim(&scores)?, train)?;
        matmul(&weights, &split(value)?)?.transpose(1, 2)?.contiguous()?.reshape((batch, queries, size))
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
    inputs: Inputs,
    /// Of queries and keys, over the width of a head.
    norms: Option<[LayerNorm; 2]>,
    heads: Heads,
    output: Linear,
}

#[derive(Debug, Clone)]
enum Inputs {
    Separate([Linear; 3]),
    Joined(Linear),
}

impl Attention {
    /// An attention over tokens of `size` features; `input_bias` says whether query, key and value have a bias.
    pub(super) fn new(
        size: usize,
        input_bias: bool,
        heads: Heads,
        names: &AttentionNames,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let layer = |outputs: usize, name: &str| match input_bias {
            true => linear(size, outputs, vb.pp(name)),
            false => linear_no_bias(size, outputs, vb.pp(name)),
        };
        let inputs = match names.inputs {
            InputNames::Separate([query, key, value]) => {
                Inputs::Separate([layer(size, query)?, layer(size, key)?, layer(size, value)?])
            }
            InputNames::Joined(name) => Inputs::Joined(layer(3 * size, name)?),
            InputNames::InProjection(name) => {
                let vb = vb.pp(name);
                let bias = input_bias.then(|| vb.get(3 * size, "in_proj_bias")).transpose()?;
                Inputs::Joined(Linear::new(vb.get((3 * size, size), "in_proj_weight")?, bias))
            }
        };
        Ok(Self { inputs, norms: None, heads, output: linear(size, size, vb.pp(names.output))? })
    }

    /// Adds norms of queries and keys (Henry et al., arXiv 2010.04245), named `names`.
    pub(super) fn with_norms(
        self,
        size: usize,
        eps: f64,
        [query, key]: [&str; 2],
        vb: &VarBuilder,
    ) -> Result<Self> {
        let width = size / self.heads.count;
        let norm = |name: &str| layer_norm(width, eps, vb.pp(name));
        Ok(Self { norms: Some([norm(query)?, norm(key)?]), ..self })
    }

    /// Maps `x` of shape (batch, length, size) to the same shape; `mask` is that of [`Heads::attend`].
    pub(super) fn forward(&self, x: &Tensor, mask: Option<&Tensor>, train: bool) -> Result<Tensor> {
        let [query, key, value] = match &self.inputs {
            Inputs::Separate([query, key, value]) => [query.forward(x)?, key.forward(x)?, value.forward(x)?],
            Inputs::Joined(layer) => {
                let (joined, size) = (layer.forward(x)?, x.dim(D::Minus1)?);
                let part = |i: usize| joined.narrow(D::Minus1, i * size, size);
                [part(0)?, part(1)?, part(2)?]
            }
        };
        let [query, key] = match &self.norms {
            Some([of_query, of_key]) => [self.normed(&query, of_query)?, self.normed(&key, of_key)?],
            None => [query, key],
        };
        self.output.forward(&self.heads.attend(&query, &key, &value, mask, train)?)
    }

    fn normed(&self, x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        let (batch, length, _) = x.dims3()?;
        norm.forward(&x.reshape((batch, length, self.heads.count, ()))?)?.reshape(x.shape())
    }
}

/// What is added to a score that must not count: the most negative number of half precision, or of the size of f32's. Its
/// exponential is 0.
pub(super) fn forbidden(dtype: DType) -> f64 {
    if dtype == DType::F16 { -65504.0 } else { f64::from(f32::MIN) / 2.0 }
}

/// A mask under which a token sees itself and those before it, of shape (length, length).
pub(super) fn causal_mask(length: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let lowest = forbidden(dtype);
    let mask: Vec<f64> =
        (0..length * length).map(|i| if i % length > i / length { lowest } else { 0.0 }).collect();
    Tensor::from_vec(mask, (length, length), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// A width must divide into heads. `entry` is the width's name in the configuration.
pub(super) fn check_heads(entry: &'static str, size: usize, heads: usize) -> OurResult<()> {
    if heads == 0 || size == 0 || !size.is_multiple_of(heads) {
        let problem = format!("{size} does not divide into {heads} heads");
        return Err(Error::ModelConfig { entry, problem });
    }
    Ok(())
}
