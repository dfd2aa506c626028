//! ResNet.

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::resnet;
use tpgm_candle::models::resnet::{ResNet, ResNetBlock, ResNetClassifier, ResNetConfig};
use tpgm_candle::nn::{Statistics, cross_entropy};
use tpgm_candle::{AdamW, Audit, Ftp, Params, RobustOptimizer, nn};

use super::{Reference, checkpoint, images, parameters, relative_deviation};

fn tiny(block: ResNetBlock, layers: [usize; 4]) -> ResNetConfig {
    ResNetConfig { block, layers, width: 2, channels: 3, statistics: Statistics::Batch }
}

fn moco() -> ResNetConfig {
    tiny(ResNetBlock::Bottleneck, [1, 2, 1, 1])
}

#[test]
fn it_computes_what_candle_transformers_computes() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let other = resnet::resnet18(7, vb.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    checkpoint(&map, &folder.path().join("model.safetensors"));
    let model = ResNetClassifier::new(&ResNetConfig::resnet18(), 7, vb).unwrap();
    let images = images((2, 3, 40, 40), DType::F32);
    let (got, expected) = (model.forward(&images, false).unwrap(), other.forward(&images).unwrap());
    assert_eq!(got.dims(), [2, 7]);
    let deviation = relative_deviation(&got, &expected);
    assert!(deviation < 2e-5, "{deviation:e}");
}

#[test]
fn a_torchvision_checkpoint_computes_what_pytorch_computes() {
    let reference = Reference::new("resnet_basic");
    let params = reference.params();
    let config = tiny(ResNetBlock::Basic, [2, 1, 1, 1]);
    let model = ResNetClassifier::new(&config, 5, params.var_builder()).unwrap();
    // Counts of batches are there, as i64, and neither missed nor reported.
    params.report().unwrap().require_all_used().unwrap();
    let images = reference.wide("images");
    for (train, key) in [(false, "eval"), (true, "train")] {
        let deviation = relative_deviation(&model.forward(&images, train).unwrap(), &reference.get(key));
        assert!(deviation < 1e-12, "{key}: {deviation:e}");
    }
    same_running_statistics(&params, &reference);
}

/// After one batch.
fn same_running_statistics(params: &Params, reference: &Reference) {
    let buffers = params.buffers();
    for name in ["bn1", "layer4.0.bn2"]
        .iter()
        .flat_map(|norm| ["running_mean", "running_var"].map(|s| format!("{norm}.{s}")))
    {
        let deviation = relative_deviation(&buffers[&name], &reference.get(&name));
        assert!(deviation < 1e-12, "{name}: {deviation:e}");
    }
}

#[test]
fn a_moco_checkpoint_loads_without_its_projector() {
    let reference = Reference::new("moco");
    let images = reference.wide("images");
    let params = reference.params().rename("", "module.base_encoder.").head("fc.*");
    let model = ResNetClassifier::new(&moco(), 5, params.var_builder()).unwrap();
    for (train, key) in [(false, "eval"), (true, "train")] {
        let deviation = relative_deviation(&model.features(&images, train).unwrap(), &reference.get(key));
        assert!(deviation < 1e-12, "{key}: {deviation:e}");
    }
    same_running_statistics(&params, &reference);
    assert_eq!(model.forward(&images, false).unwrap().dims(), [4, 5]);

    let report = params.report().unwrap();
    assert_eq!(report.fresh, ["fc.bias", "fc.weight"]);
    // Running statistics of the projector are not listed, as those of no model are.
    assert_eq!(
        report.unused,
        [
            "module.base_encoder.fc.0.weight",
            "module.base_encoder.fc.1.bias",
            "module.base_encoder.fc.1.weight",
            "module.base_encoder.fc.3.weight",
            "module.momentum_encoder.conv1.weight",
            "module.predictor.0.weight",
        ]
    );

    let params = reference.params();
    let encoder = ResNet::new(&moco(), params.var_builder().pp("module.base_encoder")).unwrap();
    let deviation = relative_deviation(&encoder.forward(&images, false).unwrap(), &reference.get("eval"));
    assert!(deviation < 1e-12, "{deviation:e}");
    params.get("module.base_encoder.layer2.1.conv3.weight").unwrap();
}

