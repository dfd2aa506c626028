//! The shape of a decoder, and its rotary frequencies.

use std::f64::consts::TAU;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::config::{Kind, check_sizes, in_file};

/// The families of models, by Hugging Face's `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 1 to 3, and what has its shape (TinyLlama, SmolLM).
    Llama,
    /// Qwen2 and Qwen2.5: queries, keys and values have biases.
    Qwen2,
}

/// How rotary frequencies are changed for sequences longer than those of pre-training: `rope_scaling`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All are divided by a factor (arXiv 2306.15595).
    Linear {
        /// The factor, above 0.
        factor: f64,
    },
    /// Those that turn less than `low_freq_factor` times within the original length are divided by `factor`, those that
    /// turn more than `high_freq_factor` times stay, and in between it is a mean of the two (Llama 3.1).
    Llama3 {
        /// The factor, above 0.
        factor: f64,
        /// Turns below which a frequency is divided.
        low_freq_factor: f64,
        /// Turns above which a frequency stays; above `low_freq_factor`.
        high_freq_factor: f64,
        /// Longest sequence of pre-training, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// A frequency in radians per token, changed.
    fn apply(self, frequency: f64) -> f64 {
        match self {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: length,
            } => {
                let turns = length as f64 * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }

    fn check(self) -> std::result::Result<(), String> {
        let positive = |factor: f64| match factor > 0.0 && factor.is_finite() {
            true => Ok(()),
            false => Err(format!("`factor` is {factor}, not a number above 0")),
        };
        match self {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive(factor),
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } => {
                positive(factor)?;
                let increasing = low < high && high.is_finite();
                if increasing {
                    Ok(())
                } else {
                    Err(format!("`low_freq_factor` {low} is not below `high_freq_factor` {high}"))
                }
            }
        }
    }
}

/// The shape of a model: `config.json` of a checkpoint. Unknown entries are ignored; defaults are those of Llama 2 7B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
    /// The family.
    pub model_type: Family,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden_size: usize,
    /// Width inside a feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values, a divisor of `num_attention_heads`; as many as those if there is no entry.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head, even; `hidden_size / num_attention_heads` if there is no entry.
    pub head_dim: Option<usize>,
    /// Activation inside a feed-forward block; only `silu` is supported.
    pub hidden_act: String,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How these are changed for long sequences.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head is the embedding. A checkpoint whose `lm_head.weight` is another matrix is an error then: see
    /// [`Llama::new`](super::Llama::new).
    pub tie_word_embeddings: bool,
    /// Whether the projections of a Llama's attention have biases. Qwen2's queries, keys and values have them anyway.
    pub attention_bias: bool,
    /// Whether the layers of a Llama's feed-forward blocks have biases.
    pub mlp_bias: bool,
    /// Whether Qwen2's tokens see only the last ones; not supported.
    pub use_sliding_window: bool,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            model_type: Family::Llama,
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".to_owned(),
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            use_sliding_window: false,
        }
    }
}

const KIND: Kind = Kind {
    what: "the configuration of a Llama or Qwen2 model",
    types: &[("llama", "Llama"), ("qwen2", "Qwen2")],
    entries: &[
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "head_dim",
        "hidden_act",
        "vocab_size",
        "use_sliding_window",
    ],
};

impl LlamaConfig {
    /// Reads a `config.json`, also one with `rope_parameters` in place of `rope_theta` and `rope_scaling`, as newer versions
    /// of transformers write it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`] also for a file that has none of the entries, [`Error::ModelType`] for another
    /// family of models, or [`Error::ModelConfig`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut entries = KIND.read(path)?;
        if let Some(Value::Object(rope)) = entries.remove("rope_parameters") {
            if let Some(theta) = rope.get("rope_theta") {
                entries.insert("rope_theta".to_owned(), theta.clone());
            }
            entries.insert("rope_scaling".to_owned(), Value::Object(rope));
        }
        let config = KIND.parse(path, entries, &Self::default())?;
        in_file(path, config.validate())?;
        Ok(config)
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub fn validate(&self) -> Result<()> {
        let bad = |entry, problem: String| Err(Error::ModelConfig { entry, problem });
        let (heads, size) = (self.num_attention_heads, self.hidden_size);
        if heads == 0 || (self.head_dim.is_none() && !size.is_multiple_of(heads)) {
            return bad("hidden_size", format!("{size} does not divide into {heads} heads"));
        }
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("head_dim", self.head_dim.unwrap_or_default()),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        let groups = self.key_value_heads();
        if groups == 0 || !heads.is_multiple_of(groups) {
            return bad(
                "num_key_value_heads",
                format!("{heads} heads cannot share {groups} keys and values"),
            );
        }
        let head = self.head_size();
        if head == 0 || !head.is_multiple_of(2) {
            return bad("head_dim", format!("a head of {head} numbers has no pairs to rotate"));
        }
        if self.hidden_act != "silu" {
            return bad("hidden_act", format!("`{}` is not supported, only `silu`", self.hidden_act));
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            return bad("rope_theta", format!("{} is not a number above 0", self.rope_theta));
        }
        if let Some(Err(problem)) = self.rope_scaling.map(RopeScaling::check) {
            return bad("rope_scaling", problem);
        }
        if self.use_sliding_window {
            return bad("use_sliding_window", "attention over a window is not supported".to_owned());
        }
        Ok(())
    }

    pub(super) fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(super) fn head_size(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    pub(super) fn rotary(&self) -> Rotary {
        let head = self.head_size();
        let frequency = |pair: usize| self.rope_theta.powf(-2.0 * pair as f64 / head as f64);
        let scaling = self.rope_scaling.unwrap_or(RopeScaling::Default);
        Rotary { frequencies: (0..head / 2).map(|pair| scaling.apply(frequency(pair))).collect() }
    }
}

/// Frequencies of the pairs of a head, in radians per token.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    frequencies: Vec<f64>,
}

impl Rotary {
    /// Cosines and sines of the first positions, each of shape (length, pairs). Computed for each batch: tables for the
    /// longest sequence that a model takes would be 64 MiB, and a batch needs few of them.
    pub(super) fn tables(
        &self,
        length: usize,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<[Tensor; 2]> {
        let angles = (0..length).flat_map(|at| self.frequencies.iter().map(move |f| at as f64 * f));
        let (cos, sin): (Vec<f64>, Vec<f64>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let shape = (length, self.frequencies.len());
        let tensor =
            |values| Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device);
        Ok([tensor(cos)?, tensor(sin)?])
    }
}
