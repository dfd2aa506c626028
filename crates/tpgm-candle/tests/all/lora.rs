//! LoRA: shapes, gradients, merging, and the files of PEFT.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Module, ModuleT, Tensor, Var};
use candle_nn::{Conv2d, Conv2dConfig, Embedding, Linear};
use tpgm_candle::lora::{LoraConfig, LoraConv2d, LoraEmbedding, LoraLinear, load_adapter, save_adapter};
use tpgm_candle::nn::DropoutRng;
use tpgm_candle::{Anchor, Params, lora, nn, weight_space};

fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    numbers(a).iter().zip(numbers(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn config(rank: usize) -> LoraConfig {
    LoraConfig { rank, alpha: 3.0, ..LoraConfig::default() }
}

/// Fills all factors with noise.
fn disturb(params: &Params) {
    for (seed, param) in params.all().iter().enumerate() {
        let var = param.var();
        var.set(&noise(seed as u64 + 50, var.dims()).to_dtype(var.dtype()).unwrap()).unwrap();
    }
}

fn linear(params: &Params) -> LoraLinear {
    let base = Linear::new(noise(1, &[4, 3]), Some(noise(2, &[4])));
    LoraLinear::new(base, "encoder.query", &config(2), params).unwrap()
}

fn conv(params: &Params, groups: usize, stride: usize) -> LoraConv2d {
    let base = Conv2dConfig { groups, stride, padding: 1, ..Conv2dConfig::default() };
    let base = Conv2d::new(noise(3, &[6, 4 / groups, 3, 2]), Some(noise(4, &[6])), base);
    LoraConv2d::new(base, "stem.conv", &config(3), params).unwrap()
}

fn embedding(params: &Params) -> LoraEmbedding {
    LoraEmbedding::new(Embedding::new(noise(5, &[7, 5]), 5), "tokens", &config(2), params).unwrap()
}

fn ids() -> Tensor {
    Tensor::new(&[[0u32, 6, 2], [2, 3, 0]], &Device::Cpu).unwrap()
}

#[test]
fn factors_have_the_names_and_shapes_of_peft_and_the_zero_anchor() {
    let params = Params::default();
    linear(&params);
    conv(&params, 2, 1);
    embedding(&params);
    let got: Vec<_> =
        params.all().iter().map(|param| (param.name().to_owned(), param.var().dims().to_vec())).collect();
    let expected = [
        ("encoder.query.lora_A.weight", vec![2, 3]),
        ("encoder.query.lora_B.weight", vec![4, 2]),
        ("stem.conv.lora_A.weight", vec![3, 2, 3, 2]),
        ("stem.conv.lora_B.weight", vec![6, 3, 1, 1]),
        ("tokens.lora_embedding_A", vec![2, 7]),
        ("tokens.lora_embedding_B", vec![5, 2]),
    ];
    assert_eq!(got, expected.map(|(name, shape)| (name.to_owned(), shape)));
    assert!(params.all().iter().all(|param| matches!(param.anchor(), Anchor::Zero)));
    // Two adapters of one module would have the same factors.
    let again = LoraLinear::new(Linear::new(noise(1, &[4, 3]), None), "encoder.query", &config(2), &params);
    assert!(
        matches!(again, Err(lora::Error::Params(tpgm_candle::params::Error::DuplicateParam { .. }))),
        "{again:?}"
    );
}

#[test]
fn initial_factors_leave_the_base_as_it_is() {
    let params = Params::default();
    let (linear, conv, embedding) = (linear(&params), conv(&params, 2, 2), embedding(&params));
    let (xs, image) = (noise(6, &[2, 3]), noise(7, &[2, 4, 5, 6]));
    assert_eq!(distance(&linear.forward(&xs).unwrap(), &linear.base().forward(&xs).unwrap()), 0.0);
    assert_eq!(distance(&conv.forward(&image).unwrap(), &conv.base().forward(&image).unwrap()), 0.0);
    assert_eq!(
        distance(&embedding.forward(&ids()).unwrap(), &embedding.base().forward(&ids()).unwrap()),
        0.0
    );
    // Kaiming uniform with a = sqrt(5): within 1 / sqrt(fan in).
    let big = LoraLinear::new(Linear::new(noise(1, &[4, 400]), None), "big", &config(50), &params).unwrap();
    assert!(big.is_adapted());
    let a = numbers(params.get("big.lora_A.weight").unwrap().var());
    let most = a.iter().map(|x| x.abs()).fold(0.0, f64::max);
    assert!(most <= 0.05 && most > 0.049, "{most}");
    let variance = a.iter().map(|x| x * x).sum::<f64>() / a.len() as f64;
    assert!((variance / (0.05f64.powi(2) / 3.0) - 1.0).abs() < 0.03, "{variance}");
    // Embeddings: standard normal.
    let big = Embedding::new(noise(1, &[4, 4000]), 4000);
    LoraEmbedding::new(big, "words", &config(5), &params).unwrap();
    let b = numbers(params.get("words.lora_embedding_B").unwrap().var());
    let variance = b.iter().map(|x| x * x).sum::<f64>() / b.len() as f64;
    assert!((variance - 1.0).abs() < 0.05, "{variance}");
    assert!(numbers(params.get("words.lora_embedding_A").unwrap().var()).iter().all(|x| *x == 0.0));
}

#[test]
fn initial_factors_depend_on_seed_and_name_alone() {
    let factor = |name: &str, seed: u64, first: bool| {
        let params = Params::default();
        let config = LoraConfig { seed, ..config(2) };
        if first {
            LoraLinear::new(Linear::new(noise(1, &[4, 3]), None), "another", &config, &params).unwrap();
        }
        LoraLinear::new(Linear::new(noise(1, &[4, 3]), None), name, &config, &params).unwrap();
        numbers(params.get(&format!("{name}.lora_A.weight")).unwrap().var())
    };
    assert_eq!(factor("a", 0, false), factor("a", 0, true));
    assert_ne!(factor("a", 0, false), factor("b", 0, false));
    assert_ne!(factor("a", 0, false), factor("a", 1, false));
}

#[test]
fn at_the_first_step_one_factor_has_a_gradient_and_the_other_zeros() {
    let params = Params::default();
    let (linear, conv, embedding) = (linear(&params), conv(&params, 2, 1), embedding(&params));
    let outputs = [
        linear.forward(&noise(6, &[2, 3])).unwrap(),
        conv.forward(&noise(7, &[2, 4, 5, 6])).unwrap(),
        embedding.forward(&ids()).unwrap(),
    ];
    for output in outputs {
        let grads = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for param in params.all() {
            let Some(grad) = grads.get(param.var()) else { continue };
            let zero = numbers(grad).iter().all(|x| *x == 0.0);
            let other = param.name().ends_with("lora_A.weight") || param.name().ends_with("lora_embedding_B");
            assert_eq!(zero, other, "{}", param.name());
        }
    }
}

/// Compares the gradient of every factor with finite differences of `loss`.
fn check_gradients(params: &Params, loss: impl Fn() -> Tensor) {
    let grads = loss().backward().unwrap();
    for param in params.all() {
        let var = param.var();
        let grad = numbers(grads.get(var).unwrap_or_else(|| panic!("{} has no gradient", param.name())));
        let values = numbers(var);
        for i in 0..values.len() {
            let at = |x: f64| {
                let mut moved = values.clone();
                moved[i] = x;
                var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let eps = 1e-5;
            let expected = (at(values[i] + eps) - at(values[i] - eps)) / (2.0 * eps);
            at(values[i]);
            let bound = 1e-6 * (1.0 + expected.abs());
            assert!((grad[i] - expected).abs() < bound, "{}[{i}]: {} {expected}", param.name(), grad[i]);
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let loss = |output: Tensor| {
        let weights = noise(9, output.dims());
        (output.sqr().unwrap() * weights).unwrap().sum_all().unwrap()
    };
    let params = Params::default();
    let layer = linear(&params);
    disturb(&params);
    check_gradients(&params, || loss(layer.forward(&noise(6, &[2, 2, 3])).unwrap()));
    for (groups, stride) in [(1, 1), (2, 2), (1, 2)] {
        let params = Params::default();
        let layer = conv(&params, groups, stride);
        disturb(&params);
        check_gradients(&params, || loss(layer.forward(&noise(7, &[2, 4, 5, 6])).unwrap()));
    }
    let params = Params::default();
    let layer = embedding(&params);
    disturb(&params);
    check_gradients(&params, || loss(layer.forward(&ids()).unwrap()));
}

#[test]
fn merged_weights_give_the_same_outputs() {
    for (groups, stride) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let params = Params::default();
        let layer = conv(&params, groups, stride);
        disturb(&params);
        let image = noise(7, &[2, 4, 7, 6]);
        let merged = layer.clone().into_merged().unwrap();
        assert!(distance(merged.weight(), layer.base().weight()) > 0.1);
        let off = distance(&merged.forward(&image).unwrap(), &layer.forward(&image).unwrap());
        assert!(off < 1e-13, "{groups} {stride}: {off}");
    }
    let params = Params::default();
    let (linear, embedding) = (linear(&params), embedding(&params));
    disturb(&params);
    let xs = noise(6, &[2, 3, 3]);
    let merged = linear.clone().into_merged().unwrap();
    assert!(distance(&merged.forward(&xs).unwrap(), &linear.forward(&xs).unwrap()) < 1e-13);
    let merged = embedding.clone().into_merged().unwrap();
    assert!(distance(&merged.forward(&ids()).unwrap(), &embedding.forward(&ids()).unwrap()) < 1e-13);
}

#[test]
fn the_update_of_a_linear_layer_is_the_scaled_product() {
    let params = Params::default();
    let layer = linear(&params);
    disturb(&params);
    let [a, b] =
        ["A", "B"].map(|f| numbers(params.get(&format!("encoder.query.lora_{f}.weight")).unwrap().var()));
    let (weight, merged) = (numbers(layer.base().weight()), numbers(&layer.merged_weight().unwrap()));
    for row in 0..4 {
        for column in 0..3 {
            let product: f64 = (0..2).map(|k| b[row * 2 + k] * a[k * 3 + column]).sum();
            let expected = weight[row * 3 + column] + 3.0 / 2.0 * product;
            assert!((merged[row * 3 + column] - expected).abs() < 1e-14);
        }
    }
}

#[test]
fn unmerging_restores_the_bits() {
    let params = Params::default();
    let mut layer = linear(&params);
    disturb(&params);
    let xs = noise(6, &[2, 3]);
    let (before, weight) = (numbers(&layer.forward(&xs).unwrap()), numbers(layer.base().weight()));
    layer.merge().unwrap();
    assert!(layer.is_merged());
    assert!(
        distance(
            &layer.forward(&xs).unwrap(),
            &Tensor::from_vec(before.clone(), (2, 4), &Device::Cpu).unwrap()
        ) < 1e-13
    );
    let error = layer.forward_t(&xs, true).unwrap_err();
    assert!(error.to_string().contains("encoder.query"), "{error}");
    layer.unmerge();
    assert_eq!(numbers(&layer.forward(&xs).unwrap()), before);
    assert_eq!(numbers(layer.base().weight()), weight);

    let var = Var::zeros((4, 3), DType::F64, &Device::Cpu).unwrap();
    layer.merge_into(&var).unwrap();
    assert_eq!(numbers(&var), numbers(&layer.merged_weight().unwrap()));
    let own = Var::from_tensor(&noise(1, &[4, 3])).unwrap();
    let base = Linear::new(own.as_tensor().clone(), None);
    let layer = LoraLinear::new(base, "other", &config(2), &params).unwrap();
    assert!(matches!(layer.merge_into(&own), Err(nn::Error::MergeIntoBase { .. })));
}

#[test]
fn half_precision_layers_have_f32_factors() {
    let params = Params::default();
    let weight = noise(1, &[4, 3]).to_dtype(DType::BF16).unwrap();
    let layer = LoraLinear::new(Linear::new(weight, None), "w", &config(2), &params).unwrap();
    assert!(params.all().iter().all(|param| param.var().dtype() == DType::F32));
    let xs = noise(1, &[5, 3]).to_dtype(DType::BF16).unwrap();
    assert_eq!(layer.forward(&xs).unwrap().dtype(), DType::BF16);
    assert_eq!(layer.merged_weight().unwrap().dtype(), DType::BF16);
}

#[test]
fn dropout_acts_in_training_only() {
    let run = |seed: u64| {
        let params = Params::default();
        let config = LoraConfig { dropout: 0.5, seed, ..config(1) };
        let base = Linear::new(Tensor::zeros((1, 1), DType::F64, &Device::Cpu).unwrap(), None);
        let layer = LoraLinear::new(base, "w", &config, &params).unwrap();
        for param in params.all() {
            param.var().set(&Tensor::ones((1, 1), DType::F64, &Device::Cpu).unwrap()).unwrap();
        }
        let xs = Tensor::ones((10_000, 1), DType::F64, &Device::Cpu).unwrap();
        assert!(numbers(&layer.forward_t(&xs, false).unwrap()).iter().all(|y| *y == 3.0));
        [numbers(&layer.forward_t(&xs, true).unwrap()), numbers(&layer.forward_t(&xs, true).unwrap())]
    };
    let [first, second] = run(0);
    assert_ne!(first, second, "a mask for every pass");
    assert_eq!([first.clone(), second], run(0));
    assert_ne!(first, run(1)[0]);
    let kept = first.iter().filter(|y| **y == 6.0).count();
    assert!(first.iter().all(|y| *y == 6.0 || *y == 0.0));
    assert!((4_800..5_200).contains(&kept), "{kept}");

    // A shared source continues where a saved one stood.
    let params = Params::default();
    let options = LoraConfig { dropout: 0.5, ..config(1) };
    let base = Linear::new(Tensor::zeros((1, 1), DType::F64, &Device::Cpu).unwrap(), None);
    let rng = DropoutRng::new(5);
    let layer = LoraLinear::new(base, "w", &options, &params).unwrap().dropout_rng(&rng).unwrap();
    disturb(&params);
    let xs = Tensor::ones((100, 1), DType::F64, &Device::Cpu).unwrap();
    let pass = || numbers(&layer.forward_t(&xs, true).unwrap());
    pass();
    let saved = rng.state();
    let expected = pass();
    assert_ne!(pass(), expected);
    rng.load_state(saved);
    assert_eq!(pass(), expected);
}

#[test]
fn targets_choose_modules() {
    let targets = ["query", "decoder.*.value", "head"].map(str::to_owned).to_vec();
    let config = LoraConfig { targets, ..config(2) };
    for (name, chosen) in [
        ("encoder.0.query", true),
        ("query", true),
        ("encoder.0.subquery", false),
        ("encoder.0.query.inner", false),
        ("decoder.3.value", true),
        ("encoder.3.value", false),
        ("head", true),
    ] {
        assert_eq!(config.is_target(name), chosen, "{name}");
    }
    let params = Params::default();
    let base = || Linear::new(noise(1, &[4, 3]), None);
    assert!(config.wrap("encoder.0.query", base(), &params).unwrap().is_adapted());
    let plain = config.wrap("encoder.0.key", base(), &params).unwrap();
    assert!(!plain.is_adapted());
    assert_eq!(
        distance(&plain.forward(&noise(6, &[2, 3])).unwrap(), &base().forward(&noise(6, &[2, 3])).unwrap()),
        0.0
    );
    config.wrap("decoder.1.value", base(), &params).unwrap();
    assert_eq!(params.all().len(), 4);
    let error = config.check_targets(&params).unwrap_err();
    assert!(
        matches!(&error, lora::Error::Nn(nn::Error::LoraTarget { target, adapted: 2 }) if target == "head"),
        "{error}"
    );
}

#[test]
fn options_are_checked() {
    let params = Params::default();
    let make = |config: LoraConfig| {
        LoraLinear::new(Linear::new(noise(1, &[4, 3]), None), "w", &config, &params).unwrap_err().to_string()
    };
    assert!(make(config(0)).contains("LoraConfig::rank"));
    assert!(make(LoraConfig { dropout: 1.0, ..config(1) }).contains("LoraConfig::dropout"));
    assert!(make(LoraConfig { alpha: f64::NAN, ..config(1) }).contains("LoraConfig::alpha"));
    assert!(params.all().is_empty());
    assert_eq!(config(4).scaling(), 0.75);
    assert_eq!(LoraConfig { rslora: true, ..config(4) }.scaling(), 1.5);
}

// The files of PEFT: `fixtures/peft/make.py` made them.

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name)
}

fn load(path: PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

struct Model {
    query: LoraLinear,
    key: LoraLinear,
    conv: LoraConv2d,
    tokens: LoraEmbedding,
    inputs: HashMap<String, Tensor>,
}

impl Model {
    fn new(config: &LoraConfig, params: &Params) -> Self {
        let base = load(fixture("base.safetensors"));
        let get = |name: &str| base[name].clone();
        let linear =
            |name: &str| Linear::new(get(&format!("{name}.weight")), Some(get(&format!("{name}.bias"))));
        let geometry = Conv2dConfig { stride: 2, padding: 1, ..Conv2dConfig::default() };
        let conv = Conv2d::new(get("stem.conv.weight"), Some(get("stem.conv.bias")), geometry);
        let model = Self {
            query: config.wrap("encoder.query", linear("encoder.query"), params).unwrap(),
            key: config.wrap("encoder.key", linear("encoder.key"), params).unwrap(),
            conv: config.wrap("stem.conv", conv, params).unwrap(),
            tokens: config.wrap("tokens", Embedding::new(get("tokens.weight"), 6), params).unwrap(),
            inputs: base.clone(),
        };
        config.check_targets(params).unwrap();
        model
    }

    fn outputs(&self) -> HashMap<String, Tensor> {
        let input = |name: &str| &self.inputs[&format!("input.{name}")];
        HashMap::from([
            ("query".to_owned(), self.query.forward(input("features")).unwrap()),
            ("key".to_owned(), self.key.forward(input("features")).unwrap()),
            ("conv".to_owned(), self.conv.forward(input("image")).unwrap()),
            ("tokens".to_owned(), self.tokens.forward(input("ids")).unwrap()),
        ])
    }
}

#[test]
fn adapters_of_peft_give_its_outputs() {
    for (name, rank, rslora, scaling) in [("plain", 2, false, 3.0), ("rslora", 3, true, 4.0 / 3f64.sqrt())] {
        let config = LoraConfig::from_adapter(fixture(name)).unwrap();
        assert_eq!((config.rank, config.rslora, config.scaling()), (rank, rslora, scaling));
        assert_eq!(config.dropout, if name == "plain" { 0.25 } else { 0.0 });
        let params = Params::default();
        let model = Model::new(&config, &params);
        load_adapter(fixture(name), &params).unwrap();
        let expected = load(fixture(name).join("expected.safetensors"));
        for (output, got) in model.outputs() {
            let off = distance(&got, &expected[&output]);
            assert!(off < 1e-5, "{name} {output}: {off}");
        }
        for (weight, got) in [
            ("merged.query", model.query.merged_weight()),
            ("merged.conv", model.conv.merged_weight()),
            ("merged.tokens", model.tokens.merged_weight()),
        ] {
            let off = distance(&got.unwrap(), &expected[weight]);
            assert!(off < 2e-6, "{name} {weight}: {off}");
        }
    }
}

#[test]
fn adapters_come_back_from_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let targets = ["*.query", "stem.conv", "tokens"].map(str::to_owned).to_vec();
    let config = LoraConfig {
        rank: 3,
        alpha: 4.5,
        rslora: true,
        dropout: 0.125,
        targets,
        seed: 3,
        ..Default::default()
    };
    let params = Params::default();
    let model = Model::new(&config, &params);
    disturb(&params);
    save_adapter(folder.path(), &config, &params).unwrap();
    // For `make.py check`: what PEFT should find.
    candle_core::safetensors::save(&model.outputs(), folder.path().join("outputs.safetensors")).unwrap();
    if let Some(keep) = std::env::var_os("KEEP_ADAPTER") {
        fs::create_dir_all(&keep).unwrap();
        for file in fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), Path::new(&keep).join(file.file_name())).unwrap();
        }
    }

    let found = LoraConfig::from_adapter(folder.path()).unwrap();
    let targets = ["encoder.query", "stem.conv", "tokens"].map(str::to_owned).to_vec();
    assert_eq!(found, LoraConfig { targets, seed: 0, ..config.clone() }, "patterns are written as names");
    let fresh = Params::default();
    let again = Model::new(&found, &fresh);
    load_adapter(folder.path(), &fresh).unwrap();
    for (name, output) in model.outputs() {
        assert_eq!(numbers(&output), numbers(&again.outputs()[&name]), "{name}");
    }

    // Other models than the adapter's are refused, and keep their factors.
    let before = |params: &Params| params.all().iter().map(|param| numbers(param.var())).collect::<Vec<_>>();
    let other = Params::default();
    Model::new(&LoraConfig { rank: 2, ..config.clone() }, &other);
    let old = before(&other);
    assert!(matches!(
        load_adapter(folder.path(), &other),
        Err(lora::Error::Merge(weight_space::MergeError::TensorMismatch { .. }))
    ));
    assert_eq!(before(&other), old);
    let fewer = Params::default();
    Model::new(&LoraConfig { targets: vec!["tokens".to_owned()], ..config.clone() }, &fewer);
    assert!(matches!(
        load_adapter(folder.path(), &fewer),
        Err(lora::Error::Merge(weight_space::MergeError::MissingTensor { .. }))
    ));
    let more = Params::default();
    Model::new(&LoraConfig { targets: vec!["*".to_owned()], ..config }, &more);
    let error = load_adapter(folder.path(), &more).unwrap_err();
    assert!(
        matches!(&error, lora::Error::Merge(weight_space::MergeError::MissingTensor { tensor, .. }) if tensor.contains("encoder.key")),
        "{error}"
    );
}

