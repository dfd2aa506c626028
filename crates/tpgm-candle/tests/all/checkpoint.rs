//! Checkpoints: what is saved is loaded, what is damaged is found, what was good stays good.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, ModuleT, Tensor, Var};
use serde::{Deserialize, Serialize};
use tpgm_candle::checkpoint::CheckpointProblem;
use tpgm_candle::core::{Buffer, StateDict};
use tpgm_candle::{Anchor, Checkpoint, Checkpointer, Param, Params, TrainState};

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// A state with everything in it, different for every step.
fn state(step: u64) -> TrainState {
    let x = step as f32;
    TrainState::new(step)
        .weights([
            ("body.weight".into(), tensor(&[x, 1.0, -0.0, f32::MIN_POSITIVE], &[2, 2])),
            ("body.empty".into(), tensor(&[], &[0, 3])),
            ("scale".into(), tensor(&[x], &[])),
            ("steps".into(), Tensor::new(&[step as i64], &Device::Cpu).unwrap()),
        ])
        .unwrap()
        .state("optimizer", optimizer(step))
        .unwrap()
        .state("none", StateDict::new())
        .unwrap()
        .tensors("ema", [("body.weight".into(), tensor(&[x, 2.0, 3.0, 4.0], &[2, 2]))])
        .unwrap()
        .value("schedule", &Schedule { lr: 1.0 / 3e5, warmup: step, name: None })
        .unwrap()
}

fn optimizer(step: u64) -> StateDict {
    let half = tpgm_candle::core::element::bf16::from_f32(1.5);
    StateDict::from([
        ("body.weight/exp_avg".into(), Buffer::F32(vec![step as f32, f32::NAN, 3.0, 4.0])),
        ("body.weight/scalars".into(), Buffer::F64(vec![1e-300, step as f64])),
        ("a/b/c".into(), Buffer::BF16(vec![half; 3])),
        ("empty/exp_avg".into(), Buffer::F32(Vec::new())),
    ])
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Schedule {
    lr: f64,
    warmup: u64,
    name: Option<String>,
}

/// Checks that a loaded checkpoint is bit for bit [`state`] of its step.
fn check(checkpoint: &Checkpoint) {
    let (step, x) = (checkpoint.step(), checkpoint.step() as f32);
    let weights = checkpoint.weights(&Device::Cpu).unwrap();
    let names: Vec<_> = weights.keys().map(String::as_str).collect();
    assert_eq!(names, ["body.empty", "body.weight", "scale", "steps"]);
    assert_eq!(bits(&weights["body.weight"]), [x, 1.0, -0.0, f32::MIN_POSITIVE].map(f32::to_bits));
    assert_eq!(weights["body.weight"].dims(), [2, 2]);
    assert_eq!(weights["body.empty"].dims(), [0, 3]);
    assert_eq!(weights["scale"].to_scalar::<f32>().unwrap(), x);
    assert_eq!(weights["steps"].to_vec1::<i64>().unwrap(), [step as i64]);
    assert_eq!(format!("{:?}", checkpoint.state("optimizer").unwrap()), format!("{:?}", optimizer(step)));
    assert_eq!(checkpoint.state("none").unwrap(), StateDict::new());
    let ema = checkpoint.tensors("ema", &Device::Cpu).unwrap();
    assert_eq!(bits(&ema["body.weight"]), [x, 2.0, 3.0, 4.0].map(f32::to_bits));
    let schedule: Schedule = checkpoint.value("schedule").unwrap();
    assert_eq!(schedule, Schedule { lr: 1.0 / 3e5, warmup: step, name: None });
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn names(checkpoints: &Checkpointer) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    checkpoints.list().unwrap().iter().map(|entry| name(&entry.path)).collect()
}

/// Everything in a folder, hidden files too.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => _ = found.insert(path.clone(), fs::read(&path).unwrap()),
        }
    }
    found
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(dir.path().join("new/folder"));
    assert!(checkpoints.latest().unwrap().is_none());
    assert!(checkpoints.latest_valid().unwrap().is_none());
    for step in [5, 16_777_216] {
        let path = checkpoints.save(&state(step)).unwrap();
        let checkpoint = Checkpoint::load(&path).unwrap();
        assert_eq!((checkpoint.step(), checkpoint.path()), (step, path.as_path()));
        check(&checkpoint);
    }
    let latest = checkpoints.latest().unwrap().unwrap();
    assert_eq!((latest.step, latest.path), (16_777_216, checkpoints.dir().join("step-16777216")));
    let found = checkpoints.latest_valid().unwrap().unwrap();
    assert!(found.skipped.is_empty());
    check(&found.checkpoint);
    // An unrelated reader takes the weights.
    let weights = candle_core::safetensors::load(
        checkpoints.dir().join("step-00000005/weights.safetensors"),
        &Device::Cpu,
    )
    .unwrap();
    assert_eq!(weights["body.weight"].to_vec2::<f32>().unwrap()[0], [5.0, 1.0]);
}

