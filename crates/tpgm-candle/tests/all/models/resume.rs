//! Models that are saved in the middle of a run and go on with the same bits.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use tpgm_candle::models::clip::{Clip, ClipClassifier, ClipLayout};
use tpgm_candle::models::resnet::{ResNetBlock, ResNetClassifier, ResNetConfig};
use tpgm_candle::nn::{Statistics, cross_entropy};
use tpgm_candle::{AdamW, Checkpointer, Ftp, Params, RobustOptimizer, TrainState};

use super::{clip, images, resnet};

const STEPS: u64 = 6;

/// Makes the parameters of a run, and its loss.
type Setup<'a> = &'a dyn Fn() -> (Params, Box<dyn Fn() -> Result<Tensor>>);

/// What a run ends with: all values, and the loss with running statistics.
fn run(setup: Setup<'_>, folder: &Path, stop: Option<u64>) -> BTreeMap<String, Vec<f64>> {
    let checkpoints = Checkpointer::new(folder);
    let (params, loss) = setup();
    let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.01), Ftp::default()).unwrap();
    let mut step = 0;
    if let Some(found) = checkpoints.latest_valid().unwrap() {
        step = found.checkpoint.step();
        found.checkpoint.restore(&params).unwrap();
        let config = found.checkpoint.value("config").unwrap();
        optimizer.resume(&config, &found.checkpoint.state("optimizer").unwrap()).unwrap();
    }
    while step < stop.unwrap_or(STEPS) {
        optimizer.backward_step(&loss().unwrap()).unwrap();
        step += 1;
    }
    if stop.is_some() {
        let state = TrainState::new(step)
            .weights(params.values())
            .unwrap()
            .state("optimizer", optimizer.state().unwrap())
            .unwrap()
            .value("config", optimizer.config())
            .unwrap();
        checkpoints.save(&state).unwrap();
    }
    let flat = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let mut values: BTreeMap<_, _> =
        params.values().iter().map(|(name, x)| (name.clone(), flat(x))).collect();
    values.insert("loss".to_owned(), flat(&loss().unwrap()));
    values
}

fn same_bits(setup: Setup<'_>) -> BTreeMap<String, Vec<f64>> {
    let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = run(setup, whole.path(), None);
    let half = run(setup, halves.path(), Some(STEPS / 2));
    assert!(half != expected);
    assert!(run(setup, halves.path(), None) == expected);
    expected
}

#[test]
fn a_resnet_goes_on_with_its_running_statistics() {
    let folder = tempfile::tempdir().unwrap();
    let config = ResNetConfig {
        block: ResNetBlock::Bottleneck,
        layers: [1, 1, 1, 1],
        width: 2,
        channels: 3,
        statistics: Statistics::Batch,
    };
    drop(resnet::params(folder.path(), &config));
    let setup = || -> (Params, Box<dyn Fn() -> Result<Tensor>>) {
        let path = folder.path().join("model.safetensors");
        let params = Params::open(&path, &Device::Cpu).unwrap().head("fc.*");
        let model = ResNetClassifier::new(&config, 4, params.var_builder()).unwrap();
        let images = images((3, 3, 32, 32), DType::F32);
        let labels = Tensor::new(&[2u32, 0, 3], &Device::Cpu).unwrap();
        (
            params,
            Box::new(move || {
                // The running statistics count too: their loss is half of it.
                let batch = cross_entropy(&model.forward(&images, true)?, &labels)?;
                batch + cross_entropy(&model.forward(&images, false)?, &labels)?
            }),
        )
    };
    let values = same_bits(&setup);
    assert!(values.keys().any(|name| name == "layer4.0.bn3.running_var"));
}

#[test]
fn a_clip_classifier_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    drop(clip::params(folder.path(), &clip::tiny(), ClipLayout::HuggingFace));
    let path = folder.path().join("model.safetensors");
    let setup = || -> (Params, Box<dyn Fn() -> Result<Tensor>>) {
        let prompt = |word| Tensor::new(&[[17u32, word, 18, 0], [17, word, 9, 18]], &Device::Cpu).unwrap();
        let frozen = Params::open(&path, &Device::Cpu).unwrap().freeze("*");
        let whole = Clip::new(&clip::tiny(), frozen.var_builder()).unwrap();
        let params = Params::open(&path, &Device::Cpu).unwrap().head("classifier.*");
        let model = ClipClassifier::new(&clip::tiny(), 3, params.var_builder()).unwrap();
        model.start_from(&whole.zero_shot(&[prompt(3), prompt(4), prompt(5)]).unwrap()).unwrap();
        let images = images((3, 3, 6, 6), DType::F32);
        let labels = Tensor::new(&[2u32, 0, 1], &Device::Cpu).unwrap();
        (params, Box::new(move || cross_entropy(&model.forward(&images, true)?, &labels)))
    };
    let values = same_bits(&setup);
    assert!(values.contains_key("classifier.weight") && values.contains_key("logit_scale"));
}
