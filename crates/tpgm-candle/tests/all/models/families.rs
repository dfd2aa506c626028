//! RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT.

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tpgm_candle::models::bert::{Bert, BertClassifier, BertConfig, BertFamily, BertInput, Pooling};
use tpgm_candle::nn::{DropoutRng, cross_entropy};
use tpgm_candle::{Audit, Params, nn};

use super::{Reference, deviation, real_file, relative_deviation, written};

const FAMILIES: [(&str, &str); 4] = [
    ("roberta", "roberta."),
    ("xlm_roberta", "roberta."),
    ("camembert", "roberta."),
    ("distilbert", "distilbert."),
];

fn no_dropout() -> DropoutRng {
    DropoutRng::new(0)
}

#[test]
fn each_family_computes_what_transformers_computes() {
    for (name, prefix) in FAMILIES {
        let reference = Reference::family(name);
        let config = BertConfig::from_file(reference.config()).unwrap();
        let input = BertInput::new(&reference.get("ids"), &reference.get("mask"));
        let params = reference.params();
        let model = Bert::new(&config, &no_dropout(), params.var_builder()).unwrap();
        params.report().unwrap().require_all_used().unwrap();
        let got = model.forward(&input, false).unwrap();
        // What padding becomes says nothing.
        let mask = reference.wide("mask").unsqueeze(2).unwrap();
        let tokens = |x: &Tensor| x.broadcast_mul(&mask).unwrap();
        let deviation = relative_deviation(&tokens(&got), &tokens(&reference.get("tokens")));
        assert!(deviation < 1e-12, "{name}: {deviation:e}");

        // Under the prefix of a checkpoint with a head, a classifier finds the same.
        let params = reference.params_with(prefix, |_| true).head("classifier.*");
        let model =
            BertClassifier::new(&config, 3, Pooling::Cls, &no_dropout(), params.var_builder()).unwrap();
        let features = model.features(&input, false).unwrap();
        let first = got.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        assert!(relative_deviation(&features, &first) < 1e-12, "{name}");
    }
}

#[test]
fn distilbert_does_not_drop_out_behind_an_attention() {
    // Masks of one pass: that of the embeddings, and in each of two blocks those of attention weights, of what is behind the
    // attention, and of the feed-forward network.
    for (name, masks) in [("roberta", 1 + 2 * 3), ("distilbert", 1 + 2 * 2)] {
        let (reference, dropout) = (Reference::family(name), DropoutRng::new(0));
        let config = BertConfig::from_file(reference.config()).unwrap();
        let model = Bert::new(&config, &dropout, reference.params().var_builder()).unwrap();
        let input = BertInput::new(&reference.get("ids"), &reference.get("mask"));
        model.forward(&input, true).unwrap();
        assert_eq!(dropout.state().draws, masks, "{name}");
    }
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    for (name, tensors) in [("roberta", 39), ("distilbert", 38)] {
        let reference = Reference::family(name);
        let config = BertConfig::from_file(reference.config()).unwrap();
        let params = reference.params().head("classifier.*");
        let model =
            BertClassifier::new(&config, 4, Pooling::Mean, &no_dropout(), params.var_builder()).unwrap();
        let input = BertInput::new(&reference.get("ids"), &reference.get("mask"));
        let labels = Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap();
        let loss = || cross_entropy(&model.forward(&input, false)?, &labels);
        let report = Audit::new(&params).finite_differences(4, 1e-5).run(loss).unwrap();
        // A key's bias adds the same to all scores of a row, which softmax does not see: its gradient is rounding errors.
        let expected = |name: &String| name.ends_with("key.bias") || name.ends_with("k_lin.bias");
        assert!(report.zero.is_empty() && report.inconclusive.iter().all(expected), "{name}: {report}");
        assert_eq!(params.all().len(), tensors, "{name}");
        assert_eq!(report.checked, tensors - report.inconclusive.len(), "{name}: {report}");
    }
}

