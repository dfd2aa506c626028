//! What checkpoints of BERT's family call their tensors.

use candle_nn::VarBuilder;

use super::BertFamily;
use crate::error::{Error, Result};
use crate::models::attention::{AttentionNames, InputNames};
use crate::models::config::full_name;

/// What a checkpoint calls the parts of a block.
pub(super) struct BertNames {
    pub(super) blocks: &'static str,
    pub(super) attention: AttentionNames,
    /// The norm behind the attention.
    pub(super) attended_norm: &'static str,
    /// The two halves of the feed-forward network.
    pub(super) feed: [&'static str; 2],
    /// The norm behind it.
    pub(super) norm: &'static str,
    /// A tensor that every checkpoint with these names has.
    sign: &'static str,
}

const BERT: BertNames = BertNames {
    blocks: "encoder.layer",
    attention: AttentionNames {
        inputs: InputNames::Separate(["attention.self.query", "attention.self.key", "attention.self.value"]),
        output: "attention.output.dense",
    },
    attended_norm: "attention.output.LayerNorm",
    feed: ["intermediate.dense", "output.dense"],
    norm: "output.LayerNorm",
    sign: "encoder.layer.0.attention.self.query.weight",
};

const DISTILBERT: BertNames = BertNames {
    blocks: "transformer.layer",
    attention: AttentionNames {
        inputs: InputNames::Separate(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
        output: "attention.out_lin",
    },
    attended_norm: "sa_layer_norm",
    feed: ["ffn.lin1", "ffn.lin2"],
    norm: "output_layer_norm",
    sign: "transformer.layer.0.attention.q_lin.weight",
};

impl BertNames {
    /// The names of a family.
    ///
    /// # Errors
    ///
    /// [`Error::ModelTensor`] if `vb` has those of another family.
    pub(super) fn of(family: BertFamily, vb: &VarBuilder) -> Result<&'static Self> {
        let (ours, other) = match family {
            BertFamily::DistilBert => (&DISTILBERT, &BERT),
            _ => (&BERT, &DISTILBERT),
        };
        if vb.contains_tensor(other.sign) && !vb.contains_tensor(ours.sign) {
            return Err(of_another_family(family, other.sign, vb));
        }
        Ok(ours)
    }
}

/// What the names of encoders begin with in checkpoints that were saved with a head of their own.
const PREFIXES: [&str; 3] = ["bert", "roberta", "distilbert"];

/// Where the encoder is: under the prefix of its family, or at the top.
///
/// # Errors
///
/// [`Error::ModelTensor`] if `vb` has it under the prefix of another family.
pub(super) fn encoder<'a>(family: BertFamily, vb: &VarBuilder<'a>) -> Result<VarBuilder<'a>> {
    let ours = match family {
        BertFamily::Bert => "bert",
        BertFamily::Roberta | BertFamily::XlmRoberta | BertFamily::Camembert => "roberta",
        BertFamily::DistilBert => "distilbert",
    };
    let words = |prefix: &str| format!("{prefix}.embeddings.word_embeddings.weight");
    match PREFIXES.into_iter().find(|prefix| vb.contains_tensor(&words(prefix))) {
        None => Ok(vb.clone()),
        Some(prefix) if prefix == ours => Ok(vb.pp(prefix)),
        Some(prefix) => Err(of_another_family(family, &words(prefix), vb)),
    }
}

fn of_another_family(family: BertFamily, tensor: &str, vb: &VarBuilder) -> Error {
    let tensor = full_name(vb, tensor);
    let family = family.name();
    let problem = format!(
        "a model whose `model_type` is `{family}` has no such name: the configuration is that of another model, or lacks \
         its `model_type`"
    );
    Error::ModelTensor { tensor, problem }
}
