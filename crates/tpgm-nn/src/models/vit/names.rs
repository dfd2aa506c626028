//! What checkpoints of vision transformers call their tensors.

use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::attention::{AttentionNames, InputNames};
use crate::models::block::BlockNames;
use crate::models::config::full_name;
use crate::models::image::ImageNames;

/// Whose names a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitLayout {
    /// `embeddings.cls_token`, `encoder.layer.0.attention.attention.query`, `layernorm`, `classifier`; with a head, all but
    /// the head under `vit.`.
    HuggingFace,
    /// The same but for the blocks, `encoder.layer.0.norm1`; with a head, all but the head under `dinov2.` or
    /// `dinov2_with_registers.`.
    HuggingFaceDinov2,
    /// `cls_token`, `blocks.0.attn.qkv`, `norm`, `head`; DINOv2's own files too.
    Timm,
}

impl VitLayout {
    /// The layout of the encoder that `vb` has.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayout`] if it has neither class token.
    pub fn find(vb: &VarBuilder) -> Result<Self> {
        let [hugging_face, timm] = [&HUGGING_FACE, &TIMM].map(|names| names.class_token);
        match () {
            () if vb.contains_tensor(hugging_face) && vb.contains_tensor("encoder.layer.0.norm1.weight") => {
                Ok(VitLayout::HuggingFaceDinov2)
            }
            () if vb.contains_tensor(hugging_face) => Ok(VitLayout::HuggingFace),
            () if vb.contains_tensor(timm) => Ok(VitLayout::Timm),
            () => Err(Error::UnknownLayout {
                model: "ViT",
                prefix: vb.prefix(),
                tensors: vec![hugging_face, timm],
            }),
        }
    }

    fn names(self) -> &'static ImageNames {
        match self {
            VitLayout::HuggingFace => &HUGGING_FACE,
            VitLayout::HuggingFaceDinov2 => &HUGGING_FACE_DINOV2,
            VitLayout::Timm => &TIMM,
        }
    }

    /// The names, with those parts that only some checkpoints have.
    ///
    /// # Errors
    ///
    /// [`Error::ModelTensor`] for a part that is not supported.
    pub(super) fn found(self, vb: &VarBuilder) -> Result<ImageNames> {
        for (tensor, problem) in UNSUPPORTED {
            if vb.contains_tensor(tensor) {
                let (tensor, problem) = (full_name(vb, tensor), problem.to_owned());
                return Err(Error::ModelTensor { tensor, problem });
            }
        }
        let names = *self.names();
        if self == VitLayout::Timm && vb.contains_tensor("norm_pre.weight") {
            let patch_bias = vb.contains_tensor("patch_embed.proj.bias");
            return Ok(ImageNames { first_norm: Some("norm_pre"), patch_bias, ..names });
        }
        Ok(names)
    }

    pub(super) fn head(self) -> &'static str {
        match self {
            VitLayout::HuggingFace | VitLayout::HuggingFaceDinov2 => "classifier",
            VitLayout::Timm => "head",
        }
    }
}

/// Where the encoder is: under a prefix that Hugging Face's models with a head have, or at the top.
pub(super) fn encoder<'a>(vb: &VarBuilder<'a>) -> VarBuilder<'a> {
    let inner = ["vit", "dinov2", "dinov2_with_registers"].map(|prefix| vb.pp(prefix));
    let inside = |vb: &VarBuilder| vb.contains_tensor(HUGGING_FACE.class_token);
    inner.into_iter().find(inside).unwrap_or_else(|| vb.clone())
}

/// What other models of these names have, and the reason why it cannot be left out.
const UNSUPPORTED: [(&str, &str); 5] = [
    ("fc_norm.weight", "its features are a norm of the mean over the patches, which is not supported"),
    ("dist_token", DISTILLED),
    ("embeddings.distillation_token", DISTILLED),
    ("attn_pool.latent", "its features are pooled by an attention, which is not supported"),
    ("head_dist.weight", DISTILLED),
];

const DISTILLED: &str = "a distilled DeiT has a second class token and head, which are not supported";

const HUGGING_FACE: ImageNames = ImageNames {
    patches: "embeddings.patch_embeddings.projection",
    patch_bias: true,
    class_token: "embeddings.cls_token",
    registers: &[],
    positions: "embeddings.position_embeddings",
    batched: true,
    first_norm: None,
    blocks: "encoder.layer",
    block: BlockNames {
        norms: ["layernorm_before", "layernorm_after"],
        attention: AttentionNames {
            inputs: InputNames::Separate([
                "attention.attention.query",
                "attention.attention.key",
                "attention.attention.value",
            ]),
            output: "attention.output.dense",
        },
        feed: ["intermediate.dense", "output.dense"],
        gated_feed: &[],
        scales: None,
        qk_norms: None,
    },
    last_norm: "layernorm",
};

const HUGGING_FACE_DINOV2: ImageNames = ImageNames {
    registers: &["embeddings.register_tokens"],
    block: BlockNames {
        norms: ["norm1", "norm2"],
        feed: ["mlp.fc1", "mlp.fc2"],
        gated_feed: &[["mlp.weights_in", "mlp.weights_out"]],
        scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
        ..HUGGING_FACE.block
    },
    ..HUGGING_FACE
};

const TIMM: ImageNames = ImageNames {
    patches: "patch_embed.proj",
    patch_bias: true,
    class_token: "cls_token",
    registers: &["reg_token", "register_tokens"],
    positions: "pos_embed",
    batched: true,
    first_norm: None,
    blocks: "blocks",
    block: BlockNames {
        norms: ["norm1", "norm2"],
        attention: AttentionNames { inputs: InputNames::Joined("attn.qkv"), output: "attn.proj" },
        feed: ["mlp.fc1", "mlp.fc2"],
        gated_feed: &[["mlp.fc1", "mlp.fc2"], ["mlp.w12", "mlp.w3"]],
        scales: Some(["ls1.gamma", "ls2.gamma"]),
        qk_norms: Some(["attn.q_norm", "attn.k_norm"]),
    },
    last_norm: "norm",
};