/// Running statistics are part of a model: a run that goes on without them does not have the same bits.
#[test]
fn running_statistics_are_restored_with_the_weights() {
    let build = || {
        let params = Params::new(&Device::Cpu).head("norm.weight").head("norm.bias").head("norm.running_*");
        let norm = candle_nn::batch_norm(3, 1e-5, params.var_builder().pp("norm")).unwrap();
        (params, norm)
    };
    let (params, norm) = build();
    let batch = tensor(&[1.0, 2.0, 3.0, 5.0, -8.0, 13.0], &[2, 3]);
    norm.forward_t(&batch, true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = TrainState::new(1).weights(params.values()).unwrap();
    let path = Checkpointer::new(dir.path()).save(&state).unwrap();

    let (fresh, other) = build();
    let evaluate = |norm: &candle_nn::BatchNorm| bits(&norm.forward_t(&batch, false).unwrap());
    assert_ne!(evaluate(&other), evaluate(&norm));
    Checkpoint::load(path).unwrap().restore(&fresh).unwrap();
    assert_eq!(evaluate(&other), evaluate(&norm));
}

#[test]
fn variables_are_restored_or_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = Checkpointer::new(dir.path()).save(&state(9)).unwrap();
    let checkpoint = Checkpoint::load(path).unwrap();
    let params = |tensors: &[(&str, Tensor)]| {
        let param = |(name, tensor): &(&str, Tensor)| {
            Param::new(*name, Var::from_tensor(tensor).unwrap(), Anchor::None)
        };
        Params::from_params(tensors.iter().map(param)).unwrap()
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();

    let good = params(&[("body.weight", zeros(&[2, 2])), ("scale", zeros(&[]))]);
    let before = good.get("body.weight").unwrap();
    checkpoint.restore(&good).unwrap();
    assert_eq!(bits(before.var()), [9.0, 1.0, -0.0, f32::MIN_POSITIVE].map(f32::to_bits));

    let half = zeros(&[]).to_dtype(DType::F16).unwrap();
    for (name, tensor, message) in [
        ("tail", zeros(&[1]), "it has no tensor `tail`; is it of another model?"),
        ("scale", zeros(&[1]), "tensor `scale` has shape [] in it, but [1] in the model"),
        ("scale", half, "tensor `scale` is F32 in it, but F16 in the model"),
    ] {
        let bad = params(&[("body.weight", zeros(&[2, 2])), (name, tensor)]);
        let error = checkpoint.restore(&bad).unwrap_err().to_string();
        assert!(error.ends_with(&format!("weights.safetensors: {message}")), "{error}");
        assert_eq!(bits(bad.get("body.weight").unwrap().var()), [0; 4], "nothing was changed");
    }
}

#[test]
fn what_was_not_saved_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::load(Checkpointer::new(dir.path()).save(&state(1)).unwrap()).unwrap();
    let message = |error: tpgm_candle::checkpoint::Error| error.to_string();
    let error = message(checkpoint.state("projector").unwrap_err());
    assert!(error.ends_with("nothing was saved under `projector`; it has ema, none, optimizer"), "{error}");
    let error = message(checkpoint.value::<u64>("epoch").unwrap_err());
    assert!(error.ends_with("state.json: nothing was saved under `epoch`; it has schedule"), "{error}");
    let error = message(checkpoint.value::<u64>("schedule").unwrap_err());
    assert!(error.contains("the value `schedule` cannot be read"), "{error}");
}

