//! CLIP.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::clip::{self as other, text_model, vision_model};
use tpgm_candle::models::Activation;
use tpgm_candle::models::clip::{
    Clip, ClipClassifier, ClipConfig, ClipImage, ClipImageConfig, ClipLayout, ClipResNetConfig, ClipText,
    ClipTextConfig, ClipVitConfig,
};
use tpgm_candle::nn::{Statistics, cross_entropy};
use tpgm_candle::{Anchor, Audit, Params, nn};

use super::{Reference, checkpoint, images, parameters, relative_deviation};

/// As in `make_reference.py`.
pub(super) fn tiny() -> ClipConfig {
    ClipConfig {
        projection_dim: 5,
        text: ClipTextConfig {
            vocab_size: 19,
            hidden_size: 6,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 7,
            eos_token_id: 18,
            ..ClipTextConfig::default()
        },
        image: ClipImageConfig::Vit(ClipVitConfig {
            hidden_size: 8,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 6,
            patch_size: 3,
            ..ClipVitConfig::default()
        }),
    }
}

fn tiny_resnet(layers: [usize; 4], statistics: Statistics) -> ClipConfig {
    let image = ClipResNetConfig { layers, width: 2, heads: 2, image_size: 64, channels: 3, statistics };
    ClipConfig { image: ClipImageConfig::ResNet(image), ..tiny() }
}

/// Three texts of different lengths.
fn ids() -> Tensor {
    let ids = [[17u32, 3, 9, 18, 0, 0, 0], [17, 18, 0, 0, 0, 0, 0], [17, 1, 2, 3, 4, 5, 18]];
    Tensor::new(&ids, &Device::Cpu).unwrap()
}

/// A checkpoint in f64.
pub(super) fn params(folder: &std::path::Path, config: &ClipConfig, layout: ClipLayout) -> Params {
    let path = folder.join("model.safetensors");
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    Clip::with_layout(config, layout, vb).unwrap();
    checkpoint(&map, &path);
    Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64)
}

