//! ViT.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::vit::{Config, Model};
use tpgm_candle::models::vit::{Vit, VitClassifier, VitConfig, VitLayout};
use tpgm_candle::nn::{DropoutRng, cross_entropy};
use tpgm_candle::{AdamW, Audit, Ftp, Params, RobustOptimizer, nn};

use super::{Reference, checkpoint, images, parameters, relative_deviation};

fn tiny() -> VitConfig {
    VitConfig {
        hidden_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 20,
        image_size: 6,
        patch_size: 3,
        ..VitConfig::default()
    }
}

fn no_dropout() -> DropoutRng {
    DropoutRng::new(0)
}

#[test]
fn it_computes_what_candle_transformers_computes() {
    for bias in [true, false] {
        let config = VitConfig { qkv_bias: bias, ..tiny() };
        let other = Config {
            hidden_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            intermediate_size: 20,
            hidden_act: candle_nn::Activation::Gelu,
            layer_norm_eps: 1e-12,
            image_size: 6,
            patch_size: 3,
            num_channels: 3,
            qkv_bias: bias,
        };
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let other = Model::new(&other, 5, vb.clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        checkpoint(&map, &folder.path().join("model.safetensors"));
        let model = VitClassifier::new(&config, 5, &no_dropout(), vb).unwrap();
        let images = images((2, 3, 6, 6), DType::F32);
        let (got, expected) = (model.forward(&images, false).unwrap(), other.forward(&images).unwrap());
        assert_eq!(got.dims(), [2, 5]);
        let deviation = relative_deviation(&got, &expected);
        assert!(deviation < 2e-5, "{deviation:e}");
    }
}

#[test]
fn a_timm_checkpoint_computes_what_pytorch_computes() {
    let reference = Reference::new("timm");
    let params = reference.params();
    let config = VitConfig { intermediate_size: 24, layer_norm_eps: 1e-6, ..tiny() };
    let model = VitClassifier::new(&config, 5, &no_dropout(), params.var_builder()).unwrap();
    params.report().unwrap().require_all_used().unwrap();
    let got = model.forward(&reference.wide("images"), false).unwrap();
    let deviation = relative_deviation(&got, &reference.get("logits"));
    assert!(deviation < 1e-12, "{deviation:e}");
}

/// A checkpoint of the encoder in f64, under `vit.` or not, opened with a head that it lacks.
fn params(folder: &std::path::Path, layout: VitLayout, prefix: &str) -> Params {
    let path = folder.join("model.safetensors");
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let vb = if prefix.is_empty() { vb } else { vb.pp(prefix) };
    Vit::with_layout(&tiny(), layout, &no_dropout(), vb).unwrap();
    checkpoint(&map, &path);
    let head = if layout == VitLayout::Timm { "head.*" } else { "classifier.*" };
    Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64).head(head)
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let folder = tempfile::tempdir().unwrap();
    let images = images((2, 3, 6, 6), DType::F64);
    let labels = Tensor::new(&[2u32, 0], &Device::Cpu).unwrap();
    for (layout, prefix, tensors) in
        [(VitLayout::HuggingFace, "vit", 40), (VitLayout::HuggingFace, "", 40), (VitLayout::Timm, "", 32)]
    {
        let params = params(folder.path(), layout, prefix);
        let model = VitClassifier::new(&tiny(), 4, &no_dropout(), params.var_builder()).unwrap();
        let loss = || cross_entropy(&model.forward(&images, false)?, &labels);
        let report = Audit::new(&params).finite_differences(4, 1e-5).run(loss).unwrap();
        // A key's bias adds the same to all scores of a row, which softmax does not see: its gradient is rounding errors.
        let expected = |name: &String| name.ends_with("attention.attention.key.bias");
        assert!(report.zero.is_empty() && report.inconclusive.iter().all(expected), "{report}");
        assert_eq!((params.all().len(), report.checked), (tensors, tensors - report.inconclusive.len()));
        assert!(report.inconclusive.len() <= 2, "{report}");
    }
}

