//! Decoders of the families Llama (arXiv 2302.13971, 2407.21783) and Qwen2 (arXiv 2407.10671), for training.
//!
//! ```no_run
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use tpgm_nn::models::llama::{Llama, LlamaConfig};
//!
//! let config = LlamaConfig::from_file("model/config.json")?;
//! let vars = VarMap::new(); // made anew; `Params::var_builder` of `tpgm-candle` is over a checkpoint
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let model = Llama::new(&config, vb)?; // or `Llama::with_lora`
//! let ids = Tensor::zeros((8, 256), DType::U32, &Device::Cpu)?; // from a tokenizer
//! let counted = ids.ones_like()?; // 0 for padding, and for a prompt that is not to be learned
//! let loss = model.loss(&ids, &counted, true)?;
//! # Ok::<(), tpgm_nn::Error>(())
//! ```
//!
//! A decoder for training sees whole sequences at once: there is no cache of keys and values.

mod config;

use candle_core::{DType, Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;

use self::config::Rotary;
pub use self::config::{Family, LlamaConfig, RopeScaling};
use super::attention::{Attention, Inputs, Place};
use super::hook::{Hook, tapped_in_place, untouched};
use super::ids::checked;
use super::transformer::{Feed, Norm, Order, Transformer};
use crate::error::Result as OurResult;
use crate::layers::{
    AttentionMask, Dropout, Embedding, Linear, RmsNorm, cross_entropy, embedding, linear, linear_no_bias,
    rms_norm,
};
use crate::lora::{Factors, Lora, LoraConfig};

/// A decoder with its head: logits of the next token from token ids.
#[derive(Debug, Clone)]
pub struct Llama {
    words: Embedding,
    blocks: Vec<Transformer>,
    norm: RmsNorm,
    head: Lora<Linear>,
    rotary: Rotary,
    max_length: usize,
}

impl Llama {
    /// Takes `model.*` and, if the head is not the embedding, `lm_head.weight`.
    ///
    /// Under [`LlamaConfig::tie_word_embeddings`] a checkpoint may have a `lm_head.weight` all the same, a copy of the
    /// embedding; it is asked for, to be compared, and then not used, so freeze it: with `tpgm-candle`,
    /// `params.freeze("lm_head.weight")`. One with other values is an error: the model that it was saved from is not tied.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`](crate::error::Error::ModelConfig), [`Error::ModelTensor`](crate::Error::ModelTensor), or a parameter that
    /// `vb` has not, or not in this shape.
    pub fn new(config: &LlamaConfig, vb: VarBuilder) -> OurResult<Self> {
        Self::build(config, &|_, layer| Ok(Lora::plain(layer)), vb)
    }

    /// The model of [`Factors::var_builder`] with low-rank updates beside the linear layers that `lora` targets, by PEFT's
    /// names: `q_proj`, `model.layers.0.mlp.up_proj`, `lm_head` if it is not the embedding. Freeze the base before: with
    /// `tpgm-candle`, `params.freeze("*")`. Frozen weights have no gradient and need no anchor.
    ///
    /// # Errors
    ///
    /// As [`Llama::new`] and [`Lora::new`], or [`Error::LoraTarget`](crate::error::Error::LoraTarget) for a target that is no
    /// linear layer of the model.
    pub fn with_lora<F: Factors>(
        config: &LlamaConfig,
        lora: &LoraConfig,
        factors: &F,
    ) -> OurResult<Self, F::Error> {
        let adapt = |name: &str, layer| lora.wrap(name, layer, factors);
        let model = Self::build(config, &adapt, factors.var_builder())?;
        lora.check_targets(factors)?;
        Ok(model)
    }

    /// `adapt` gets every linear layer with the name of its module.
    fn build<E: From<crate::error::Error> + From<candle_core::Error>>(
        config: &LlamaConfig,
        adapt: Adapt<'_, E>,
        vb: VarBuilder,
    ) -> OurResult<Self, E> {
        config.validate()?;
        let (size, model) = (config.hidden_size, vb.pp("model"));
        let words = embedding(config.vocab_size, size, model.pp("embed_tokens"))?;
        let head = match config.tie_word_embeddings {
            true => {
                check_tied(words.embeddings(), &vb)?;
                Lora::plain(Linear::new(words.embeddings().clone(), None))
            }
            false => make(adapt, size, config.vocab_size, false, vb.pp("lm_head"))?,
        };
        let blocks = (0..config.num_hidden_layers)
            .map(|i| block(config, adapt, &model.pp("layers").pp(i)))
            .collect::<OurResult<_, E>>()?;
        Ok(Self {
            words,
            blocks,
            norm: rms_norm(size, config.rms_norm_eps, model.pp("norm"))?,
            head,
            rotary: config.rotary(),
            max_length: config.max_position_embeddings,
        })
    }

    /// Logits of the token after each one, of shape (batch, length, vocabulary), from `ids` of shape (batch, length). With
    /// `train`, LoRA layers drop out as their options say.
    ///
    /// A token sees those before it. So sequences are padded at their end, with any token: nothing before it changes.
    ///
    /// # Errors
    ///
    /// Sequences longer than the model takes, a token outside the vocabulary, or wrong shapes.
    pub fn forward(&self, ids: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_with(ids, train, untouched)
    }

    /// [`Llama::forward`] with a hook: see [hidden states](crate::models#hidden-states). Hidden states have the shape (batch,
    /// length, hidden size).
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`], what the hook returns, or a hook that changes more than numbers.
    pub fn forward_with(
        &self,
        ids: &Tensor,
        train: bool,
        mut hook: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.head.forward_t(&self.vectors(ids, train, &mut hook)?, train)
    }

    /// Mean cross-entropy, in nats per token, of the tokens of `ids` that count, each predicted from those before it.
    /// Its exponential is the perplexity.
    ///
    /// `counted` has the shape of `ids`, (batch, length), and any type: not 0 for tokens that count, 0 for padding and for
    /// what is only read, such as a prompt. The first token of a sequence never counts. The head is computed for what
    /// counts alone, which saves most of its time and memory where that is little.
    ///
    /// # Errors
    ///
    /// As [`Llama::forward`], or no token counts.
    pub fn loss(&self, ids: &Tensor, counted: &Tensor, train: bool) -> Result<Tensor> {
        if ids.dims() != counted.dims() {
            candle_core::bail!("`counted` has shape {:?}, `ids` {:?}", counted.dims(), ids.dims())
        }
        let before = ids.dims2()?.1.saturating_sub(1);
        let next = |tensor: &Tensor| tensor.narrow(1, ids.dim(1)? - before, before)?.flatten_all();
        let counted = next(counted)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let rows: Vec<u32> =
            (0..).zip(&counted).filter(|(_, counts)| **counts != 0.0).map(|(row, _)| row).collect();
        if rows.is_empty() {
            candle_core::bail!("no token of the batch counts: nothing can be predicted")
        }
        // The last token predicts nothing, and nothing sees it.
        let x =
            self.vectors(&ids.narrow(1, 0, before)?.contiguous()?, train, &mut untouched)?.flatten_to(1)?;
        let labels = next(ids)?;
        let (x, labels) = if rows.len() == counted.len() {
            (x, labels)
        } else {
            let rows = Tensor::new(rows, ids.device())?;
            (x.index_select(&rows, 0)?, labels.index_select(&rows, 0)?)
        };
        cross_entropy(&self.head.forward_t(&x, train)?, &labels)
    }

    /// What the head sees, of shape (batch, length, hidden size).
    fn vectors(&self, ids: &Tensor, train: bool, hook: &mut Hook<'_>) -> Result<Tensor> {
        let (_, length) = ids.dims2()?;
        if length > self.max_length {
            candle_core::bail!("sequences have {length} tokens, the model takes up to {}", self.max_length)
        }
        checked("token", ids, self.words.embeddings().dim(0)?)?;
        let mut x = self.words.forward(ids)?;
        let [cos, sin] = self.rotary.tables(length, x.dtype(), x.device())?;
        let place = Place { mask: Some(&AttentionMask::Causal), rotary: Some([&cos, &sin]) };
        const WHY: &str = "each token has a position and a place in the mask";
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&tapped_in_place(hook, i, x, WHY)?, place, train)?;
        }
        self.norm.forward(&tapped_in_place(hook, self.blocks.len(), x, WHY)?)
    }
}

/// A head beside an embedding that it is tied to must be the same.
fn check_tied(words: &Tensor, vb: &VarBuilder) -> OurResult<()> {
    const HEAD: &str = "lm_head.weight";
    if !vb.contains_tensor(HEAD) {
        return Ok(());
    }
    let head = vb.get(words.shape(), HEAD)?;
    let differing = head.ne(words)?.to_dtype(DType::F32)?.max_all()?.to_scalar::<f32>()?;
    if differing == 0.0 {
        return Ok(());
    }
    let problem = "its values are not those of `model.embed_tokens.weight`, which `tie_word_embeddings: true` puts in its \
                   place: write `false` into the configuration to use it, or take it out of the checkpoint";
    Err(crate::error::Error::ModelTensor { tensor: HEAD.to_owned(), problem: problem.to_owned() })
}

/// Adapts the linear layer of a module, or not.
type Adapt<'a, E> = &'a dyn Fn(&str, Linear) -> OurResult<Lora<Linear>, E>;

fn make<E: From<candle_core::Error>>(
    adapt: Adapt<'_, E>,
    inputs: usize,
    outputs: usize,
    bias: bool,
    vb: VarBuilder,
) -> OurResult<Lora<Linear>, E> {
    let name = vb.prefix();
    let load = if bias { linear } else { linear_no_bias };
    adapt(&name, load(inputs, outputs, vb)?)
}

fn block<E: From<candle_core::Error>>(
    config: &LlamaConfig,
    adapt: Adapt<'_, E>,
    vb: &VarBuilder,
) -> OurResult<Transformer, E> {
    let (size, eps) = (config.hidden_size, config.rms_norm_eps);
    let (heads, groups, head) = (config.num_attention_heads, config.key_value_heads(), config.head_size());
    let (bias, out_bias, mlp_bias) = match config.model_type {
        Family::Llama => (config.attention_bias, config.attention_bias, config.mlp_bias),
        Family::Qwen2 => (true, false, false),
    };
    let attention =
        |inputs, outputs, bias, name: &str| make(adapt, inputs, outputs, bias, vb.pp("self_attn").pp(name));
    let mlp = |inputs, outputs, name: &str| make(adapt, inputs, outputs, mlp_bias, vb.pp("mlp").pp(name));
    let norm = |name: &str| rms_norm(size, eps, vb.pp(name)).map(Norm::Rms);
    // A decoder of this kind drops out in its LoRA layers alone.
    let nothing = Dropout::never();
    Ok(Transformer {
        order: Order::NormFirst,
        norms: [norm("input_layernorm")?, norm("post_attention_layernorm")?],
        attention: Attention {
            inputs: Inputs::Separate(Box::new([
                attention(size, heads * head, bias, "q_proj")?,
                attention(size, groups * head, bias, "k_proj")?,
                attention(size, groups * head, bias, "v_proj")?,
            ])),
            norms: None,
            heads,
            groups,
            dropout: nothing.clone(),
            output: attention(heads * head, size, out_bias, "o_proj")?,
        },
        feed: Feed::Gated(Box::new([
            mlp(size, config.intermediate_size, "gate_proj")?,
            mlp(size, config.intermediate_size, "up_proj")?,
            mlp(config.intermediate_size, size, "down_proj")?,
        ])),
        scales: None,
        dropouts: [nothing.clone(), nothing],
    })
}
