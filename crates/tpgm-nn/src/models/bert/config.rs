//! The shapes of encoders of BERT's family.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::Activation;
use crate::models::attention::check_heads;
use crate::models::config::{Kind, check_sizes, in_file, rename};

/// The kinds of encoders, by Hugging Face's `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BertFamily {
    /// BERT, MiniLM, BGE, and the first E5.
    Bert,
    /// RoBERTa: positions are counted from the one behind the padding's, [`BertConfig::pad_token_id`].
    Roberta,
    /// XLM-RoBERTa, so multilingual E5 and BGE-M3; computes the same as RoBERTa.
    XlmRoberta,
    /// CamemBERT; computes the same as RoBERTa.
    Camembert,
    /// DistilBERT: no segments, and no dropout behind an attention.
    #[serde(rename = "distilbert")]
    DistilBert,
}

impl BertFamily {
    /// Whether positions are counted as RoBERTa does.
    pub(super) fn counts_behind_padding(self) -> bool {
        matches!(self, Self::Roberta | Self::XlmRoberta | Self::Camembert)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::Camembert => "camembert",
            Self::DistilBert => "distilbert",
        }
    }

    /// The token that pads, where a configuration does not say it: that of transformers.
    fn padding(self) -> u32 {
        u32::from(self.counts_behind_padding())
    }
}

/// The shape of a model: `config.json` of a checkpoint. Unknown entries are ignored; defaults are those of BERT base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    /// The kind of encoder.
    pub model_type: BertFamily,
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
    /// Rows of the table of positions: see [`BertConfig::max_length`].
    pub max_position_embeddings: usize,
    /// Number of segments; 0 where the model has no table of them. DistilBERT has none, whatever is here.
    pub type_vocab_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// How positions enter; only `absolute` is supported.
    pub position_embedding_type: String,
    /// The token that pads; where there is no entry, 1 for RoBERTa and its like, else 0. Only RoBERTa and its like look at
    /// it: see [`BertInput`](super::BertInput).
    pub pad_token_id: Option<u32>,
    /// Whether a token sees only those before it; not supported.
    pub is_decoder: bool,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            model_type: BertFamily::Bert,
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
            pad_token_id: None,
            is_decoder: false,
        }
    }
}

const KIND: Kind = Kind {
    what: "the configuration of a BERT model",
    types: &[
        ("bert", "Bert"),
        ("roberta", "Roberta"),
        ("xlm-roberta", "XLMRoberta"),
        ("camembert", "Camembert"),
        ("distilbert", "DistilBert"),
    ],
    entries: &[
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "vocab_size",
        "type_vocab_size",
        "position_embedding_type",
        "hidden_act",
    ],
};

/// DistilBERT's names of entries.
const DISTILBERT: [(&str, &str); 7] = [
    ("dim", "hidden_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("hidden_dim", "intermediate_size"),
    ("activation", "hidden_act"),
    ("dropout", "hidden_dropout_prob"),
    ("attention_dropout", "attention_probs_dropout_prob"),
];

impl BertConfig {
    /// Reads a `config.json`. Its `model_type` says which kind of encoder it is; without that entry the class in
    /// `architectures` does, and without both it is BERT, unless it pads with token 1 as RoBERTa does: then it is asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`] also for a file that has none of the entries, [`Error::ModelType`] for other
    /// encoders (ALBERT, ELECTRA, MPNet, DeBERTa, ...) or [`Error::ModelConfig`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut entries = KIND.read(path)?;
        let mut defaults = Self::default();
        match entries.get("model_type").and_then(Value::as_str) {
            None if entries.get("pad_token_id") == Some(&1.into()) => {
                let problem =
                    "it is missing, and `pad_token_id` is RoBERTa's: write `bert`, `roberta`, or what it is";
                let error = Error::ModelConfig { entry: "model_type", problem: problem.to_owned() };
                return in_file(path, Err(error));
            }
            Some("distilbert") => {
                in_file(path, rename(&mut entries, &DISTILBERT))?;
                defaults.num_hidden_layers = 6;
                // Neither is an option of DistilBERT.
                entries.insert("type_vocab_size".to_owned(), 0.into());
                entries.insert("layer_norm_eps".to_owned(), 1e-12.into());
            }
            Some("roberta") => defaults.vocab_size = 50265,
            _ => {}
        }
        let config = KIND.parse(path, entries, &defaults)?;
        in_file(path, config.validate())?;
        Ok(config)
    }

    /// The longest sequence in tokens. RoBERTa's tables of positions have rows in front that no token takes.
    pub fn max_length(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position())
    }

    /// The position of a sequence's first token.
    pub(super) fn first_position(&self) -> usize {
        if self.model_type.counts_behind_padding() { self.padding() as usize + 1 } else { 0 }
    }

    /// The token that batches are padded with: [`BertConfig::pad_token_id`], or that of the family. RoBERTa's positions are right
    /// for no other.
    pub fn padding(&self) -> u32 {
        self.pad_token_id.unwrap_or_else(|| self.model_type.padding())
    }

    pub(super) fn segments(&self) -> usize {
        if self.model_type == BertFamily::DistilBert { 0 } else { self.type_vocab_size }
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub fn validate(&self) -> Result<()> {
        let bad = |entry, problem: String| Err(Error::ModelConfig { entry, problem });
        check_heads("hidden_size", self.hidden_size, self.num_attention_heads)?;
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ])?;
        if self.position_embedding_type != "absolute" {
            let problem = format!("`{}` is not supported, only `absolute`", self.position_embedding_type);
            return bad("position_embedding_type", problem);
        }
        if self.is_decoder {
            return bad("is_decoder", "a decoder of this kind is not supported, only encoders".to_owned());
        }
        let padding = self.padding() as usize;
        if padding >= self.vocab_size {
            let problem = format!("{padding} is none of the {} tokens", self.vocab_size);
            return bad("pad_token_id", problem);
        }
        if self.max_length() == 0 {
            let (rows, first) = (self.max_position_embeddings, self.first_position());
            let problem =
                format!("{rows} leaves no position for a token: the first one has position {first}");
            return bad("max_position_embeddings", problem);
        }
        Ok(())
    }
}