/// The values that `reference.json` has for `key`, and what the model in `folder` computes for the ids under `ids`.
fn of_real_files(folder: &str, ids: &str, key: &str) -> [Tensor; 2] {
    let json = std::fs::read(real_file("text/reference.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let ids: Vec<u32> = serde_json::from_value(json[ids].clone()).unwrap();
    let expected: Vec<Vec<f64>> = serde_json::from_value(json[key].clone()).unwrap();
    let folder = real_file("text").join(folder);
    let config = BertConfig::from_file(folder.join("config.json")).unwrap();
    let params = Params::open(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let model = Bert::new(&config, &no_dropout(), params.var_builder()).unwrap();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let input = BertInput::new(&ids, &ids.ones_like().unwrap());
    [Tensor::new(expected, &Device::Cpu).unwrap(), model.forward(&input, false).unwrap().squeeze(0).unwrap()]
}

#[test]
fn real_files_have_their_reference_values() {
    for (folder, ids, key) in [
        ("bert", "ids", "bert"),
        ("roberta", "roberta_ids", "roberta_right"),
        ("xlmr", "roberta_ids", "roberta_right"),
    ] {
        let [expected, got] = of_real_files(folder, ids, key);
        let off = deviation(&got, &expected);
        assert!(off < 1e-5, "{folder}: {off:e}");
    }
    let [as_bert, got] = of_real_files("roberta", "roberta_ids", "roberta_as_bert");
    assert!(deviation(&got, &as_bert) > 1.0);
}

#[test]
fn a_type_that_is_not_supported_is_named() {
    let error = BertConfig::from_file(real_file("text/mpnet/config.json")).unwrap_err().to_string();
    assert!(
        error.contains("`mpnet`") && error.contains("`roberta`") && error.contains("config.json"),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    for name in ["albert", "electra", "deberta-v2", "nomic_bert", "roberta-prelayernorm", "BERT", "", "vit"] {
        let text = format!(r#"{{"model_type": "{name}", "hidden_size": 768}}"#);
        let error = BertConfig::from_file(written(folder.path(), &text)).unwrap_err();
        let nn::Error::ModelType { value, supported, .. } = &error else { panic!("{error}") };
        assert_eq!((value.as_str(), supported.len()), (name, 5));
    }
    // Without the entry the class says it.
    for (class, family) in [
        ("BertModel", BertFamily::Bert),
        ("BertLMHeadModel", BertFamily::Bert),
        ("RobertaForMaskedLM", BertFamily::Roberta),
        ("XLMRobertaModel", BertFamily::XlmRoberta),
        ("CamembertForMaskedLM", BertFamily::Camembert),
        ("DistilBertForSequenceClassification", BertFamily::DistilBert),
    ] {
        let text = format!(r#"{{"architectures": ["{class}"]}}"#);
        assert_eq!(BertConfig::from_file(written(folder.path(), &text)).unwrap().model_type, family);
    }
    for class in ["MPNetModel", "RobertaPreLayerNormModel", "BertGenerationEncoder"] {
        let text = format!(r#"{{"architectures": ["{class}"], "hidden_size": 768}}"#);
        let error = BertConfig::from_file(written(folder.path(), &text)).unwrap_err().to_string();
        assert!(error.contains(class) && error.contains("`architectures`"), "{error}");
    }
    // Neither says it, but no BERT pads with 1.
    let text = r#"{"pad_token_id": 1, "max_position_embeddings": 514, "type_vocab_size": 1}"#;
    let error = BertConfig::from_file(written(folder.path(), text)).unwrap_err();
    assert!(matches!(&error, nn::Error::ModelConfig { entry: "model_type", .. }), "{error}");
}

#[test]
fn tensors_of_another_family_are_named() {
    let folder = real_file("text/distilbert");
    let config = BertConfig::from_file(folder.join("config.json")).unwrap();
    assert_eq!(config.model_type, BertFamily::DistilBert);
    let params = Params::open(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let error = Bert::new(&config, &no_dropout(), params.var_builder()).unwrap_err().to_string();
    assert!(error.contains("`distilbert`") && error.contains("encoder.layer.0.attention.self"), "{error}");

    // A configuration without a type is BERT's, these files are not.
    let temporary = tempfile::tempdir().unwrap();
    let bert = BertConfig::from_file(written(
        temporary.path(),
        r#"{"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 20, "max_position_embeddings": 9, "type_vocab_size": 1}"#,
    ))
    .unwrap();
    for (name, prefix) in FAMILIES {
        let params = Reference::family(name).params_with(prefix, |_| true).head("classifier.*");
        let error =
            BertClassifier::new(&bert, 3, Pooling::Mean, &no_dropout(), params.var_builder()).unwrap_err();
        let named = format!("{prefix}embeddings.word_embeddings.weight");
        assert!(error.to_string().contains(&named) && error.to_string().contains("`bert`"), "{error}");
    }
    let params = Reference::family("distilbert").params();
    let error = Bert::new(&bert, &no_dropout(), params.var_builder()).unwrap_err().to_string();
    assert!(error.contains("transformer.layer.0.attention.q_lin.weight"), "{error}");
}

#[test]
fn bad_numbers_and_inputs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (text, named) in [
        (r#"{"model_type": "roberta", "vocab_size": 5, "pad_token_id": 5}"#, "pad_token_id"),
        (r#"{"model_type": "bert", "vocab_size": 5, "pad_token_id": 7}"#, "pad_token_id"),
        (r#"{"model_type": "roberta", "pad_token_id": 511}"#, "max_position_embeddings"),
        (r#"{"model_type": "roberta", "max_position_embeddings": 2}"#, "max_position_embeddings"),
        (r#"{"model_type": "bert", "is_decoder": true}"#, "is_decoder"),
        (r#"{"model_type": "distilbert", "dim": 12, "hidden_size": 24}"#, "dim"),
        (r#"{"model_type": "bert", "hidden_size": 9223372036854775800}"#, "hidden_size"),
        (r#"{"model_type": "bert", "quantization_config": {"bits": 8}}"#, "quantization_config"),
    ] {
        let error = BertConfig::from_file(written(folder.path(), text)).unwrap_err();
        assert!(matches!(&error, nn::Error::ModelConfig { entry, .. } if *entry == named), "{text}: {error}");
        assert!(error.to_string().contains("config.json"), "{error}");
    }

    let reference = Reference::family("roberta");
    let config = BertConfig::from_file(reference.config()).unwrap();
    assert_eq!((config.max_position_embeddings, config.max_length()), (9, 7));
    let model = Bert::new(&config, &no_dropout(), reference.params().var_builder()).unwrap();
    let error = |ids: &Tensor, segments: Option<&Tensor>| {
        let input = BertInput::new(ids, &ids.ones_like().unwrap());
        let input = segments.into_iter().fold(input, BertInput::segments);
        model.forward(&input, false).unwrap_err().to_string()
    };
    let ids = |ids: &[i64]| Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let long = error(&ids(&[0; 8]), None);
    assert!(long.contains("8 tokens") && long.contains("up to 7"), "{long}");
    let unknown = error(&ids(&[0, 23]), None);
    assert!(unknown.contains("token 23 of sequence 0") && unknown.contains("23 that"), "{unknown}");
    assert!(error(&ids(&[0, -1]), None).contains("token -1"));
    // The largest id of a type would be a row of zeros.
    let largest = Tensor::new(&[[0, u32::MAX]], &Device::Cpu).unwrap();
    assert!(error(&largest, None).contains("token 4294967295"));
    assert!(error(&ids(&[0, 4]).to_dtype(DType::F32).unwrap(), None).contains("not integers"));
    assert!(error(&ids(&[0, 4]), Some(&ids(&[0, 1]))).contains("segment 1 of sequence 0"));
    let mask = ids(&[1]);
    let error = model.forward(&BertInput::new(&ids(&[0, 4]), &mask), false).unwrap_err().to_string();
    assert!(error.contains("[1, 1]") && error.contains("[1, 2]"), "{error}");

    let reference = Reference::family("distilbert");
    let config = BertConfig::from_file(reference.config()).unwrap();
    let model = Bert::new(&config, &no_dropout(), reference.params().var_builder()).unwrap();
    let input = BertInput::new(&ids(&[0, 4]), &ids(&[1, 1])).segments(&ids(&[0, 0]));
    assert!(model.forward(&input, false).unwrap_err().to_string().contains("a distilbert has no segments"));
}

#[test]
fn a_model_without_a_table_of_segments_is_loaded() {
    let reference = Reference::family("roberta");
    let config = BertConfig::from_file(reference.config()).unwrap();
    let none = BertConfig { type_vocab_size: 0, ..config.clone() };
    let input = BertInput::new(&reference.get("ids"), &reference.get("mask"));
    let bare = || reference.params_with("", |name| !name.contains("token_type"));
    // The words of a model whose only segment is added to them beforehand.
    let params = bare();
    let model = Bert::new(&none, &no_dropout(), params.var_builder()).unwrap();
    let words = params.get("embeddings.word_embeddings.weight").unwrap();
    let segment = reference.wide("weights/embeddings.token_type_embeddings.weight");
    words.var().set(&words.var().broadcast_add(&segment).unwrap()).unwrap();
    let got = model.forward(&input, false).unwrap();
    let full = Bert::new(&config, &no_dropout(), reference.params().var_builder()).unwrap();
    assert!(relative_deviation(&got, &full.forward(&input, false).unwrap()) < 1e-12);

    let error = Bert::new(&config, &no_dropout(), bare().var_builder()).unwrap_err().to_string();
    assert!(error.contains("token_type_embeddings"), "{error}");
}