#[test]
fn a_run_of_moco_is_read_from_its_pickle() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let params =
        Params::open(data.join("moco.pth.tar"), &Device::Cpu).unwrap().rename("", "module.base_encoder.");
    let weight = params.var_builder().get((2, 3, 1, 1), "conv1.weight").unwrap();
    // One step of 0.1 along a gradient of ones.
    let expected: Vec<f32> = (0..6).map(|i| i as f32 - 0.1).collect();
    assert_eq!(weight.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
    let unused = params.report().unwrap().unused;
    assert_eq!(unused, ["module.base_encoder.fc.0.weight", "module.momentum_encoder.conv1.weight"]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.pth.tar");
    std::fs::copy(data.join("legacy.pth"), &path).unwrap();
    // Runs of its time are older than PyTorch 1.6, and named as they like.
    let params = Params::open(&path, &Device::Cpu).unwrap();
    params.var_builder().get((4, 3), "embed.weight").unwrap();
}

/// A checkpoint of the encoder in f64, opened with a head that it lacks.
pub(super) fn params(folder: &std::path::Path, config: &ResNetConfig) -> Params {
    let path = folder.join("model.safetensors");
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    ResNet::new(config, vb).unwrap();
    checkpoint(&map, &path);
    Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64).head("fc.*")
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let folder = tempfile::tempdir().unwrap();
    let images = images((3, 3, 32, 32), DType::F64);
    let labels = Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap();
    let (basic, bottleneck) = (3 + 5 * 6 + 3 * 3 + 2, 3 + 5 * 9 + 4 * 3 + 2);
    for (block, statistics, tensors) in [
        (ResNetBlock::Basic, Statistics::Batch, basic),
        (ResNetBlock::Basic, Statistics::Running, basic),
        (ResNetBlock::Bottleneck, Statistics::Batch, bottleneck),
    ] {
        let config = ResNetConfig { statistics, ..tiny(block, [1, 2, 1, 1]) };
        let params = params(folder.path(), &config);
        let model = ResNetClassifier::new(&config, 4, params.var_builder()).unwrap();
        if statistics == Statistics::Batch {
            // Without a window below zero, the stem's bias would be a constant that the next batch norm removes.
            let bias = params.get("bn1.bias").unwrap();
            bias.var().set(&bias.var().affine(1.0, -1.0).unwrap()).unwrap();
        }
        let loss = || cross_entropy(&model.forward(&images, true)?, &labels);
        let buffers = params.buffers();
        let before = buffers["bn1.running_mean"].to_vec1::<f64>().unwrap();
        let report = Audit::new(&params).finite_differences(4, 1e-7).run(loss).unwrap();
        assert!(report.zero.is_empty() && report.inconclusive.is_empty(), "{report}");
        assert_eq!(report.checked, tensors, "{block:?}: {report}");
        // Neither trained, nor moved by the audit.
        assert!(params.all().iter().all(|param| !param.name().contains("running")));
        assert_eq!(buffers["bn1.running_mean"].to_vec1::<f64>().unwrap(), before);
    }
}

#[test]
fn a_few_steps_fit_a_batch_with_norms_frozen_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let images = images((3, 3, 32, 32), DType::F64);
    let labels = Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap();
    for statistics in [Statistics::Batch, Statistics::Running] {
        let config = moco().statistics(statistics);
        let mut params = params(folder.path(), &config);
        if statistics == Statistics::Running {
            params = params.freeze("*bn?.*").freeze("*downsample.1.*");
        }
        let model = ResNetClassifier::new(&config, 4, params.var_builder()).unwrap();
        let loss = || cross_entropy(&model.forward(&images, true).unwrap(), &labels).unwrap();
        let moving = || params.buffers()["layer3.0.bn2.running_var"].to_vec1::<f64>().unwrap();
        let (before, statistics_before) = (loss().to_scalar::<f64>().unwrap(), moving());
        let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.02), Ftp::default()).unwrap();
        for _ in 0..100 {
            optimizer.backward_step(&loss()).unwrap();
        }
        let after = loss().to_scalar::<f64>().unwrap();
        assert!(after < 0.5 * before, "{statistics:?}: {before} to {after}");
        assert_eq!(moving() == statistics_before, statistics == Statistics::Running);
    }
}