#[test]
fn what_could_not_be_loaded_is_not_saved() {
    let refused = |result: Result<TrainState, tpgm_candle::checkpoint::Error>| match result.unwrap_err() {
        tpgm_candle::checkpoint::Error::Unsaveable { problem, .. } => problem,
        other => panic!("{other}"),
    };
    let new = || TrainState::new(1);
    let problem = refused(new().value("best", &f64::INFINITY));
    assert!(problem.contains("infinite or NaN"), "{problem}");
    assert!(new().value("best", &None::<f64>).is_ok());
    refused(new().value("x", &1).unwrap().value("x", &1));
    refused(new().state("optimizer/a", StateDict::new()));
    refused(new().state("", StateDict::new()));
    refused(new().state("a", StateDict::new()).unwrap().tensors("a", []));
    refused(new().weights([("w".into(), tensor(&[], &[0])), ("w".into(), tensor(&[], &[0]))]));
}

#[test]
fn numbers_in_values_keep_their_bits() {
    let dir = tempfile::tempdir().unwrap();
    let mut bits = 1u64;
    let numbers: Vec<f64> = std::iter::from_fn(|| {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(f64::from_bits(bits))
    })
    .filter(|x| x.is_finite())
    .take(9_995)
    .chain([0.1 + 0.2, -0.0, 5e-324, f64::MAX, f64::MIN_POSITIVE])
    .collect();
    let named = BTreeMap::from([("a/b~c".to_owned(), numbers[0]), ("~1".to_owned(), numbers[1])]);
    let saved = TrainState::new(1).value("numbers", &numbers).unwrap().value("named", &named).unwrap();
    let checkpoint = Checkpoint::load(Checkpointer::new(dir.path()).save(&saved).unwrap()).unwrap();
    let read: Vec<f64> = checkpoint.value("numbers").unwrap();
    let different = read.iter().zip(&numbers).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!((read.len(), different), (10_000, 0));
    assert_eq!(checkpoint.value::<BTreeMap<String, f64>>("named").unwrap(), named);
}

#[test]
fn old_ones_are_deleted_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(dir.path()).keep(2).keep_every(20);
    for step in (5..=45).step_by(5) {
        checkpoints.save(&state(step)).unwrap();
    }
    assert_eq!(names(&checkpoints), ["step-00000020", "step-00000040", "step-00000045"]);
    let one = Checkpointer::new(dir.path()).keep(0);
    one.save(&state(50)).unwrap();
    assert_eq!(names(&one), ["step-00000050"], "the last one is always kept");
}

#[test]
fn going_back_does_not_lose_the_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(dir.path()).keep(2).keep_every(500);
    for step in [500, 900, 1000, 600] {
        checkpoints.save(&state(step)).unwrap();
    }
    assert_eq!(names(&checkpoints), ["step-00000500", "step-00001000", "step-00000600.1"]);
    assert_eq!(checkpoints.latest().unwrap().unwrap().step, 600);
    checkpoints.save(&state(600)).unwrap();
    checkpoints.save(&state(1000)).unwrap();
    // Step 1000 of the abandoned branch has been replaced; 500 has not.
    assert_eq!(names(&checkpoints), ["step-00000500", "step-00000600.2", "step-00001000.2"]);
    check(&checkpoints.latest_valid().unwrap().unwrap().checkpoint);
}

#[test]
fn leftovers_are_ignored_and_cleaned() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(dir.path());
    checkpoints.save(&state(1)).unwrap();
    for name in [".tmp-step-00000002", ".tmp-old-step-00000000", "step-00000007x", "step-3", "notes"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("weights.safetensors"), "partial").unwrap();
    }
    fs::write(dir.path().join("step-00000009"), "a file").unwrap();
    assert_eq!(names(&checkpoints), ["step-00000001"]);
    checkpoints.save(&state(2)).unwrap();
    assert_eq!(names(&checkpoints), ["step-00000001", "step-00000002"]);
    let left = |name: &str| dir.path().join(name).exists();
    assert!(!left(".tmp-step-00000002") && !left(".tmp-old-step-00000000"));
    assert!(left("step-00000007x") && left("step-3") && left("notes"), "only our own litter is deleted");
}

