//! EfficientNet and MobileNet.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use tpgm_candle::models::efficientnet::{
    EfficientNetActivation, EfficientNetClassifier, EfficientNetConfig, EfficientNetGate, EfficientNetLayout,
    InvertedResidual,
};
use tpgm_candle::nn::random::{GAMMA, fnv1a, mix};
use tpgm_candle::nn::{DropoutRng, Statistics, cross_entropy};
use tpgm_candle::{AdamW, Audit, Ftp, Params, RobustOptimizer, nn};

use super::{Reference, parameters, relative_deviation, written};

const FILE: &str = "efficientnets.safetensors";

use EfficientNetActivation::{HardSwish, Relu, Relu6, Silu};
use EfficientNetLayout::{EfficientNetPytorch, Timm, Torchvision, TorchvisionV2, TorchvisionV3};

/// A block: side of the window, channels inside, channels, channels of the squeeze, stride, activation.
fn block(
    kernel: usize,
    expanded: usize,
    outputs: usize,
    squeezed: Option<usize>,
    stride: usize,
    activation: EfficientNetActivation,
) -> InvertedResidual {
    InvertedResidual { expanded, kernel, stride, outputs, squeezed, activation }
}

/// `make_efficientnets.py`'s network of some name, and its layout.
fn tiny(name: &str) -> (EfficientNetConfig, EfficientNetLayout) {
    let base = if name.ends_with("v3") {
        EfficientNetConfig::mobilenet_v3_small()
    } else if name.ends_with('b') {
        EfficientNetConfig::b0()
    } else {
        EfficientNetConfig::lite0()
    };
    let sized = |base, stem, last, stages| EfficientNetConfig { stem, last, stages, ..base };
    let squeezed = |channels| name.ends_with('b').then_some(channels);
    let act = if name.ends_with('b') { Silu } else { Relu6 };
    match name {
        "package_lite" | "package_b" => {
            let stages = vec![
                vec![block(3, 4, 8, squeezed(1), 1, act)],
                vec![block(3, 48, 4, squeezed(2), 2, act), block(3, 24, 4, squeezed(1), 1, act)],
                vec![block(5, 12, 8, squeezed(1), 2, act), block(5, 24, 8, squeezed(2), 1, act)],
            ];
            (sized(base, 4, 160, stages), EfficientNetPytorch)
        }
        "timm_lite" | "tf_lite" | "timm_b" | "tf_b" => {
            let stages = vec![
                vec![block(3, 4, 4, squeezed(1), 1, act)],
                vec![block(3, 24, 4, squeezed(1), 2, act), block(3, 24, 4, squeezed(1), 1, act)],
                vec![block(5, 16, 8, squeezed(1), 2, act), block(5, 24, 8, squeezed(2), 1, act)],
            ];
            let config = sized(base, 4, 12, stages);
            (if name.starts_with("tf") { config.tensorflow() } else { config.pytorch() }, Timm)
        }
        "timm_v3" | "tf_v3" => {
            let stages = vec![
                vec![block(3, 4, 4, Some(4), 2, Relu)],
                vec![block(3, 16, 4, None, 2, Relu), block(3, 16, 4, None, 1, Relu)],
                vec![block(5, 16, 8, Some(4), 2, HardSwish), block(5, 32, 8, Some(8), 1, HardSwish)],
            ];
            let config = EfficientNetConfig { hidden: Some(16), ..sized(base, 4, 12, stages) };
            (if name.starts_with("tf") { config.tensorflow() } else { config.pytorch() }, Timm)
        }
        "torchvision_b" => {
            let stages = vec![
                vec![block(3, 8, 8, Some(2), 1, Silu)],
                vec![block(3, 24, 8, Some(2), 2, Silu), block(3, 24, 8, Some(2), 1, Silu)],
                vec![block(5, 16, 16, Some(2), 2, Silu), block(5, 32, 16, Some(4), 1, Silu)],
            ];
            (sized(base, 8, 12, stages).pytorch(), Torchvision)
        }
        "torchvision_v2" => {
            let stages = vec![
                vec![block(3, 8, 4, None, 1, Relu6)],
                vec![block(3, 12, 4, None, 2, Relu6), block(3, 12, 4, None, 1, Relu6)],
                vec![block(3, 24, 4, None, 2, Relu6), block(3, 24, 4, None, 1, Relu6)],
            ];
            (sized(EfficientNetConfig::mobilenet_v2(), 8, 12, stages), TorchvisionV2)
        }
        "torchvision_v3" => {
            let stages = vec![
                vec![block(3, 8, 8, Some(8), 2, Relu)],
                vec![block(3, 16, 8, None, 2, Relu), block(3, 24, 8, None, 1, Relu)],
                vec![block(5, 24, 16, Some(8), 2, HardSwish)],
            ];
            (EfficientNetConfig { hidden: Some(16), ..sized(base, 8, 96, stages) }, TorchvisionV3)
        }
        _ => unreachable!("{name}"),
    }
}