#[test]
fn adapters_that_compute_something_else_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_config.json");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        LoraConfig::from_adapter(folder.path())
    };
    assert_eq!(read(r#"{"target_modules": ["q"]}"#).unwrap().rank, 8);
    for (text, option) in [
        (r#"{"peft_type": "IA3"}"#, "peft_type"),
        (r#"{"use_dora": true, "target_modules": []}"#, "use_dora"),
        (r#"{"bias": "all"}"#, "bias"),
        (r#"{"rank_pattern": {"q": 4}}"#, "rank_pattern"),
        (r#"{"init_lora_weights": "pissa_niter_4"}"#, "init_lora_weights"),
    ] {
        let error = read(text).unwrap_err();
        assert!(matches!(&error, nn::Error::AdapterOption { option: got, .. } if got == option), "{error}");
    }
    for text in [
        "",
        "[]",
        r#"{"r": -1, "target_modules": []}"#,
        r#"{"lora_alpha": "a", "target_modules": []}"#,
        r#"{"target_modules": [1]}"#,
        r#"{"target_modules": [], "modules_to_save": "head"}"#,
        r#"{"target_modules": [], "modules_to_save": [2]}"#,
    ] {
        assert!(matches!(read(text), Err(nn::Error::BadFile { .. })), "{text}");
    }
    assert!(
        matches!(read(r#"{"target_modules": ".*q"}"#), Err(nn::Error::Io { .. })),
        "no weights to see names in"
    );
    assert!(matches!(LoraConfig::from_adapter("nowhere"), Err(nn::Error::Io { .. })));
}