/// Flips one bit in every byte of every file: it is noticed, or makes no difference.
#[test]
fn any_changed_byte_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = Checkpointer::new(dir.path()).save(&state(3)).unwrap();
    let mut noticed = 0;
    for (file, bytes) in files(&path) {
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1 << (i % 8);
            fs::write(&file, &changed).unwrap();
            match Checkpoint::load(&path) {
                Ok(checkpoint) => {
                    assert!(file.ends_with("checksums.txt"), "{}: byte {i}", file.display());
                    check(&checkpoint); // `a` and `A` are the same digit
                }
                Err(error) => {
                    noticed += 1;
                    let message = error.to_string();
                    assert!(message.starts_with(path.to_str().unwrap()), "{message}");
                }
            }
        }
        // Cut short, at some places, and lengthened.
        for len in [0, 1, bytes.len() / 2, bytes.len() - 1, bytes.len() + 1] {
            let mut other = bytes.clone();
            other.resize(len, b' ');
            fs::write(&file, &other).unwrap();
            match Checkpoint::load(&path) {
                Ok(_) => {
                    assert!(file.ends_with("checksums.txt") && len == bytes.len() - 1, "the last line's end")
                }
                Err(error) => assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}"),
            }
        }
        fs::write(&file, &bytes).unwrap();
        fs::remove_file(&file).unwrap();
        let message = Checkpoint::load(&path).unwrap_err().to_string();
        assert!(message.starts_with(file.to_str().unwrap()), "{message}");
        fs::write(&file, &bytes).unwrap();
    }
    assert!(noticed > 1000, "{noticed} changes noticed");
    check(&Checkpoint::load(&path).unwrap());
}

#[test]
fn other_versions_and_programs_are_recognized() {
    let dir = tempfile::tempdir().unwrap();
    let path = Checkpointer::new(dir.path()).save(&state(3)).unwrap();
    let json = path.join("state.json");
    let ours = fs::read_to_string(&json).unwrap();
    let problem = |text: &str| {
        fs::write(&json, text).unwrap();
        match Checkpoint::load(&path).unwrap_err() {
            tpgm_candle::checkpoint::Error::Checkpoint { path, problem } => {
                assert_eq!(path, json);
                problem
            }
            other => panic!("{other}"),
        }
    };
    assert!(ours.contains(r#""version": 1,"#), "{ours}");
    // A later version may have changed everything else.
    let later = r#"{"format": "tpgm-candle checkpoint", "version": 3, "new": {}}"#;
    assert_eq!(problem(later), CheckpointProblem::Version { got: 3, supported: 2 });
    assert_eq!(problem(r#"{"epoch": 3}"#), CheckpointProblem::Foreign);
    assert_eq!(problem(r#"{"format": "x", "version": 1}"#), CheckpointProblem::Foreign);
    assert!(matches!(problem("PK\u{3}\u{4}"), CheckpointProblem::Malformed { .. }));
}

#[test]
fn the_newest_intact_one_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(dir.path());
    for step in 1..=4 {
        checkpoints.save(&state(step)).unwrap();
    }
    let file = |step: u64, name: &str| dir.path().join(format!("step-{step:08}")).join(name);
    let cut = |path: PathBuf| fs::write(&path, &fs::read(&path).unwrap()[..40]).unwrap();
    cut(file(4, "weights.safetensors"));
    fs::remove_file(file(3, "state.json")).unwrap();
    let found = checkpoints.latest_valid().unwrap().unwrap();
    check(&found.checkpoint);
    assert_eq!(found.checkpoint.step(), 2);
    let skipped: Vec<_> = found.skipped.iter().map(ToString::to_string).collect();
    assert!(
        skipped[0].contains("step-00000004/weights.safetensors: damaged: it has 40 bytes"),
        "{skipped:?}"
    );
    assert!(skipped[1].contains("step-00000003/state.json: No such file"), "{skipped:?}");

    cut(file(2, "state.safetensors"));
    cut(file(1, "state.safetensors"));
    let error = checkpoints.latest_valid().unwrap_err().to_string();
    assert!(error.contains("none of its 4 checkpoints can be used:\n"), "{error}");
    assert!(error.contains("step-00000001/state.safetensors: damaged"), "{error}");
}
