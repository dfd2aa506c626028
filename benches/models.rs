//! Names and shapes of the tensors of real models.

use std::fmt;
use std::str::FromStr;

use tpgm_core::{DType, ParamSet, TensorSpec};

/// A model whose trainable tensors are known by name and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Model {
    /// ViT-B/16 at 224 pixels with a 1000-class head, names as in timm's `vit_base_patch16_224`: 152 tensors.
    VitB16,
    /// ResNet-50 with a 1000-class head, names as in torchvision: 161 tensors. Running statistics are no parameters.
    ResNet50,
    /// all-MiniLM-L6-v2 without its pooler, names as in its published checkpoint: 101 tensors.
    MiniLm,
    /// The vision tower of CLIP ViT-L/14 at 224 pixels with its projection, names as in OpenAI's code (`visual.`
    /// removed): 296 tensors.
    ClipVitL14,
    /// Llama 3.2 1B, the output projection tied to the embedding, names as in its published checkpoint: 146 tensors.
    Llama32B1,
    /// No real model: three small tensors to try a harness with. They fit in any cache, so times mean nothing.
    Tiny,
}

impl Model {
    /// All models.
    pub const ALL: [Model; 6] =
        [Model::VitB16, Model::ResNet50, Model::MiniLm, Model::ClipVitL14, Model::Llama32B1, Model::Tiny];

    /// Name on command lines and in result files.
    pub const fn name(self) -> &'static str {
        match self {
            Model::VitB16 => "vit-b-16",
            Model::ResNet50 => "resnet-50",
            Model::MiniLm => "minilm",
            Model::ClipVitL14 => "clip-vit-l-14",
            Model::Llama32B1 => "llama-3.2-1b",
            Model::Tiny => "tiny",
        }
    }

    /// Its tensors in the order of the model's own listing, all of one element type.
    pub fn tensors(self, dtype: DType) -> Vec<TensorSpec> {
        let mut list = List { tensors: Vec::new(), dtype };
        match self {
            Model::VitB16 => list.vit_b_16(),
            Model::ResNet50 => list.resnet_50(),
            Model::MiniLm => list.minilm(),
            Model::ClipVitL14 => list.clip_vit_l_14(),
            Model::Llama32B1 => list.llama_3_2_1b(),
            Model::Tiny => list.tiny(),
        }
        list.tensors
    }

    /// Its tensors as one set without groups: every tensor is constrained, with its pre-trained value as anchor.
    ///
    /// # Errors
    ///
    /// None in practice: the names of each list are unique.
    pub fn param_set(self, dtype: DType) -> tpgm_core::Result<ParamSet> {
        ParamSet::builder().tensors(self.tensors(dtype)).build()
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Model {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Model::ALL.into_iter().find(|model| model.name() == name).ok_or_else(|| {
            let known: Vec<_> = Model::ALL.into_iter().map(Model::name).collect();
            format!("no model `{name}`; known are {}", known.join(", "))
        })
    }
}

struct List {
    tensors: Vec<TensorSpec>,
    dtype: DType,
}

impl List {
    fn tensor(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.tensors.push(TensorSpec { name: name.into(), shape: shape.to_vec(), dtype: self.dtype });
    }

    /// A weight and a bias of its outermost dimension: linear layers, convolutions, normalization layers.
    fn affine(&mut self, name: &str, shape: &[usize]) {
        self.tensor(format!("{name}.weight"), shape);
        self.tensor(format!("{name}.bias"), &shape[..1]);
    }

    fn vit_b_16(&mut self) {
        let width = 768;
        self.tensor("cls_token", &[1, 1, width]);
        self.tensor("pos_embed", &[1, 1 + 14 * 14, width]);
        self.affine("patch_embed.proj", &[width, 3, 16, 16]);
        for i in 0..12 {
            self.affine(&format!("blocks.{i}.norm1"), &[width]);
            self.affine(&format!("blocks.{i}.attn.qkv"), &[3 * width, width]);
            self.affine(&format!("blocks.{i}.attn.proj"), &[width, width]);
            self.affine(&format!("blocks.{i}.norm2"), &[width]);
            self.affine(&format!("blocks.{i}.mlp.fc1"), &[4 * width, width]);
            self.affine(&format!("blocks.{i}.mlp.fc2"), &[width, 4 * width]);
        }
        self.affine("norm", &[width]);
        self.affine("head", &[1000, width]);
    }

