//! Kinds of models against the names that published code and the library's models have.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use serde_json::{Map, Value};
use tpgm_nn::DropoutRng;
use tpgm_nn::models::bert::{Bert, BertConfig};
use tpgm_nn::models::clip::{Clip, ClipConfig, ClipImageConfig, ClipLayout, ClipTextConfig, ClipVitConfig};
use tpgm_nn::models::llama::{Llama, LlamaConfig};
use tpgm_nn::models::vit::{Vit, VitConfig, VitLayout};

use crate::kind::{Found, Role};

/// Names of the weights of a model that other people's code made, of the tests of `tpgm-nn`: its own tests load them, and use all.
fn reference(file: &str, model: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tpgm-nn/tests/reference").join(file);
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let prefix = format!("{model}/weights/");
    let names: Vec<_> =
        header.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect();
    assert!(!names.is_empty(), "{model}");
    names
}

/// The kind's name, its prefix, and the names of each role.
fn found<'a>(names: &'a [String]) -> (&'static str, &'a str, impl Fn(Role) -> Vec<&'a str>) {
    let set: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let found = Found::new(&set).unwrap_or_else(|| panic!("{names:?}"));
    assert!(found.refused(&set, None).is_empty());
    let of = move |role| set.iter().copied().filter(|name| found.role(name) == role).collect();
    (found.name(), found.prefix, of)
}

#[test]
fn weights_of_published_code_are_known_to_the_last() {
    const VIT: &str = "ViT or DINOv2 (timm)";
    const BERT: &str = "BERT or RoBERTa (Hugging Face)";
    const DINOV2: &str = "DINOv2 (Hugging Face)";
    const TIMM: &str = "EfficientNet or MobileNet (timm)";
    const PACKAGE: &str = "EfficientNet (package `efficientnet_pytorch`)";
    for (file, model, kind, heads) in [
        ("families", "roberta", BERT, 0),
        ("families", "xlm_roberta", BERT, 0),
        ("families", "camembert", BERT, 0),
        ("families", "distilbert", "DistilBERT (Hugging Face)", 0),
        ("families", "dinov2", DINOV2, 0),
        ("families", "dinov2_registers", DINOV2, 0),
        ("families", "dinov2_swiglu", DINOV2, 0),
        ("families", "original_registers", VIT, 0),
        ("families", "original_swiglu", VIT, 0),
        ("families", "timm_pre_norm", VIT, 0),
        ("families", "timm_qk_norm", VIT, 0),
        ("families", "timm_registers", VIT, 0),
        ("families", "timm_registers_embedded", VIT, 0),
        ("families", "timm_scaled", VIT, 0),
        ("families", "timm_swiglu", VIT, 0),
        ("reference", "timm", VIT, 2),
        ("reference", "clip_vit", "CLIP with a ViT (OpenAI, OpenCLIP)", 0),
        ("reference", "clip_resnet", "CLIP with a ResNet (OpenAI, OpenCLIP)", 0),
        ("reference", "resnet_basic", "ResNet (torchvision)", 2),
        ("efficientnets", "package_b", PACKAGE, 2),
        ("efficientnets", "package_lite", PACKAGE, 2),
        ("efficientnets", "tf_b", TIMM, 2),
        ("efficientnets", "timm_v3", TIMM, 2),
        ("efficientnets", "torchvision_b", "EfficientNet (torchvision)", 2),
        ("efficientnets", "torchvision_v2", "MobileNetV2 (torchvision)", 2),
        ("efficientnets", "torchvision_v3", "MobileNetV3 (torchvision)", 2),
    ] {
        let mut names = reference(&format!("{file}.safetensors"), model);
        names.push("stray.weight".to_owned());
        let (name, prefix, of) = found(&names);
        assert_eq!((name, prefix), (kind, ""), "{model}");
        // What pre-training alone needs stands in some of them.
        let unused: Vec<_> = of(Role::Unused)
            .into_iter()
            .filter(|name| *name != "embeddings.mask_token" && *name != "mask_token")
            .collect();
        assert_eq!(unused, ["stray.weight"], "{model}");
        assert_eq!(of(Role::Head).len(), heads, "{model}: {:?}", of(Role::Head));
    }
}

#[test]
fn what_is_beside_the_encoder_of_moco_is_unused() {
    let names = reference("reference.safetensors", "moco");
    let (name, prefix, of) = found(&names);
    assert_eq!((name, prefix), ("ResNet (torchvision)", "module.base_encoder."));
    let beside = |name: &&str| {
        !name.starts_with("module.base_encoder.") || name.starts_with("module.base_encoder.fc.")
    };
    assert!(of(Role::Unused).iter().all(beside), "{:?}", of(Role::Unused));
    assert!(of(Role::Unused).contains(&"module.predictor.0.weight"));
    assert!(of(Role::Weight).len() > 30);
}

#[test]
fn the_librarys_models_ask_for_what_is_called_used() {
    let tiny_bert = BertConfig {
        vocab_size: 7,
        hidden_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 8,
        max_position_embeddings: 6,
        ..BertConfig::default()
    };
    let tiny_vit = VitConfig {
        hidden_size: 4,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        image_size: 4,
        patch_size: 2,
        ..VitConfig::default()
    };
    let tiny_llama = LlamaConfig {
        vocab_size: 7,
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: Some(1),
        ..LlamaConfig::default()
    };
    let tiny_clip = ClipConfig {
        projection_dim: 5,
        text: ClipTextConfig {
            vocab_size: 19,
            hidden_size: 4,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            max_position_embeddings: 7,
            eos_token_id: 18,
            ..ClipTextConfig::default()
        },
        image: ClipImageConfig::Vit(ClipVitConfig {
            hidden_size: 4,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            image_size: 4,
            patch_size: 2,
            ..ClipVitConfig::default()
        }),
    };
    let dropout = DropoutRng::new(0);
    type Build<'a> = &'a dyn Fn(VarBuilder) -> tpgm_nn::Result<()>;
    let models: [(&str, Build<'_>); 5] = [
        ("BERT or RoBERTa (Hugging Face)", &|vb| Bert::new(&tiny_bert, &dropout, vb).map(drop)),
        ("ViT (Hugging Face)", &|vb| {
            Vit::with_layout(&tiny_vit, VitLayout::HuggingFace, &dropout, vb).map(drop)
        }),
        ("ViT or DINOv2 (timm)", &|vb| Vit::with_layout(&tiny_vit, VitLayout::Timm, &dropout, vb).map(drop)),
        ("CLIP with a ViT (Hugging Face)", &|vb| {
            Clip::with_layout(&tiny_clip, ClipLayout::HuggingFace, vb).map(drop)
        }),
        ("Llama, Qwen2 or another decoder of this kind (Hugging Face)", &|vb| {
            Llama::new(&tiny_llama, vb).map(drop)
        }),
    ];
    for (kind, build) in models {
        let map = VarMap::new();
        build(VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu)).unwrap();
        let names: Vec<String> = map.data().lock().unwrap().keys().cloned().collect();
        let (name, prefix, of) = found(&names);
        assert_eq!((name, prefix), (kind, ""));
        assert_eq!(of(Role::Weight).len(), names.len(), "{kind}: {:?}", of(Role::Unused));
    }
}
