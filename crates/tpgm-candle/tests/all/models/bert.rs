//! BERT.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::bert::{BertModel, Config};
use tpgm_candle::models::Activation;
use tpgm_candle::models::bert::{Bert, BertClassifier, BertConfig, BertInput, Pooling};
use tpgm_candle::nn::{DropoutRng, cross_entropy};
use tpgm_candle::{AdamW, Audit, Ftp, Params, RobustOptimizer, nn};

use super::{checkpoint, deviation};

fn tiny() -> BertConfig {
    BertConfig {
        vocab_size: 23,
        hidden_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 20,
        max_position_embeddings: 9,
        ..BertConfig::default()
    }
}

/// Three sequences of different lengths, with two segments.
fn input() -> (Tensor, Tensor, Tensor) {
    let ids = [[1u32, 5, 22, 7, 2, 9, 3], [1, 8, 2, 0, 0, 0, 0], [1, 4, 4, 11, 2, 0, 0]];
    let segments = [[0u32, 0, 0, 1, 1, 1, 1], [0; 7], [0, 0, 1, 1, 1, 0, 0]];
    let mask = ids.map(|row| row.map(|id| u32::from(id != 0)));
    let tensor = |rows: &[[u32; 7]; 3]| Tensor::new(rows, &Device::Cpu).unwrap();
    (tensor(&ids), tensor(&segments), tensor(&mask))
}

#[test]
fn it_computes_what_candle_transformers_computes() {
    for (activation, name) in [(Activation::Gelu, "gelu"), (Activation::Relu, "relu")] {
        let config = BertConfig { hidden_act: activation, ..tiny() };
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let model = Bert::new(&config, &DropoutRng::new(0), vb.clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        checkpoint(&map, &folder.path().join("model.safetensors"));
        let json = serde_json::json!({
            "vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 20, "hidden_act": name, "hidden_dropout_prob": 0.1,
            "max_position_embeddings": 9, "type_vocab_size": 2, "initializer_range": 0.02,
            "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute",
        });
        let other: Config = serde_json::from_value(json).unwrap();
        let other = BertModel::load(vb, &other).unwrap();
        let (ids, segments, mask) = input();
        let expected = other.forward(&ids, &segments, Some(&mask)).unwrap();
        let got = model.forward(&BertInput::new(&ids, &mask).segments(&segments), false).unwrap();
        assert_eq!(got.dims(), [3, 7, 12]);
        let deviation = deviation(&got, &expected);
        assert!(deviation < 2e-5, "{name}: {deviation:e}");
    }
}

/// A checkpoint of the encoder in f64, opened with a head that it lacks.
fn params(folder: &std::path::Path) -> Params {
    let path = folder.join("model.safetensors");
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    Bert::new(&tiny(), &DropoutRng::new(0), vb).unwrap();
    checkpoint(&map, &path);
    Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64).head("classifier.*")
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let folder = tempfile::tempdir().unwrap();
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let params = params(folder.path());
        let model =
            BertClassifier::new(&tiny(), 4, pooling, &DropoutRng::new(0), params.var_builder()).unwrap();
        let (ids, segments, mask) = input();
        let labels = Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap();
        let loss = || {
            let input = BertInput::new(&ids, &mask).segments(&segments);
            cross_entropy(&model.forward(&input, false)?, &labels)
        };
        let report = Audit::new(&params).finite_differences(4, 1e-5).run(loss).unwrap();
        // A key's bias adds the same to all scores of a row, which softmax does not see: its gradient is rounding errors.
        let expected = |name: &String| name.ends_with("attention.self.key.bias");
        assert!(report.zero.is_empty() && report.inconclusive.iter().all(expected), "{pooling:?}: {report}");
        assert_eq!(report.checked, 37, "{pooling:?}: {report}");
    }
}

#[test]
fn an_encoder_under_a_prefix_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixed.safetensors");
    let plain = params(folder.path());
    let load = |path: &std::path::Path| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let prefix = |(name, tensor)| (format!("bert.{name}"), tensor);
    let prefixed: std::collections::HashMap<_, _> =
        load(&folder.path().join("model.safetensors")).into_iter().map(prefix).collect();
    candle_core::safetensors::save(&prefixed, &path).unwrap();
    let prefixed = Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64).head("classifier.*");
    let (ids, _, mask) = input();
    let logits = |params: &Params| {
        let model = BertClassifier::new(&tiny(), 4, Pooling::Mean, &DropoutRng::new(0), params.var_builder())
            .unwrap();
        model.forward(&BertInput::new(&ids, &mask), false).unwrap()
    };
    assert_eq!(deviation(&logits(&prefixed), &logits(&plain)), 0.0);
    assert!(prefixed.get("bert.encoder.layer.1.output.dense.weight").is_ok());
}

#[test]
fn padding_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let params = params(folder.path());
    let model =
        BertClassifier::new(&tiny(), 4, Pooling::Mean, &DropoutRng::new(0), params.var_builder()).unwrap();
    let (ids, _, mask) = input();
    let all = model.forward(&BertInput::new(&ids, &mask), false).unwrap();
    let (ids, mask) = (ids.narrow(0, 1, 1).unwrap(), mask.narrow(0, 1, 1).unwrap());
    let (ids, mask) = (ids.narrow(1, 0, 3).unwrap(), mask.narrow(1, 0, 3).unwrap());
    let alone = model.forward(&BertInput::new(&ids, &mask), false).unwrap();
    assert!(deviation(&all.narrow(0, 1, 1).unwrap(), &alone) < 1e-12);
}

#[test]
fn a_few_steps_fit_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let params = params(folder.path());
    let dropout = DropoutRng::new(3);
    let model = BertClassifier::new(&tiny(), 4, Pooling::Mean, &dropout, params.var_builder()).unwrap();
    let (ids, _, mask) = input();
    let labels = Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap();
    let loss =
        |train| cross_entropy(&model.forward(&BertInput::new(&ids, &mask), train).unwrap(), &labels).unwrap();
    let value = || loss(false).to_scalar::<f64>().unwrap();
    let before = value();
    let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.02), Ftp::default()).unwrap();
    for _ in 0..30 {
        optimizer.backward_step(&loss(true)).unwrap();
    }
    assert!(value() < 0.5 * before, "{before} to {}", value());
}

#[test]
fn bad_configurations_and_inputs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        BertConfig::from_file(&path)
    };
    let config =
        read(r#"{"hidden_size": 384, "num_hidden_layers": 6, "architectures": ["BertModel"]}"#).unwrap();
    assert_eq!((config.hidden_size, config.num_hidden_layers, config.num_attention_heads), (384, 6, 12));
    let error = read(r#"{"hidden_size": 100}"#).unwrap_err();
    assert!(matches!(error, nn::Error::ModelConfig { entry: "hidden_size", .. }), "{error}");
    let error = read(r#"{"position_embedding_type": "relative_key"}"#).unwrap_err();
    assert!(matches!(error, nn::Error::ModelConfig { entry: "position_embedding_type", .. }), "{error}");
    let error = read(r#"{"hidden_act": "swish"}"#).unwrap_err();
    assert!(error.to_string().contains("config.json") && error.to_string().contains("swish"), "{error}");

    let params = params(folder.path());
    let model = Bert::new(&tiny(), &DropoutRng::new(0), params.var_builder()).unwrap();
    let long = Tensor::zeros((1, 10), DType::U32, &Device::Cpu).unwrap();
    let error = model.forward(&BertInput::new(&long, &long), false).unwrap_err();
    assert!(error.to_string().contains("10 tokens"), "{error}");
}