    fn resnet_50(&mut self) {
        self.tensor("conv1.weight", &[64, 3, 7, 7]);
        self.affine("bn1", &[64]);
        let mut input = 64;
        for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
            let width = 64 << stage;
            let output = 4 * width;
            for block in 0..blocks {
                let name = format!("layer{}.{block}", stage + 1);
                self.tensor(format!("{name}.conv1.weight"), &[width, input, 1, 1]);
                self.affine(&format!("{name}.bn1"), &[width]);
                self.tensor(format!("{name}.conv2.weight"), &[width, width, 3, 3]);
                self.affine(&format!("{name}.bn2"), &[width]);
                self.tensor(format!("{name}.conv3.weight"), &[output, width, 1, 1]);
                self.affine(&format!("{name}.bn3"), &[output]);
                if block == 0 {
                    self.tensor(format!("{name}.downsample.0.weight"), &[output, input, 1, 1]);
                    self.affine(&format!("{name}.downsample.1"), &[output]);
                }
                input = output;
            }
        }
        self.affine("fc", &[1000, input]);
    }

    fn minilm(&mut self) {
        let width = 384;
        for (table, entries) in [("word", 30_522), ("position", 512), ("token_type", 2)] {
            self.tensor(format!("embeddings.{table}_embeddings.weight"), &[entries, width]);
        }
        self.affine("embeddings.LayerNorm", &[width]);
        for i in 0..6 {
            let name = format!("encoder.layer.{i}");
            for part in ["self.query", "self.key", "self.value", "output.dense"] {
                self.affine(&format!("{name}.attention.{part}"), &[width, width]);
            }
            self.affine(&format!("{name}.attention.output.LayerNorm"), &[width]);
            self.affine(&format!("{name}.intermediate.dense"), &[4 * width, width]);
            self.affine(&format!("{name}.output.dense"), &[width, 4 * width]);
            self.affine(&format!("{name}.output.LayerNorm"), &[width]);
        }
    }

    fn clip_vit_l_14(&mut self) {
        let width = 1024;
        self.tensor("class_embedding", &[width]);
        self.tensor("positional_embedding", &[1 + 16 * 16, width]);
        self.tensor("proj", &[width, 768]);
        self.tensor("conv1.weight", &[width, 3, 14, 14]);
        self.affine("ln_pre", &[width]);
        for i in 0..24 {
            let name = format!("transformer.resblocks.{i}");
            self.tensor(format!("{name}.attn.in_proj_weight"), &[3 * width, width]);
            self.tensor(format!("{name}.attn.in_proj_bias"), &[3 * width]);
            self.affine(&format!("{name}.attn.out_proj"), &[width, width]);
            self.affine(&format!("{name}.ln_1"), &[width]);
            self.affine(&format!("{name}.mlp.c_fc"), &[4 * width, width]);
            self.affine(&format!("{name}.mlp.c_proj"), &[width, 4 * width]);
            self.affine(&format!("{name}.ln_2"), &[width]);
        }
        self.affine("ln_post", &[width]);
    }

    fn llama_3_2_1b(&mut self) {
        let (width, key_value, hidden) = (2048, 8 * 64, 8192);
        self.tensor("model.embed_tokens.weight", &[128_256, width]);
        for i in 0..16 {
            let mut weight = |name: &str, shape: &[usize]| {
                self.tensor(format!("model.layers.{i}.{name}.weight"), shape);
            };
            weight("self_attn.q_proj", &[width, width]);
            weight("self_attn.k_proj", &[key_value, width]);
            weight("self_attn.v_proj", &[key_value, width]);
            weight("self_attn.o_proj", &[width, width]);
            weight("mlp.gate_proj", &[hidden, width]);
            weight("mlp.up_proj", &[hidden, width]);
            weight("mlp.down_proj", &[width, hidden]);
            weight("input_layernorm", &[width]);
            weight("post_attention_layernorm", &[width]);
        }
        self.tensor("model.norm.weight", &[width]);
    }

    /// Odd sizes, several rows, one row.
    fn tiny(&mut self) {
        self.affine("a", &[129, 65]);
        self.tensor("b", &[1, 2051]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Totals as published: timm and torchvision print the first two; MiniLM's checkpoint has 22,713,216 parameters, 384 * 385 of
    // them in the pooler; CLIP's vision tower has 303,179,776 parameters in
    // transformers' `CLIPVisionModel` and 1024 * 768 more in the projection; the Llama model card's 1.23B, exactly.
    #[test]
    fn lists_have_the_published_number_of_tensors_and_parameters() {
        let published = [
            (Model::VitB16, 152, 86_567_656),
            (Model::ResNet50, 161, 25_557_032),
            (Model::MiniLm, 101, 22_713_216 - 384 * 385),
            (Model::ClipVitL14, 296, 303_179_776 + 1024 * 768),
            (Model::Llama32B1, 146, 1_235_814_400),
        ];
        for (model, tensors, parameters) in published {
            let set = model.param_set(DType::BF16).unwrap();
            assert!(set.tensors().iter().all(|spec| spec.dtype == DType::BF16));
            assert_eq!((set.len(), set.numel()), (tensors, parameters), "{model}");
        }
    }

    #[test]
    fn well_known_tensors_have_their_shapes() {
        let known: [(Model, &str, &[usize]); 6] = [
            (Model::VitB16, "blocks.11.attn.qkv.weight", &[2304, 768]),
            (Model::VitB16, "head.bias", &[1000]),
            (Model::ResNet50, "layer1.0.downsample.0.weight", &[256, 64, 1, 1]),
            (Model::ResNet50, "layer4.2.conv2.weight", &[512, 512, 3, 3]),
            (Model::ClipVitL14, "positional_embedding", &[257, 1024]),
            (Model::Llama32B1, "model.layers.15.self_attn.k_proj.weight", &[512, 2048]),
        ];
        for (model, name, shape) in known {
            let set = model.param_set(DType::F32).unwrap();
            let spec = &set.tensors()[set.position(name).unwrap()];
            assert_eq!(spec.shape, shape, "{model} {name}");
        }
    }

    #[test]
    fn models_are_found_by_name_and_a_mistake_lists_the_names() {
        for model in Model::ALL {
            assert_eq!(model.name().parse(), Ok(model));
        }
        let error = "vit-b16".parse::<Model>().unwrap_err();
        assert!(error.contains("vit-b16") && error.contains("vit-b-16"), "{error}");
    }
}
