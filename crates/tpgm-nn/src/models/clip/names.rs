//! What checkpoints of CLIP call their tensors.

use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::ClipImageConfig;
use crate::error::{Error, Result};
use crate::layers::{Linear, linear_no_bias};
use crate::models::attention::{AttentionNames, InputNames};
use crate::models::block::BlockNames;
use crate::models::config::full_name;
use crate::models::image::ImageNames;

/// Whose names a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipLayout {
    /// `vision_model.embeddings.class_embedding`, `text_model.encoder.layers.0.self_attn.q_proj`, `visual_projection`. There
    /// are no ResNets under these names.
    HuggingFace,
    /// `visual.class_embedding`, `transformer.resblocks.0.attn.in_proj_weight`, `text_projection`; OpenCLIP's names too.
    OpenAi,
}

impl ClipLayout {
    const ALL: [Self; 2] = [Self::HuggingFace, Self::OpenAi];

    /// The layout that `vb` has.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayout`] if it has no image tower of this kind, or [`Error::ModelTensor`] if it is another model under
    /// OpenCLIP's names.
    pub fn find(config: &ClipImageConfig, vb: &VarBuilder) -> Result<Self> {
        for (tensor, problem) in UNSUPPORTED {
            if vb.contains_tensor(tensor) {
                let (tensor, problem) = (full_name(vb, tensor), problem.to_owned());
                return Err(Error::ModelTensor { tensor, problem });
            }
        }
        let of = |layout: Self| layout.image_tensor(config);
        let layouts = || Self::ALL.into_iter().filter(|&layout| of(layout).is_some());
        let found = layouts().find(|&layout| of(layout).is_some_and(|name| vb.contains_tensor(name)));
        found.ok_or_else(|| Error::UnknownLayout {
            model: "CLIP",
            prefix: vb.prefix(),
            tensors: layouts().filter_map(of).collect(),
        })
    }

    /// A tensor that every image tower of this kind has.
    fn image_tensor(self, config: &ClipImageConfig) -> Option<&'static str> {
        match (self, config) {
            (ClipLayout::HuggingFace, ClipImageConfig::Vit(_)) => {
                Some("vision_model.embeddings.class_embedding")
            }
            (ClipLayout::HuggingFace, ClipImageConfig::ResNet(_)) => None,
            (ClipLayout::OpenAi, ClipImageConfig::Vit(_)) => Some("visual.class_embedding"),
            (ClipLayout::OpenAi, ClipImageConfig::ResNet(_)) => Some("visual.attnpool.positional_embedding"),
        }
    }

    /// Names of the vision transformer, under [`ClipLayout::image_prefix`].
    pub(super) fn image(self) -> &'static ImageNames {
        match self {
            ClipLayout::HuggingFace => &HUGGING_FACE_IMAGE,
            ClipLayout::OpenAi => &OPEN_AI_IMAGE,
        }
    }

    pub(super) fn image_prefix(self) -> &'static str {
        match self {
            ClipLayout::HuggingFace => "vision_model",
            ClipLayout::OpenAi => "visual",
        }
    }

    pub(super) fn text(self) -> &'static TextNames {
        match self {
            ClipLayout::HuggingFace => &HUGGING_FACE_TEXT,
            ClipLayout::OpenAi => &OPEN_AI_TEXT,
        }
    }
}

/// What other models of OpenCLIP have under these names, and the reason why it cannot be left out.
const UNSUPPORTED: [(&str, &str); 2] = [
    ("visual.attn_pool.query", "its images are pooled by an attention (CoCa), which is not supported"),
    ("logit_bias", "it was trained with a sigmoid for each pair (SigLIP), which is not supported"),
];

/// What a checkpoint calls the parts of the text tower.
pub(super) struct TextNames {
    pub(super) tokens: &'static str,
    pub(super) positions: &'static str,
    pub(super) blocks: &'static str,
    pub(super) block: BlockNames,
    pub(super) norm: &'static str,
}

const HUGGING_FACE_BLOCK: BlockNames = BlockNames {
    norms: ["layer_norm1", "layer_norm2"],
    attention: AttentionNames {
        inputs: InputNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        output: "self_attn.out_proj",
    },
    feed: ["mlp.fc1", "mlp.fc2"],
    gated_feed: &[],
    scales: None,
    qk_norms: None,
};

const OPEN_AI_BLOCK: BlockNames = BlockNames {
    norms: ["ln_1", "ln_2"],
    attention: AttentionNames { inputs: InputNames::InProjection("attn"), output: "attn.out_proj" },
    feed: ["mlp.c_fc", "mlp.c_proj"],
    gated_feed: &[],
    scales: Some(["ls_1.gamma", "ls_2.gamma"]), // of some of OpenCLIP's
    qk_norms: None,
};

const HUGGING_FACE_IMAGE: ImageNames = ImageNames {
    patches: "embeddings.patch_embedding",
    patch_bias: false,
    class_token: "embeddings.class_embedding",
    registers: &[],
    positions: "embeddings.position_embedding.weight",
    batched: false,
    first_norm: Some("pre_layrnorm"), // so misspelled there
    blocks: "encoder.layers",
    block: HUGGING_FACE_BLOCK,
    last_norm: "post_layernorm",
};

const OPEN_AI_IMAGE: ImageNames = ImageNames {
    patches: "conv1",
    patch_bias: false,
    class_token: "class_embedding",
    registers: &[],
    positions: "positional_embedding",
    batched: false,
    first_norm: Some("ln_pre"),
    blocks: "transformer.resblocks",
    block: OPEN_AI_BLOCK,
    last_norm: "ln_post",
};

const HUGGING_FACE_TEXT: TextNames = TextNames {
    tokens: "text_model.embeddings.token_embedding.weight",
    positions: "text_model.embeddings.position_embedding.weight",
    blocks: "text_model.encoder.layers",
    block: HUGGING_FACE_BLOCK,
    norm: "text_model.final_layer_norm",
};

const OPEN_AI_TEXT: TextNames = TextNames {
    tokens: "token_embedding.weight",
    positions: "positional_embedding",
    blocks: "transformer.resblocks",
    block: OPEN_AI_BLOCK,
    norm: "ln_final",
};

/// The projection of a tower into the common space: a layer under Hugging Face's name, a matrix (inputs, outputs) under
/// OpenAI's.
pub(super) fn projection(
    layout: ClipLayout,
    [hugging_face, open_ai]: [&str; 2],
    (inputs, outputs): (usize, usize),
    vb: &VarBuilder,
) -> candle_core::Result<Linear> {
    match layout {
        ClipLayout::HuggingFace => linear_no_bias(inputs, outputs, vb.pp(hugging_face)),
        ClipLayout::OpenAi => Ok(Linear::new(vb.get((inputs, outputs), open_ai)?.t()?, None)),
    }
}