const ALL: [&str; 11] = [
    "package_lite",
    "package_b",
    "timm_lite",
    "timm_b",
    "timm_v3",
    "tf_lite",
    "tf_b",
    "tf_v3",
    "torchvision_b",
    "torchvision_v2",
    "torchvision_v3",
];

/// A convolution and its norm in the middle of the network.
fn middle(layout: EfficientNetLayout) -> &'static str {
    match layout {
        EfficientNetPytorch => "_blocks.1._bn1",
        Timm => "blocks.1.0.bn2",
        Torchvision => "features.2.0.block.1.1",
        TorchvisionV2 => "features.2.conv.1.1",
        TorchvisionV3 => "features.2.block.1.1",
    }
}

fn classifier(config: &EfficientNetConfig, params: &Params) -> EfficientNetClassifier {
    EfficientNetClassifier::new(config, 5, &DropoutRng::new(0), params.var_builder()).unwrap()
}

fn labels() -> Tensor {
    Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap()
}

/// A number of each gradient, in the order of names, as `make_efficientnets.py` computes it.
fn gradients(params: &Params, loss: &Tensor) -> Tensor {
    let grads = loss.backward().unwrap();
    let mut params = params.all();
    params.sort_by_key(|param| param.name().to_owned());
    let numbers = params.iter().map(|param| {
        let direction = uniform(&format!("{} direction", param.name()), param.var().dims());
        let product = (grads.get(param.var()).unwrap() * direction).unwrap();
        product.sum_all().unwrap().to_scalar::<f64>().unwrap()
    });
    let numbers: Vec<f64> = numbers.collect();
    let count = numbers.len();
    Tensor::from_vec(numbers, count, &Device::Cpu).unwrap()
}

#[test]
fn checkpoints_of_all_layouts_compute_what_published_code_computes() {
    for name in ALL {
        let reference = Reference::of(FILE, name);
        let (config, layout) = tiny(name);
        let images = uniform("images", &[3, 3, 37, 50]);
        let images = (images * 2.0).unwrap();
        let same = |what: &str, got: &Tensor| {
            let deviation = relative_deviation(got, &reference.get(what));
            assert!(deviation < 1e-11, "{name}: {what}: {deviation:e}");
        };

        let params = reference.params();
        assert_eq!(EfficientNetLayout::find(&params.var_builder()).unwrap(), layout, "{name}");
        let model = classifier(&config.clone().statistics(Statistics::Running), &params);
        // Counts of batches are there, as i64, and neither missed nor reported.
        params.report().unwrap().require_all_used().unwrap();
        same("eval", &model.forward(&images, false).unwrap());
        let logits = model.forward(&images, true).unwrap();
        same("eval", &logits);
        same("frozen_gradients", &gradients(&params, &cross_entropy(&logits, &labels()).unwrap()));

        let model = classifier(&config, &params);
        same("train", &model.forward(&images, true).unwrap());
        let logits = model.forward(&images, true).unwrap();
        same("train_gradients", &gradients(&params, &cross_entropy(&logits, &labels()).unwrap()));
        for what in ["running_mean", "running_var"] {
            same(what, &params.buffers()[&format!("{}.{what}", middle(layout))]);
        }
    }
}

