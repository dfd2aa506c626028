//! Adapters as people have them: with a classifier, as PyTorch files, with options of another year, damaged.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Linear;
use tpgm_candle::lora::{Error, LoraConfig, LoraLinear, load_adapter, save_adapter};
use tpgm_candle::{Anchor, Param, Params, nn};

fn real(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files/lora").join(name)
}

fn flat(params: &Params, name: &str) -> Vec<f32> {
    params.get(name).unwrap().var().flatten_all().unwrap().to_vec1().unwrap()
}

/// A layer `q` of zeros, adapted, and a classifier of two classes for four features if the adapter has one.
fn model(config: &LoraConfig, classifier: bool) -> (LoraLinear, Params) {
    let params = Params::default();
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let layer = LoraLinear::new(Linear::new(zeros((4, 3)), None), "q", config, &params).unwrap();
    if classifier {
        for (name, shape) in [("classifier.weight", vec![2, 4]), ("classifier.bias", vec![2])] {
            let var = Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            params.insert(Param::new(name, var, Anchor::None)).unwrap();
        }
    }
    (layer, params)
}

/// `alpha / r * B A` of the factors in the files, for three ones: the factors are 0.1, 0.2, ... in order.
fn expected() -> [f32; 4] {
    let sums = [0.6, 1.5];
    [0, 1, 2, 3].map(|row| {
        let b = [0.1 * (2 * row + 1) as f32, 0.1 * (2 * row + 2) as f32];
        2.0 * (b[0] * sums[0] + b[1] * sums[1])
    })
}

fn check_output(layer: &LoraLinear) {
    let xs = Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap();
    let got: Vec<f32> = layer.forward(&xs).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert!(got.iter().zip(expected()).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} {:?}", expected());
}

#[test]
fn adapters_load_from_safetensors_and_from_pytorch_files() {
    for name in ["plain", "bin_only"] {
        let config = LoraConfig::from_adapter(real(name)).unwrap();
        let (layer, params) = model(&config, false);
        let adapter = load_adapter(real(name), &params).unwrap();
        assert!(adapter.unknown.is_empty());
        check_output(&layer);
    }
    // Whatever the file is called, and where the modules are read from it.
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("adapter_config.json"),
        r#"{"r": 2, "lora_alpha": 4, "target_modules": ".*q"}"#,
    )
    .unwrap();
    for (file, from) in [
        ("adapter_model.bin", "bin_only/adapter_model.bin"),
        ("adapter_model.safetensors", "plain/adapter_model.safetensors"),
        ("adapter_model.safetensors", "bin_only/adapter_model.bin"),
    ] {
        fs::copy(real(from), folder.path().join(file)).unwrap();
        let config = LoraConfig::from_adapter(folder.path()).unwrap();
        assert_eq!(config.targets, ["q"]);
    }
    let bytes = fs::read(real("bin_only/adapter_model.bin")).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(LoraConfig::from_adapter(folder.path()), Err(nn::Error::BadFile { .. })));
}