#[test]
fn it_computes_what_candle_transformers_computes() {
    let config = tiny();
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let model = Clip::with_layout(&config, ClipLayout::HuggingFace, vb.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    checkpoint(&map, &folder.path().join("model.safetensors"));
    let text_config = text_model::ClipTextConfig {
        vocab_size: 19,
        embed_dim: 6,
        activation: text_model::Activation::QuickGelu,
        intermediate_size: 24,
        max_position_embeddings: 7,
        pad_with: None,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        projection_dim: 5,
    };
    let vision_config = vision_model::ClipVisionConfig {
        embed_dim: 8,
        activation: text_model::Activation::QuickGelu,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        projection_dim: 5,
        num_channels: 3,
        image_size: 6,
        patch_size: 3,
    };
    let config =
        other::ClipConfig { text_config, vision_config, logit_scale_init_value: 2.6592, image_size: 6 };
    let other = other::ClipModel::new(vb, &config).unwrap();
    let images = images((2, 3, 6, 6), DType::F32);
    let (_, per_image) = other.forward(&images, &ids()).unwrap();
    for (what, got, expected) in [
        ("images", model.image().forward(&images, false), other.get_image_features(&images)),
        ("texts", model.text().forward(&ids()), other.get_text_features(&ids())),
        ("logits", model.forward(&images, &ids(), false), Ok(per_image)),
    ] {
        let deviation = relative_deviation(&got.unwrap(), &expected.unwrap());
        assert!(deviation < 2e-5, "{what}: {deviation:e}");
    }
}

#[test]
fn openai_checkpoints_compute_what_pytorch_computes() {
    for (name, config) in
        [("clip_vit", tiny()), ("clip_resnet", tiny_resnet([1, 2, 1, 1], Statistics::Batch))]
    {
        let reference = Reference::new(name);
        let params = reference.params();
        let model = Clip::new(&config, params.var_builder()).unwrap();
        params.report().unwrap().require_all_used().unwrap();
        let (images, ids) = (reference.wide("images"), reference.get("ids"));
        for (what, got) in [
            ("image_features", model.image().forward(&images, false)),
            ("text_features", model.text().forward(&ids)),
            ("logits", model.forward(&images, &ids, false)),
        ] {
            let deviation = relative_deviation(&got.unwrap(), &reference.get(what));
            assert!(deviation < 1e-12, "{name}: {what}: {deviation:e}");
        }
        if name == "clip_resnet" {
            let got = model.image().forward(&images, true).unwrap();
            let deviation = relative_deviation(&got, &reference.get("train"));
            assert!(deviation < 1e-12, "{deviation:e}");
        }
    }
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let folder = tempfile::tempdir().unwrap();
    let labels = Tensor::new(&[2u32, 0], &Device::Cpu).unwrap();
    let text = |separate: bool| 2 + 2 * if separate { 16 } else { 12 } + 2 + 1;
    let vit = |separate: bool| 3 + 2 + 2 * if separate { 16 } else { 12 } + 2 + 1;
    let resnet = 9 + 4 * (9 + 3) + 9;
    for (config, layout, side, eps, tensors) in [
        (tiny(), ClipLayout::HuggingFace, 6, 1e-5, text(true) + vit(true) + 1),
        (tiny(), ClipLayout::OpenAi, 6, 1e-5, text(false) + vit(false) + 1),
        (tiny_resnet([1; 4], Statistics::Batch), ClipLayout::OpenAi, 64, 1e-7, text(false) + resnet + 1),
    ] {
        let params = params(folder.path(), &config, layout);
        let model = Clip::new(&config, params.var_builder()).unwrap();
        let images = images((2, 3, side, side), DType::F64);
        let loss = || cross_entropy(&model.forward(&images, &ids(), true)?, &labels);
        let report = Audit::new(&params).finite_differences(4, eps).run(loss).unwrap();
        // A key's bias adds the same to all scores of a row, which softmax does not see: its gradient is rounding errors.
        let expected = |name: &String| name.ends_with("k_proj.bias");
        assert!(report.zero.is_empty() && report.inconclusive.iter().all(expected), "{layout:?}: {report}");
        assert_eq!((params.all().len(), report.checked), (tensors, tensors - report.inconclusive.len()));
    }
}

#[test]
fn padding_changes_nothing_and_tokens_do_not_see_what_follows() {
    let folder = tempfile::tempdir().unwrap();
    let params = params(folder.path(), &tiny(), ClipLayout::OpenAi);
    let model = ClipText::new(&tiny(), ClipLayout::OpenAi, params.var_builder()).unwrap();
    let all = model.forward(&ids()).unwrap().narrow(0, 0, 1).unwrap();
    for padded in [&[17u32, 3, 9, 18][..], &[17, 3, 9, 18, 18, 18], &[17, 3, 9, 18, 4, 5, 6]] {
        let ids = Tensor::new(padded, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let alone = model.forward(&ids).unwrap();
        assert!(relative_deviation(&alone, &all) < 1e-12);
    }
    let other = Tensor::new(&[[17u32, 4, 9, 18]], &Device::Cpu).unwrap();
    assert!(relative_deviation(&model.forward(&other).unwrap(), &all) > 1e-3);
}

#[test]
fn where_a_text_ends() {
    let folder = tempfile::tempdir().unwrap();
    let params = params(folder.path(), &tiny(), ClipLayout::OpenAi);
    let model = |end| {
        let text = ClipTextConfig { eos_token_id: end, ..tiny().text };
        let config = ClipConfig { text, ..tiny() };
        ClipText::new(&config, ClipLayout::OpenAi, params.var_builder()).unwrap()
    };
    let expected = model(18).forward(&ids()).unwrap();
    assert_eq!(relative_deviation(&model(2).forward(&ids()).unwrap(), &expected), 0.0);
    let error = model(9).forward(&ids()).unwrap_err().to_string();
    assert!(error.contains("text 1") && error.contains("(9)"), "{error}");
}

#[test]
fn a_classifier_starts_from_zero_shot() {
    let folder = tempfile::tempdir().unwrap();
    for (config, layout, side) in [
        (tiny(), ClipLayout::HuggingFace, 6),
        (tiny(), ClipLayout::OpenAi, 6),
        (tiny_resnet([1; 4], Statistics::Batch), ClipLayout::OpenAi, 64),
    ] {
        let frozen = params(folder.path(), &config, layout).freeze("*");
        let clip = Clip::new(&config, frozen.var_builder()).unwrap();
        let images = images((2, 3, side, side), DType::F64);
        // One prompt for each class: the head gives the whole model's logits.
        let single: Vec<Tensor> = (0..3).map(|i| ids().narrow(0, i, 1).unwrap()).collect();
        let weight = clip.zero_shot(&single).unwrap();
        let params = params(folder.path(), &config, layout).head("classifier.*").freeze("logit_scale");
        let model = ClipClassifier::new(&config, 3, params.var_builder()).unwrap();
        model.start_from(&weight).unwrap();
        let expected = clip.forward(&images, &ids(), false).unwrap();
        let deviation = relative_deviation(&model.forward(&images, false).unwrap(), &expected);
        assert!(deviation < 1e-12, "{deviation:e}");

        // The text tower was not asked for; everything else is trained.
        let report = params.report().unwrap();
        assert!(report.unused.iter().all(|name| !name.starts_with("vis")) && !report.unused.is_empty());
        assert_eq!(
            (report.fresh, report.frozen),
            (vec!["classifier.weight".to_owned()], vec!["logit_scale".to_owned()])
        );
        let labels = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
        let loss = || cross_entropy(&model.forward(&images, true)?, &labels);
        // A short step: a ResNet's loss has a kink wherever an activation is zero.
        let report = Audit::new(&params).finite_differences(4, 1e-7).run(loss).unwrap();
        let expected = |name: &String| name.ends_with("k_proj.bias");
        assert!(report.zero.is_empty() && report.inconclusive.iter().all(expected), "{report}");
    }
}

#[test]
fn several_prompts_are_averaged_by_direction() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny();
    let params = params(folder.path(), &config, ClipLayout::OpenAi);
    let clip = Clip::new(&config, params.var_builder()).unwrap();
    let weight = clip.zero_shot(&[ids(), ids().narrow(0, 1, 2).unwrap()]).unwrap();
    let features = clip.text().forward(&ids()).unwrap().to_vec2::<f64>().unwrap();
    let unit = |x: &[f64]| {
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter().map(|x| x / length).collect::<Vec<f64>>()
    };
    let rows = weight.to_vec2::<f64>().unwrap();
    for (row, members) in rows.iter().zip([&features[..], &features[1..]]) {
        let units: Vec<_> = members.iter().map(|x| unit(x)).collect();
        let sum: Vec<f64> = (0..5).map(|i| units.iter().map(|unit| unit[i]).sum()).collect();
        for (got, expected) in row.iter().zip(unit(&sum)) {
            assert!((got - expected).abs() < 1e-12, "{got}, not {expected}");
        }
    }
    assert!(!weight.track_op());
}

#[test]
fn a_saved_zero_shot_head_has_an_anchor() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny();
    let frozen = params(folder.path(), &config, ClipLayout::OpenAi).freeze("*");
    let clip = Clip::new(&config, frozen.var_builder()).unwrap();
    let weight = clip.zero_shot(&[ids(), ids().narrow(0, 1, 2).unwrap()]).unwrap();
    let head = folder.path().join("head.safetensors");
    candle_core::safetensors::save(&HashMap::from([("classifier.weight", weight.clone())]), &head).unwrap();
    let files = [folder.path().join("model.safetensors"), head];
    let open = || Params::open_all(&files, &Device::Cpu).unwrap().dtype(DType::F64);
    let params = open();
    ClipClassifier::new(&config, 2, params.var_builder()).unwrap();
    let Anchor::Pretrained(anchor) = params.get("classifier.weight").unwrap().anchor().clone() else {
        panic!("no anchor")
    };
    assert_eq!(anchor.slice().to_f64(), weight.flatten_all().unwrap().to_vec1::<f64>().unwrap());
    // A frozen head keeps what the file says.
    let model = ClipClassifier::new(&config, 2, open().freeze("classifier.*").var_builder()).unwrap();
    let error = model.start_from(&weight).unwrap_err();
    assert!(matches!(error, nn::Error::FrozenHead { tensor: "classifier.weight" }), "{error}");
}

