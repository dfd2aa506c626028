//! Tensors of a checkpoint that a model left out though it took their neighbors.
//!
//! A model that does not know of a checkpoint's LayerScale, or of the norms of its queries and keys, loads without a
//! complaint and computes something else. So every tensor of a *block* of which something was taken must have been asked for.
//! A block is
//!
//! - what is numbered: `encoder.layer.3`, `blocks.0`; also `layers.1` with the `layers.1.blocks.0` inside it. A number in
//!   front is none (`0.auto_model`): that is how containers name their parts;
//! - a module called `embeddings` or `patch_embed`;
//! - one layer: the weight and the bias of one module.
//!
//! Everything else may be left out: poolers, heads of the pre-training task, the other tower of a CLIP.

use std::collections::HashSet;

/// What models compute anew, by the last part of its name. `mask_token` is used in pre-training only; `total_ops` is left
/// behind by a profiler.
const COMPUTED: [&str; 23] = [
    "num_batches_tracked",
    "position_ids",
    "token_type_ids",
    "inv_freq",
    "original_inv_freq",
    "masked_bias",
    "attn_mask",
    "causal_mask",
    "relative_position_index",
    "relative_coords_table",
    "cos_cached",
    "sin_cached",
    "freqs_cis",
    "freqs_cos",
    "freqs_sin",
    "embed_positions",
    "mask_token",
    "n_averaged",
    "version",
    "_float_tensor",
    "_extra_state",
    "total_ops",
    "total_params",
];

/// Parts of one layer.
const LAYER: [&str; 12] = [
    "weight",
    "bias",
    "gamma",
    "beta",
    "weight_g",
    "weight_v",
    "weight_scale",
    "scale",
    "running_mean",
    "running_var",
    "in_proj_weight",
    "in_proj_bias",
];

/// Modules whose parts are all added up.
const SUMS: [&str; 2] = ["embeddings", "patch_embed"];

/// The blocks of which something was taken.
#[derive(Debug, Default)]
pub(super) struct Blocks<'a> {
    taken: HashSet<Block<'a>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Block<'a> {
    Module(&'a str),
    Layer(&'a str),
}

impl<'a> Blocks<'a> {
    /// Takes note of a tensor of the checkpoint that the model asked for.
    pub(super) fn take(&mut self, name: &'a str) {
        self.taken.extend(blocks(name));
    }

    /// Should the model have asked for this tensor too?
    pub(super) fn miss(&self, name: &str, shape: &[usize], float: bool) -> bool {
        let leaf = name.rsplit('.').next().unwrap_or(name);
        // GPT-2 keeps its causal mask as `attn.bias`, with four dimensions.
        let mask = leaf == "bias" && shape.len() > 2;
        // Integers are positions, indices and masks.
        float && !mask && !COMPUTED.contains(&leaf) && blocks(name).any(|block| self.taken.contains(&block))
    }
}

/// The blocks around a tensor.
fn blocks(name: &str) -> impl Iterator<Item = Block<'_>> {
    let dots = name.match_indices('.').map(|(dot, _)| dot);
    let modules = dots.filter_map(|dot| {
        let module = &name[..dot];
        let (parent, last) = module.rsplit_once('.').unwrap_or(("", module));
        let container = matches!(parent, "" | "module" | "_orig_mod");
        let numbered = !container && !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
        (numbered || SUMS.contains(&last)).then_some(Block::Module(module))
    });
    let layer = name.rsplit_once('.').filter(|(_, leaf)| LAYER.contains(leaf));
    modules.chain(layer.map(|(module, _)| Block::Layer(module)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of `left` are missed by a model that took `taken`.
    fn missed<'a>(taken: &[&str], left: &[&'a str]) -> Vec<&'a str> {
        let mut blocks = Blocks::default();
        taken.iter().for_each(|name| blocks.take(name));
        left.iter().copied().filter(|name| blocks.miss(name, &[2], true)).collect()
    }

    #[test]
    fn what_belongs_to_a_block_is_missed() {
        for (taken, left) in [
            ("blocks.3.norm1.weight", "blocks.3.ls1.gamma"),
            ("blocks.3.attn.qkv.weight", "blocks.3.attn.q_norm.weight"),
            ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias"),
            ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.lora_A.weight"),
            ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale"),
            (
                "encoder.layer.11.attention.self.query.weight",
                "encoder.layer.11.crossattention.self.query.weight",
            ),
            ("layers.0.blocks.0.attn.qkv.weight", "layers.0.blocks.1.attn.qkv.weight"),
            ("layers.0.blocks.0.attn.qkv.weight", "layers.0.downsample.reduction.weight"),
            ("module.layer1.0.bn1.weight", "module.layer1.0.bn1.running_var"),
            ("bert.embeddings.word_embeddings.weight", "bert.embeddings.token_type_embeddings.weight"),
            ("patch_embed.proj.weight", "patch_embed.norm.weight"),
            ("fc.weight", "fc.bias"),
            ("norm.weight", "norm.beta"),
            ("0.weight", "0.bias"),
        ] {
            assert_eq!(missed(&[taken], &[left]), [left]);
        }
    }

    #[test]
    fn what_may_be_left_out_is_not() {
        let bert = ["bert.embeddings.LayerNorm.weight", "bert.encoder.layer.0.output.dense.weight"];
        let heads = [
            "bert.pooler.dense.weight",
            "cls.predictions.bias",
            "cls.predictions.transform.LayerNorm.gamma",
            "cls.seq_relationship.weight",
            "bert.embeddings.position_ids",
            "bert.encoder.layer.1.output.dense.weight",
            "classifier.0.weight",
        ];
        assert_eq!(missed(&bert, &heads), [""; 0]);
        let clip =
            ["visual.transformer.resblocks.0.ln_1.weight", "visual.class_embedding", "visual.ln_pre.bias"];
        let rest = [
            "visual.proj",
            "visual.ln_post.weight",
            "transformer.resblocks.0.ln_1.weight",
            "logit_scale",
            "text_projection",
            "token_embedding.weight",
        ];
        assert_eq!(missed(&clip, &rest), [""; 0]);
        let resnet =
            ["module.conv1.weight", "module.layer1.0.bn1.weight", "0.auto_model.encoder.layer.0.x.bias"];
        let rest = [
            "module.fc.weight",
            "module.layer1.0.bn1.num_batches_tracked",
            "0.auto_model.pooler.dense.weight",
            "module.layer1.0.total_ops",
        ];
        assert_eq!(missed(&resnet, &rest), [""; 0]);
        let llama = ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"];
        let rest = ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight", "model.norm.weight"];
        assert_eq!(missed(&llama, &rest), [""; 0]);
        let vit = ["vit.embeddings.cls_token", "h.0.attn.c_attn.weight"];
        assert_eq!(missed(&vit, &["vit.embeddings.mask_token", "h.0.attn.masked_bias"]), [""; 0]);

        let mut blocks = Blocks::default();
        blocks.take("h.0.attn.c_attn.weight");
        assert!(!blocks.miss("h.0.attn.bias", &[1, 1, 8, 8], true), "a causal mask");
        assert!(!blocks.miss("h.0.attn.index", &[8], false), "integers");
    }
}