#[test]
fn the_published_sizes_compute_what_published_code_computes() {
    let reference = Reference::of(FILE, "full");
    let images = (uniform("images", &[2, 3, 41, 34]) * 2.0).unwrap();
    let lites: [(_, fn() -> EfficientNetConfig); 5] = [
        ("lite0", EfficientNetConfig::lite0),
        ("lite1", EfficientNetConfig::lite1),
        ("lite2", EfficientNetConfig::lite2),
        ("lite3", EfficientNetConfig::lite3),
        ("lite4", EfficientNetConfig::lite4),
    ];
    let mut all: Vec<(String, EfficientNetConfig, EfficientNetLayout)> = vec![
        ("package/lite0".to_owned(), EfficientNetConfig::lite0(), EfficientNetPytorch),
        ("package/lite3".to_owned(), EfficientNetConfig::lite3(), EfficientNetPytorch),
        ("timm/b0".to_owned(), EfficientNetConfig::b0().pytorch(), Timm),
        ("torchvision/b0".to_owned(), EfficientNetConfig::b0().pytorch(), Torchvision),
        ("timm/mobilenet_v2".to_owned(), EfficientNetConfig::mobilenet_v2(), Timm),
        ("torchvision/mobilenet_v2".to_owned(), EfficientNetConfig::mobilenet_v2(), TorchvisionV2),
    ];
    all.extend(lites.map(|(name, config)| (format!("timm/{name}"), config().pytorch(), Timm)));
    for (name, config) in [
        ("mobilenet_v3_small", EfficientNetConfig::mobilenet_v3_small()),
        ("mobilenet_v3_large", EfficientNetConfig::mobilenet_v3_large()),
    ] {
        all.push((format!("timm/{name}"), config.clone().pytorch(), Timm));
        all.push((format!("torchvision/{name}"), config, TorchvisionV3));
    }
    for (name, config, layout) in all {
        let vb = VarBuilder::from_backend(Box::new(ByName), DType::F64, Device::Cpu);
        let rng = DropoutRng::new(0);
        let model = EfficientNetClassifier::with_layout(&config, 3, layout, &rng, vb).unwrap();
        let got = model.forward(&images, false).unwrap();
        let deviation = relative_deviation(&got, &reference.get(&name));
        assert!(deviation < 1e-10, "{name}: {deviation:e}");
    }
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let images = uniform("images", &[3, 3, 13, 12]);
    for (name, statistics) in [
        ("package_lite", Statistics::Running),
        ("timm_v3", Statistics::Running),
        ("torchvision_b", Statistics::Batch),
    ] {
        let params = Reference::of(FILE, name).params();
        let model = classifier(&tiny(name).0.statistics(statistics), &params);
        let loss = || cross_entropy(&model.forward(&images, true)?, &labels());
        let report = Audit::new(&params).finite_differences(4, 1e-7).run(loss).unwrap();
        // What is added behind the last convolution of a block is removed by the next batch norm, but at the image's edge.
        let expected = |name: &String| statistics == Statistics::Batch && name.ends_with(".1.bias");
        assert!(report.zero.is_empty() && report.inconclusive.iter().all(expected), "{name}: {report}");
        let checked = report.checked + report.inconclusive.len();
        assert_eq!(checked, params.all().len(), "{name}: {report}");
    }
}

#[test]
fn heads_of_other_classes_are_made_anew() {
    for name in ["package_lite", "timm_v3", "torchvision_b", "torchvision_v2", "torchvision_v3"] {
        let (config, layout) = tiny(name);
        let reference = Reference::of(FILE, name);
        let params = reference.params().head(format!("{}.*", layout.head()));
        let model =
            EfficientNetClassifier::new(&config, 7, &DropoutRng::new(0), params.var_builder()).unwrap();
        let images = uniform("images", &[2, 3, 9, 12]);
        let features = model.features(&images, false).unwrap();
        assert_eq!(features.dims(), [2, config.features()]);
        let logits = model.forward(&images, false).unwrap();
        assert_eq!(logits.dims(), [2, 7]);
        let classified = model.classify(&features).unwrap();
        assert_eq!(relative_deviation(&classified, &logits), 0.0);
        let head = layout.head();
        assert_eq!(params.report().unwrap().fresh, [format!("{head}.bias"), format!("{head}.weight")]);
    }
}

#[test]
fn a_few_steps_fit_a_batch_with_norms_frozen_or_not() {
    let images = uniform("images", &[3, 3, 32, 32]);
    for statistics in [Statistics::Batch, Statistics::Running] {
        let params = Reference::of(FILE, "tf_b").params().head("classifier.*");
        let model = classifier(&tiny("tf_b").0.statistics(statistics), &params);
        let loss = || cross_entropy(&model.forward(&images, true).unwrap(), &labels()).unwrap();
        let moving = || params.buffers()["blocks.1.0.bn2.running_var"].to_vec1::<f64>().unwrap();
        let (before, statistics_before) = (loss().to_scalar::<f64>().unwrap(), moving());
        let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.02), Ftp::default()).unwrap();
        for _ in 0..60 {
            optimizer.backward_step(&loss()).unwrap();
        }
        let after = loss().to_scalar::<f64>().unwrap();
        assert!(after < 0.5 * before, "{statistics:?}: {before} to {after}");
        assert_eq!(moving() == statistics_before, statistics == Statistics::Running);
    }
}