#[test]
fn a_batch_with_a_nan_leaves_weights_and_statistics_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let params = params(folder.path(), &moco());
    let model = ResNetClassifier::new(&moco(), 4, params.var_builder()).unwrap();
    let labels = Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap();
    let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.02), Ftp::default()).unwrap();
    let state = |params: &Params| -> Vec<(String, Vec<f64>)> {
        let all = params.tensors().into_iter().chain(params.buffers());
        all.map(|(name, x)| (name, x.flatten_all().unwrap().to_vec1().unwrap())).collect()
    };
    let good = images((3, 3, 32, 32), DType::F64);
    let mut step = |images: &Tensor| {
        optimizer.backward_step(&cross_entropy(&model.forward(images, true).unwrap(), &labels).unwrap())
    };
    step(&good).unwrap();
    let before = state(&params);
    for bad in [f64::NAN, f64::INFINITY, 1e300] {
        // One pixel of one image.
        let mut pixels = good.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        pixels[1234] = bad;
        let images = Tensor::from_vec(pixels, good.shape(), &Device::Cpu).unwrap();
        let error = step(&images).unwrap_err().to_string();
        assert!(error.contains("finite") || error.contains("NaN"), "{bad}: {error}");
        assert!(state(&params) == before, "{bad}: something has changed");
    }
    step(&good).unwrap();
    let after = state(&params);
    assert!(after.iter().zip(&before).all(|(after, before)| after != before));
    assert!(after.iter().all(|(_, values)| values.iter().all(|value| value.is_finite())));
}

#[test]
fn sizes_are_those_of_torchvision() {
    // Convolutions, norms and a head of 1000 classes, as torchvision's documentation lists them.
    for (config, count) in [
        (ResNetConfig::resnet18(), 11_689_512),
        (ResNetConfig::resnet34(), 21_797_672),
        (ResNetConfig::resnet50(), 25_557_032),
        (ResNetConfig::resnet101(), 44_549_160),
        (ResNetConfig::resnet152(), 60_192_808),
    ] {
        let found = parameters(|vb| ResNetClassifier::new(&config, 1000, vb));
        assert_eq!(found, count, "{config:?}");
    }
}

#[test]
fn bad_configurations_and_inputs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let bad = |config: ResNetConfig| match config.validate().unwrap_err() {
        nn::Error::ModelConfig { entry, .. } => entry,
        error => panic!("{error}"),
    };
    assert_eq!(bad(tiny(ResNetBlock::Basic, [1, 0, 1, 1])), "layers");
    assert_eq!(bad(ResNetConfig { width: 0, ..moco() }), "width");
    assert_eq!(bad(ResNetConfig { channels: 0, ..moco() }), "channels");

    let params = params(folder.path(), &moco());
    let model = ResNet::new(&moco(), params.var_builder()).unwrap();
    let error = model.forward(&images((1, 4, 32, 32), DType::F64), false).unwrap_err().to_string();
    assert!(error.contains("[1, 4, 32, 32]") && error.contains("(batch, 3, height, width)"), "{error}");
    // One image of one position is no batch.
    let error = model.forward(&images((1, 3, 32, 32), DType::F64), true).unwrap_err().to_string();
    assert!(error.contains("batch-norm") && error.contains("more than one element"), "{error}");
    let deeper = ResNetConfig { layers: [1, 2, 1, 2], ..moco() };
    let error = ResNet::new(&deeper, params.var_builder()).unwrap_err().to_string();
    assert!(error.contains("layer4.1.conv1.weight"), "{error}");
}