#[test]
fn a_classifier_comes_with_its_adapter_and_goes_with_it() {
    let dir = real("modules_to_save");
    let config = LoraConfig::from_adapter(&dir).unwrap();
    assert_eq!(config.modules_to_save, ["classifier"]);
    let (layer, params) = model(&config, true);
    load_adapter(&dir, &params).unwrap();
    check_output(&layer);
    let bias = flat(&params, "classifier.bias");
    assert_eq!(bias, [-0.310_102_76, -0.023_754_396]);
    assert_eq!(flat(&params, "classifier.weight")[0], -0.249_516_95);

    // Saved again, it is the same adapter.
    let folder = tempfile::tempdir().unwrap();
    save_adapter(folder.path(), &config, &params).unwrap();
    let found = LoraConfig::from_adapter(folder.path()).unwrap();
    assert_eq!(found, config);
    let (_, again) = model(&found, true);
    load_adapter(folder.path(), &again).unwrap();
    assert_eq!(flat(&again, "classifier.bias"), bias);

    // A model without the classifier, or with a frozen one, would lose it.
    let (_, params) = model(&config, false);
    let error = load_adapter(&dir, &params).unwrap_err();
    assert!(matches!(&error, Error::NotTrainable { tensor, .. } if tensor == "classifier.bias"), "{error}");
    assert!(flat(&params, "q.lora_B.weight").iter().all(|x| *x == 0.0), "nothing was changed");
    let error = save_adapter(folder.path(), &config, &params).unwrap_err();
    assert!(matches!(&error, Error::NoSavedModule { .. }), "{error}");
    // A classifier that the adapter does not say it has is refused, as is one that is said and not there.
    let (_, params) = model(&config, true);
    let swap = |config: &str, weights: &str| {
        fs::copy(real(config).join("adapter_config.json"), folder.path().join("adapter_config.json"))
            .unwrap();
        let file = "adapter_model.safetensors";
        fs::copy(real(weights).join(file), folder.path().join(file)).unwrap();
        load_adapter(folder.path(), &params).unwrap_err().to_string()
    };
    assert!(swap("plain", "modules_to_save").contains("classifier"));
    let text = swap("modules_to_save", "plain");
    assert!(text.contains("classifier") && text.contains("adapter_model.safetensors"), "{text}");
}

/// PEFT names all modules that a classifier may be, and nests, and some versions keep a wrapper in the name.
#[test]
fn modules_are_found_by_the_end_of_their_name() {
    let saved = |modules: &[&str]| LoraConfig {
        modules_to_save: modules.iter().map(|module| (*module).to_owned()).collect(),
        ..LoraConfig::default()
    };
    let both = saved(&["classifier", "score"]);
    for name in ["classifier.weight", "classifier.dense.weight", "model.score.weight"] {
        assert!(both.is_saved(name), "{name}");
    }
    for name in ["classifier", "preclassifier.weight", "q.lora_A.weight", "classifiers.weight"] {
        assert!(!both.is_saved(name), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = real("modules_to_save");
    let mut options: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap();
    options["modules_to_save"] = serde_json::json!(["classifier", "score"]);
    fs::write(folder.path().join("adapter_config.json"), options.to_string()).unwrap();
    let tensors =
        candle_core::safetensors::load(dir.join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| (name.replace("classifier.", "classifier.modules_to_save."), tensor))
        .collect();
    candle_core::safetensors::save(&tensors, folder.path().join("adapter_model.safetensors")).unwrap();
    let (_, params) = model(&LoraConfig::from_adapter(folder.path()).unwrap(), true);
    load_adapter(folder.path(), &params).unwrap();
    assert_eq!(flat(&params, "classifier.bias")[0], -0.310_102_76);
}

#[test]
fn options_that_nobody_knows_are_named() {
    let adapter = LoraConfig::read_adapter(real("future_option")).unwrap();
    let warnings: Vec<String> = adapter.unknown.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("`some_new_scaling` (2.0)"), "{warnings:?}");
    assert!(warnings[0].contains("adapter_config.json"), "{warnings:?}");
    let (layer, params) = model(&adapter.config, false);
    assert_eq!(load_adapter(real("future_option"), &params).unwrap(), adapter);
    check_output(&layer);
}

#[test]
fn factors_that_are_not_finite_are_refused() {
    let dir = real("nan");
    let (_, params) = model(&LoraConfig::from_adapter(&dir).unwrap(), false);
    let before = flat(&params, "q.lora_A.weight");
    let error = load_adapter(&dir, &params).unwrap_err();
    let Error::NonFinite { path, tensor, count } = &error else { panic!("{error}") };
    assert!(path.ends_with("nan/adapter_model.safetensors"));
    assert_eq!((tensor.as_str(), *count), ("q.lora_A.weight", 1));
    assert_eq!(flat(&params, "q.lora_A.weight"), before, "nothing was changed");
}