#[test]
fn dropout_and_skipped_blocks_are_off_unless_asked_for() {
    let reference = Reference::of(FILE, "timm_lite");
    let (config, _) = tiny("timm_lite");
    let config = config.statistics(Statistics::Running);
    let images = uniform("images", &[3, 3, 16, 16]);
    let params = reference.params();
    let twice = |config: &EfficientNetConfig, train| {
        let model = classifier(config, &params);
        [(); 2].map(|()| model.features(&images, train).unwrap())
    };
    let [plain, again] = twice(&config, true);
    assert_eq!(relative_deviation(&again, &plain), 0.0);
    for config in [
        EfficientNetConfig { dropout: 0.4, ..config.clone() },
        EfficientNetConfig { drop_connect: 0.9, ..config.clone() },
    ] {
        let [first, second] = twice(&config, true);
        assert!(relative_deviation(&second, &first) > 1e-3);
        for features in twice(&config, false) {
            assert_eq!(relative_deviation(&features, &plain), 0.0);
        }
    }
    // An image skips a block or has its result made larger: with blocks 2 and 4 of 5 there are four outcomes, and with the
    // probabilities 0.4 and 0.8 times 0.9 each is seen in sixty draws.
    let config = EfficientNetConfig { drop_connect: 0.9, ..config };
    let model = classifier(&config, &params);
    let mut outcomes: Vec<f64> = vec![];
    for _ in 0..60 {
        let one = model.features(&images.narrow(0, 0, 1).unwrap(), true).unwrap();
        let sum = one.sum_all().unwrap().to_scalar::<f64>().unwrap();
        if outcomes.iter().all(|known| (known - sum).abs() > 1e-9) {
            outcomes.push(sum);
        }
    }
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
}

#[test]
fn sizes_are_the_published_ones() {
    for (config, layout, count) in [
        (EfficientNetConfig::lite0(), EfficientNetPytorch, 4_652_008),
        (EfficientNetConfig::b0(), EfficientNetPytorch, 5_288_548),
        (EfficientNetConfig::mobilenet_v2(), TorchvisionV2, 3_504_872),
        (EfficientNetConfig::mobilenet_v3_small(), TorchvisionV3, 2_542_856),
        (EfficientNetConfig::mobilenet_v3_large(), Timm, 5_483_032),
    ] {
        let rng = DropoutRng::new(0);
        let found = parameters(|vb| EfficientNetClassifier::with_layout(&config, 1000, layout, &rng, vb));
        assert_eq!(found, count, "{layout:?}");
    }
}