#[test]
fn another_head_replaces_that_of_the_checkpoint() {
    let reference = Reference::new("timm");
    let params = reference.params().head("head.*");
    let config = VitConfig { intermediate_size: 24, layer_norm_eps: 1e-6, ..tiny() };
    let model = VitClassifier::new(&config, 7, &no_dropout(), params.var_builder()).unwrap();
    let report = params.report().unwrap();
    assert_eq!(
        (report.replaced, report.fresh),
        (names(["head.bias", "head.weight"]), names(["head.bias", "head.weight"]))
    );
    assert!(report.unused.is_empty());
    assert_eq!(model.forward(&reference.wide("images"), false).unwrap().dims(), [2, 7]);

    // The encoder alone leaves the head over, and says so.
    let params = reference.params();
    Vit::new(&config, &no_dropout(), params.var_builder()).unwrap();
    assert_eq!(params.report().unwrap().unused, ["head.bias", "head.weight"]);

    // Without a declaration, a head of another size is an error that names it.
    let error = VitClassifier::new(&config, 7, &no_dropout(), reference.params().var_builder()).unwrap_err();
    assert!(error.to_string().contains("head.weight"), "{error}");
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

#[test]
fn features_are_the_class_token() {
    let folder = tempfile::tempdir().unwrap();
    let params = params(folder.path(), VitLayout::HuggingFace, "vit");
    let images = images((2, 3, 6, 6), DType::F64);
    let encoder = Vit::new(&tiny(), &no_dropout(), params.var_builder().pp("vit")).unwrap();
    let tokens = encoder.tokens(&images, false).unwrap();
    assert_eq!(tokens.dims(), [2, 5, 12]);
    let class_token = tokens.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
    let features = encoder.forward(&images, false).unwrap();
    assert!(relative_deviation(&features, &class_token) < 1e-13);
    // The classifier finds the same encoder.
    let model = VitClassifier::new(&tiny(), 4, &no_dropout(), params.var_builder()).unwrap();
    assert_eq!(relative_deviation(&model.features(&images, false).unwrap(), &features), 0.0);
}

#[test]
fn a_few_steps_fit_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let params = params(folder.path(), VitLayout::Timm, "");
    let config = VitConfig { hidden_dropout_prob: 0.05, attention_probs_dropout_prob: 0.05, ..tiny() };
    let model = VitClassifier::new(&config, 4, &DropoutRng::new(3), params.var_builder()).unwrap();
    let images = images((3, 3, 6, 6), DType::F64);
    let labels = Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap();
    let loss = |train| cross_entropy(&model.forward(&images, train).unwrap(), &labels).unwrap();
    let value = || loss(false).to_scalar::<f64>().unwrap();
    let before = value();
    let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.02), Ftp::default()).unwrap();
    for _ in 0..30 {
        optimizer.backward_step(&loss(true)).unwrap();
    }
    assert!(value() < 0.5 * before, "{before} to {}", value());
}

#[test]
fn sizes_are_those_of_timm() {
    // With a head of 1000 classes, as timm lists them.
    for (config, count) in [
        (VitConfig::tiny_patch16_224(), 5_717_416),
        (VitConfig::small_patch16_224(), 22_050_664),
        (VitConfig::base_patch16_224(), 86_567_656),
        (VitConfig::large_patch16_224(), 304_326_632),
    ] {
        assert_eq!(parameters(|vb| VitClassifier::new(&config, 1000, &no_dropout(), vb)), count);
    }
}

#[test]
fn bad_configurations_and_inputs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        VitConfig::from_file(&path)
    };
    let config = read(r#"{"hidden_size": 384, "num_attention_heads": 6, "model_type": "vit"}"#).unwrap();
    assert_eq!((config.hidden_size, config.num_hidden_layers, config.patch_size), (384, 12, 16));
    let error = read(r#"{"hidden_size": 100}"#).unwrap_err();
    assert!(matches!(error, nn::Error::ModelConfig { entry: "hidden_size", .. }), "{error}");
    let error = read(r#"{"patch_size": 15}"#).unwrap_err();
    assert!(matches!(error, nn::Error::ModelConfig { entry: "image_size", .. }), "{error}");
    let error = read(r#"{"num_channels": 0}"#).unwrap_err();
    assert!(matches!(error, nn::Error::ModelConfig { entry: "num_channels", .. }), "{error}");
    let error = read(r#"{"hidden_act": "swish"}"#).unwrap_err();
    assert!(error.to_string().contains("config.json") && error.to_string().contains("swish"), "{error}");

    let params = params(folder.path(), VitLayout::HuggingFace, "vit");
    let error = Vit::new(&tiny(), &no_dropout(), params.var_builder().pp("encoder")).unwrap_err().to_string();
    assert!(error.contains("`encoder`") && error.contains("embeddings.cls_token"), "{error}");
    let model = Vit::new(&tiny(), &no_dropout(), params.var_builder().pp("vit")).unwrap();
    let error = model.forward(&images((1, 3, 6, 9), DType::F64), false).unwrap_err().to_string();
    assert!(error.contains("[1, 3, 6, 9]") && error.contains("(batch, 3, 6, 6)"), "{error}");
    let wide = VitConfig { hidden_size: 24, ..tiny() };
    let error = Vit::new(&wide, &no_dropout(), params.var_builder().pp("vit")).unwrap_err().to_string();
    assert!(error.contains("vit.embeddings"), "{error}");
}