#[test]
fn sizes_are_those_of_openai() {
    for (config, count) in [
        (ClipConfig::vit_b32(Activation::QuickGelu), 151_277_313),
        (ClipConfig::vit_b16(Activation::QuickGelu), 149_620_737),
        (ClipConfig::vit_l14(Activation::QuickGelu), 427_616_513),
        (ClipConfig::rn50(Activation::QuickGelu), 102_007_137),
    ] {
        assert_eq!(parameters(|vb| Clip::new(&config, vb)), count, "{config:?}");
    }
}

#[test]
fn bad_configurations_and_inputs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        ClipConfig::from_file(&path)
    };
    let config = read(
        r#"{"projection_dim": 768, "logit_scale_init_value": 2.6592, "text_config": {"hidden_size": 768,
        "num_attention_heads": 12, "eos_token_id": 2}, "vision_config": {"patch_size": 14, "hidden_act": "gelu"}}"#,
    )
    .unwrap();
    assert_eq!((config.projection_dim, config.text.hidden_size, config.text.eos_token_id), (768, 768, 2));
    let ClipImageConfig::Vit(vit) = &config.image else { panic!("{config:?}") };
    assert_eq!((vit.patch_size, vit.hidden_size), (14, 768));
    let error = |text: &str| read(text).unwrap_err().to_string();
    assert!(error(r#"{"text_config": {"hidden_size": 100}}"#).contains("`text_config.hidden_size`"));
    assert!(error(r#"{"vision_config": {"hidden_size": 100}}"#).contains("`hidden_size`"));
    assert!(error(r#"{"vision_config": {"patch_size": 0}}"#).contains("`image_size`"));
    assert!(error(r#"{"projection_dim": 0}"#).contains("`projection_dim`"));
    assert!(error(r#"{"text_config": {"hidden_act": "swish"}}"#).contains("swish"));
    let resnet = |change: fn(&mut ClipResNetConfig)| {
        let mut image = ClipResNetConfig::default();
        change(&mut image);
        let config =
            ClipConfig { image: ClipImageConfig::ResNet(image), ..ClipConfig::rn50(Activation::QuickGelu) };
        config.validate().unwrap_err().to_string()
    };
    assert!(resnet(|c| c.width = 3).contains("`width`"));
    assert!(resnet(|c| c.heads = 0).contains("`width`"));
    assert!(resnet(|c| c.image_size = 225).contains("`image_size`"));
    assert!(resnet(|c| c.layers[1] = 0).contains("`layers`"));
    assert!(resnet(|c| c.channels = 0).contains("`channels`"));

    let params = params(folder.path(), &tiny(), ClipLayout::HuggingFace);
    let error = Clip::new(&tiny(), params.var_builder().pp("model")).unwrap_err().to_string();
    assert!(error.contains("`model`") && error.contains("visual.class_embedding"), "{error}");
    let resnet = tiny_resnet([1; 4], Statistics::Batch);
    let error = Clip::new(&resnet, params.var_builder()).unwrap_err().to_string();
    assert!(error.contains("visual.attnpool.positional_embedding"), "{error}");
    let error = ClipImage::new(&resnet, ClipLayout::HuggingFace, params.var_builder()).unwrap_err();
    assert!(matches!(error, nn::Error::ModelConfig { entry: "image", .. }), "{error}");

    // CoCa and SigLIP are other models under OpenCLIP's names.
    let other = tempfile::tempdir().unwrap();
    for extra in ["visual.attn_pool.query", "logit_bias"] {
        self::params(other.path(), &tiny(), ClipLayout::OpenAi);
        let path = other.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        tensors.insert(extra.to_owned(), Tensor::zeros(1, DType::F64, &Device::Cpu).unwrap());
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let params = Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64);
        let error = Clip::new(&tiny(), params.var_builder()).unwrap_err();
        assert!(matches!(&error, nn::Error::ModelTensor { tensor, .. } if tensor == extra), "{error}");
    }

    let clip = Clip::new(&tiny(), params.var_builder()).unwrap();
    let unknown = Tensor::new(&[[17u32, 19, 18]], &Device::Cpu).unwrap();
    let error = clip.text().forward(&unknown).unwrap_err().to_string();
    assert!(error.contains("token 19 of sequence 0"), "{error}");
    let long = Tensor::zeros((1, 8), DType::U32, &Device::Cpu).unwrap();
    let error = clip.text().forward(&long).unwrap_err().to_string();
    assert!(error.contains("8 tokens") && error.contains("up to 7"), "{error}");
    let error = clip.text().forward(&long.narrow(1, 0, 3).unwrap()).unwrap_err().to_string();
    assert!(error.contains("text 0 has no end-of-text token (18)"), "{error}");
    let error = clip.image().forward(&images((1, 3, 9, 6), DType::F64), false).unwrap_err().to_string();
    assert!(error.contains("[1, 3, 9, 6]"), "{error}");
    assert!(clip.zero_shot(&[]).unwrap_err().to_string().contains("no classes"));
    let none = Tensor::zeros((0, 7), DType::U32, &Device::Cpu).unwrap();
    assert!(clip.zero_shot(&[ids(), none]).unwrap_err().to_string().contains("class 1"));

    let weight = clip.zero_shot(&[ids(), ids()]).unwrap();
    let with =
        |params: Params| ClipClassifier::new(&tiny(), 3, params.head("classifier.*").var_builder()).unwrap();
    let error =
        with(self::params(folder.path(), &tiny(), ClipLayout::OpenAi)).start_from(&weight).unwrap_err();
    assert!(
        error.to_string().contains("classifier.weight") && error.to_string().contains("[3, 5]"),
        "{error}"
    );
}