#[test]
fn configurations_are_read_and_mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| EfficientNetConfig::from_file(written(folder.path(), text));
    for (name, expected) in [
        ("tf_efficientnet_lite0", EfficientNetConfig::lite0()),
        ("efficientnet_lite4", EfficientNetConfig::lite4().pytorch()),
        ("tf_efficientnet_b0", EfficientNetConfig::b0()),
        ("efficientnet_b0", EfficientNetConfig::b0().pytorch()),
        ("mobilenetv2_100", EfficientNetConfig::mobilenet_v2()),
        ("mobilenetv3_small_100", EfficientNetConfig::mobilenet_v3_small().pytorch()),
        ("tf_mobilenetv3_large_100", EfficientNetConfig::mobilenet_v3_large().tensorflow()),
    ] {
        let config = read(&format!(
            r#"{{"architecture": "{name}", "num_classes": 1000, "global_pool": "avg", "pretrained_cfg": {{}}}}"#
        ));
        assert_eq!(config.unwrap(), expected, "{name}");
    }
    let own = EfficientNetConfig { drop_connect: 0.2, ..EfficientNetConfig::mobilenet_v3_small() };
    assert_eq!(read(&serde_json::to_string(&own).unwrap()).unwrap(), own);
    assert_eq!((own.gate, own.features()), (EfficientNetGate::HardSigmoid, 1024));

    let error = |text: &str| read(text).unwrap_err().to_string();
    for (text, parts) in [
        (r#"{"architecture": "efficientnet_b7"}"#, ["efficientnet_b7", "[tf_]efficientnet_b0"]),
        (r#"{"architecture": "tf_mobilenetv2_100"}"#, ["tf_mobilenetv2_100", "mobilenetv2_100"]),
        (r#"{"model_type": "efficientnet"}"#, ["`model_type`", "efficientnet"]),
        (r#"{"architecture": "efficientnet_b0", "global_pool": "max"}"#, ["`global_pool`", "max"]),
        (
            r#"{"architecture": "efficientnet_b0", "model_args": {"pad_type": "same"}}"#,
            ["`model_args`", "pad_type"],
        ),
        (r#"{"stem": 32}"#, ["config.json", "channels"]),
        ("{}", ["neither", "`stages`"]),
    ] {
        let error = error(text);
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
    type Change = fn(&mut EfficientNetConfig);
    let changes: [(Change, &str); 12] = [
        (|c| c.channels = 0, "`channels`"),
        (|c| c.stem = 0, "`stem`"),
        (|c| c.last = 1 << 30, "`last`"),
        (|c| c.hidden = Some(0), "`hidden`"),
        (|c| c.stages.clear(), "`stages`"),
        (|c| c.stages[1].clear(), "`stages`"),
        (|c| c.stages[2][1].kernel = 4, "`stages`: stage 2, block 1: `kernel` is 4"),
        (|c| c.stages[2][1].squeezed = Some(0), "stage 2, block 1: `squeezed`"),
        (|c| c.norm_eps = 0.0, "`norm_eps`"),
        (|c| c.norm_momentum = 1.5, "`norm_momentum`"),
        (|c| c.dropout = 1.0, "`dropout`"),
        (|c| c.drop_connect = -0.1, "`drop_connect`"),
    ];
    for (change, part) in changes {
        let mut config = EfficientNetConfig::lite0();
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn what_does_not_fit_the_names_is_said() {
    let refused = |name: &'static str, config: EfficientNetConfig, part: &str| {
        let params = Reference::of(FILE, name).params();
        let error = EfficientNetClassifier::new(&config, 5, &DropoutRng::new(0), params.var_builder());
        let error = error.unwrap_err();
        assert!(matches!(error, nn::Error::ModelConfig { .. }), "{name}: {error}");
        assert!(error.to_string().contains(part), "{name}: {error}");
    };
    refused("package_lite", tiny("package_lite").0.pytorch(), "`padding`");
    refused("torchvision_b", tiny("torchvision_b").0.tensorflow(), "`padding`");
    refused("torchvision_b", EfficientNetConfig { hidden: Some(8), ..tiny("torchvision_b").0 }, "`hidden`");
    refused("torchvision_v3", EfficientNetConfig { hidden: None, ..tiny("torchvision_v3").0 }, "`hidden`");
    refused("torchvision_v2", EfficientNetConfig::b0().pytorch(), "`squeezed`");

    let params = Reference::of(FILE, "timm_lite").params();
    let (config, _) = tiny("timm_lite");
    let within = params.var_builder().pp("model");
    let error = EfficientNetClassifier::new(&config, 5, &DropoutRng::new(0), within).unwrap_err().to_string();
    for part in ["`model`", "_conv_stem.weight", "conv_stem.weight", "features.1.block.0.0.weight"] {
        assert!(error.contains(part), "{error}");
    }
    // A network of another shape: the tensor is named.
    let other = EfficientNetClassifier::new(
        &EfficientNetConfig::lite0().pytorch(),
        5,
        &DropoutRng::new(0),
        params.var_builder(),
    );
    let error = other.unwrap_err().to_string();
    assert!(error.contains("`blocks.0.0.conv_dw.weight`") && error.contains("[32, 1, 3, 3]"), "{error}");
    let model = classifier(&config, &params);
    let error = model.forward(&uniform("images", &[1, 4, 8, 8]), false).unwrap_err().to_string();
    assert!(error.contains("[1, 4, 8, 8]") && error.contains("(batch, 3, height, width)"), "{error}");
}

/// In -1..1, as `make_efficientnets.py` has it.
fn uniform(name: &str, shape: &[usize]) -> Tensor {
    let seed = fnv1a(name);
    let values = (1..=shape.iter().product::<usize>() as u64)
        .map(|i| mix(seed.wrapping_add(i.wrapping_mul(GAMMA))) >> 44)
        .map(|bits| bits as f64 / f64::from(1 << 19) - 1.0);
    Tensor::from_vec(values.collect::<Vec<f64>>(), shape, &Device::Cpu).unwrap()
}

/// Weights that are a function of their names, as `make_efficientnets.py` has them.
struct ByName;

impl SimpleBackend for ByName {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        let x = uniform(name, shape.dims());
        let x = if name.ends_with("running_var") {
            x.affine(0.5, 1.0)
        } else if shape.rank() > 1 {
            let inputs: usize = shape.dims()[1..].iter().product();
            x * 2f64.powi((4 - (usize::BITS - inputs.leading_zeros()) as i32).div_euclid(2))
        } else if name.ends_with("weight") {
            x.affine(0.25, 1.0)
        } else {
            x * 0.25
        };
        x?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
