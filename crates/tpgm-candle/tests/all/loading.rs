//! Models built from checkpoints: what becomes a variable, what an anchor, what an error.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{BatchNorm, Init, Module, ModuleT, VarMap, batch_norm, layer_norm, linear};
use tempfile::TempDir;
use tpgm_candle::core::{AnchorKind, Slice};
use tpgm_candle::{Anchor, Params};

use crate::files::{anchor, flat, ramp, save};

const CPU: Device = Device::Cpu;

/// body: linear 3 -> 2, head: linear 2 -> 5.
fn two_layers(folder: &TempDir) -> PathBuf {
    save(
        &folder.path().join("model.safetensors"),
        &[
            ("body.weight", ramp(&[2, 3], DType::F32)),
            ("body.bias", ramp(&[2], DType::F32)),
            ("head.weight", ramp(&[5, 2], DType::F32)),
            ("head.bias", ramp(&[5], DType::F32)),
            ("extra.mask", ramp(&[4], DType::F32)),
        ],
    )
}

fn names(params: &Params) -> Vec<String> {
    params.all().iter().map(|param| param.name().to_owned()).collect()
}

#[test]
fn a_checkpoint_gives_variables_and_mapped_anchors() {
    let folder = TempDir::new().unwrap();
    let params = Params::open(two_layers(&folder), &CPU).unwrap();
    let layer = linear(3, 2, params.var_builder().pp("body")).unwrap();
    assert_eq!(names(&params), ["body.bias", "body.weight"]);
    let weight = params.get("body.weight").unwrap();
    assert!(weight.var().is_variable() && layer.weight().id() == weight.var().id());
    assert_eq!(flat(weight.var()), flat(&ramp(&[2, 3], DType::F32)));
    let Anchor::Pretrained(data) = weight.anchor() else { panic!() };
    assert!(data.is_mapped());

    // Training moves the variable and not the anchor; resetting brings it back.
    weight.var().set(&Tensor::zeros((2, 3), DType::F32, &CPU).unwrap()).unwrap();
    assert_eq!(flat(layer.weight()), [0.0; 6]);
    assert_eq!(anchor(&params, "body.weight"), flat(&ramp(&[2, 3], DType::F32)));
    params.reset_to_anchors().unwrap();
    assert_eq!(flat(layer.weight()), flat(&ramp(&[2, 3], DType::F32)));
}

#[test]
fn heads_are_new_whatever_their_shape_and_repeat_from_run_to_run() {
    let folder = TempDir::new().unwrap();
    let path = two_layers(&folder);
    let build = |classes, seed| {
        let params = Params::open(&path, &CPU).unwrap().head("head.*").seed(seed);
        let vb = params.var_builder();
        linear(3, 2, vb.pp("body")).unwrap();
        linear(2, classes, vb.pp("head")).unwrap();
        params
    };
    let params = build(7, 0);
    let head = params.get("head.weight").unwrap();
    assert_eq!(head.var().dims(), [7, 2]);
    assert!(matches!(head.anchor(), Anchor::None));
    assert_eq!(flat(head.var()), flat(build(7, 0).get("head.weight").unwrap().var()));
    assert_ne!(flat(head.var()), flat(build(7, 1).get("head.weight").unwrap().var()));
    // The same shape as in the checkpoint is no reason to load it.
    assert_ne!(flat(build(5, 0).get("head.weight").unwrap().var()), flat(&ramp(&[5, 2], DType::F32)));
    let kinds = params.set().unwrap().anchors();
    assert_eq!(kinds, [AnchorKind::Pretrained, AnchorKind::Pretrained, AnchorKind::None, AnchorKind::None]);

    let report = params.report().unwrap();
    assert_eq!(report.loaded, ["body.bias", "body.weight"]);
    assert_eq!(report.fresh, ["head.bias", "head.weight"]);
    assert_eq!(report.replaced, ["head.bias", "head.weight"]);
    assert_eq!(report.unused, ["extra.mask"]);
    let error = report.require_all_used().unwrap_err().to_string();
    assert_eq!(error, "1 tensors of the checkpoint are not used: `extra.mask`");
    let text = report.to_string();
    assert!(text.contains("new    2  head.bias, head.weight"), "{text}");
}

#[test]
fn frozen_tensors_are_constants() {
    let folder = TempDir::new().unwrap();
    let params = Params::open(two_layers(&folder), &CPU).unwrap().freeze("*").head("head.*");
    let vb = params.var_builder();
    let body = linear(3, 2, vb.pp("body")).unwrap();
    let head = linear(2, 4, vb.pp("head")).unwrap();
    assert_eq!(names(&params), ["head.bias", "head.weight"]);
    assert_eq!(params.frozen().into_keys().collect::<Vec<_>>(), ["body.bias", "body.weight"]);
    assert_eq!(flat(body.weight()), flat(&ramp(&[2, 3], DType::F32)));
    let loss = head.forward(&body.forward(&ramp(&[2, 3], DType::F32)).unwrap()).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    assert!(grads.get(body.weight()).is_none() && grads.get(head.weight()).is_some());
    assert_eq!(params.report().unwrap().frozen, ["body.bias", "body.weight"]);
}

#[test]
fn batch_norm_statistics_are_buffers_that_the_layer_updates() {
    let folder = TempDir::new().unwrap();
    let path = save(
        &folder.path().join("bn.safetensors"),
        &[
            ("bn.weight", ramp(&[2], DType::F32)),
            ("bn.bias", ramp(&[2], DType::F32)),
            ("bn.running_mean", Tensor::new(&[0.5f32, 0.25], &CPU).unwrap()),
            ("bn.running_var", Tensor::new(&[1f32, 2.0], &CPU).unwrap()),
            ("bn.num_batches_tracked", Tensor::new(7i64, &CPU).unwrap()),
        ],
    );
    let params = Params::open(path, &CPU).unwrap();
    let layer: BatchNorm = batch_norm(2, 1e-5, params.var_builder().pp("bn")).unwrap();
    assert_eq!(names(&params), ["bn.bias", "bn.weight"]);
    let buffers = params.buffers();
    assert_eq!(buffers.keys().collect::<Vec<_>>(), ["bn.running_mean", "bn.running_var"]);
    assert_eq!(flat(&buffers["bn.running_mean"]), [0.5, 0.25]);
    layer.forward_t(&Tensor::ones((3, 2), DType::F32, &CPU).unwrap(), true).unwrap();
    // Momentum 0.1 towards the batch mean of 1: 0.9 * 0.5 + 0.1, 0.9 * 0.25 + 0.1.
    let mean = flat(&params.buffers()["bn.running_mean"]);
    assert!((mean[0] - 0.55).abs() < 1e-6 && (mean[1] - 0.325).abs() < 1e-6, "{mean:?}");
    // The counter, which candle never reads, is no reason to complain.
    params.report().unwrap().require_all_used().unwrap();

    let mut saved = BTreeMap::new();
    for (name, tensor) in params.values() {
        saved.insert(name, tensor.zeros_like().unwrap());
    }
    params.load_values(&saved).unwrap();
    assert_eq!(flat(layer.running_mean()), [0.0, 0.0]);
}

#[test]
fn weights_are_converted_and_anchors_keep_the_type_of_the_file() {
    let folder = TempDir::new().unwrap();
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let path = save(&folder.path().join("w.safetensors"), &[("w", ramp(&[3, 2], dtype))]);
        for weights in [DType::F32, DType::BF16, DType::F64] {
            let params = Params::open(&path, &CPU).unwrap().dtype(weights);
            let tensor = params.var_builder().get((3, 2), "w").unwrap();
            assert_eq!(tensor.dtype(), weights);
            assert_eq!(flat(&tensor), flat(&ramp(&[3, 2], DType::F64)));
            let param = params.get("w").unwrap();
            let Anchor::Pretrained(data) = param.anchor() else { panic!() };
            let same = match data.slice() {
                Slice::F16(_) => dtype == DType::F16,
                Slice::BF16(_) => dtype == DType::BF16,
                Slice::F32(_) => dtype == DType::F32,
                Slice::F64(_) => dtype == DType::F64,
            };
            assert!(same && data.is_mapped());
            assert_eq!(data.slice().to_f64(), flat(&ramp(&[3, 2], DType::F64)));
        }
    }
}

#[test]
fn integers_load_as_constants_and_are_not_trained() {
    let folder = TempDir::new().unwrap();
    let path = save(&folder.path().join("i.safetensors"), &[("ids", Tensor::new(&[3i64, 1], &CPU).unwrap())]);
    let params = Params::open(&path, &CPU).unwrap().freeze("ids");
    assert_eq!(flat(&params.var_builder().get_unchecked("ids").unwrap()), [3.0, 1.0]);
    let error = Params::open(&path, &CPU).unwrap().var_builder().get(2, "ids").unwrap_err().to_string();
    assert!(error.contains("`ids` is I64"), "{error}");
}

#[test]
fn names_are_mapped_and_tied_weights_are_one_variable() {
    let folder = TempDir::new().unwrap();
    let path = save(
        &folder.path().join("m.safetensors"),
        &[("bert.embed.weight", ramp(&[4, 3], DType::F32)), ("bert.block.1.weight", ramp(&[2], DType::F32))],
    );
    let params = Params::open(&path, &CPU)
        .unwrap()
        .rename_with(|name| (name == "first").then(|| "bert.block.1.weight".to_owned()))
        .rename("lm_head.weight", "bert.embed.weight")
        .rename("", "bert.");
    let vb = params.var_builder();
    let embed = vb.get((4, 3), "embed.weight").unwrap();
    let head = vb.get((4, 3), "lm_head.weight").unwrap();
    let again = vb.get((4, 3), "embed.weight").unwrap();
    vb.get(2, "first").unwrap();
    assert!(embed.id() == head.id() && embed.id() == again.id());
    assert_eq!(names(&params), ["embed.weight", "first"]);
    let report = params.report().unwrap();
    assert_eq!(report.tied, [("lm_head.weight".to_owned(), "embed.weight".to_owned())]);
    report.require_all_used().unwrap();
    params.set().unwrap();
}

#[test]
fn optional_tensors_are_found_if_the_checkpoint_has_them() {
    let folder = TempDir::new().unwrap();
    let path = save(
        &folder.path().join("old.safetensors"),
        &[("norm.gamma", ramp(&[3], DType::F32)), ("norm.beta", ramp(&[3], DType::F32))],
    );
    let params = Params::open(path, &CPU).unwrap().head("probe").head("new.*");
    let vb = params.var_builder();
    assert!(
        vb.contains_tensor("norm.gamma") && !vb.contains_tensor("norm.weight") && !vb.contains_tensor("norm")
    );
    assert!(vb.contains_tensor("probe") && !vb.contains_tensor("new.scale"));
    // candle asks which of weight and gamma exists.
    layer_norm(3, 1e-5, vb.pp("norm")).unwrap();
    layer_norm(3, 1e-5, vb.pp("new")).unwrap();
    vb.get(1, "probe").unwrap();
    assert_eq!(names(&params), ["new.bias", "new.weight", "norm.beta", "norm.gamma", "probe"]);
    assert_eq!(params.report().unwrap().fresh_zero, ["new.bias", "probe"]);
}

#[test]
fn mistakes_are_named() {
    let folder = TempDir::new().unwrap();
    let path = two_layers(&folder);
    let open = || Params::open(&path, &CPU).unwrap();
    let message = |params: &Params, name: &str, shape: &[usize]| {
        params.var_builder().get(shape, name).unwrap_err().to_string()
    };
    let text = message(&open(), "bdy.weight", &[2, 3]);
    assert!(text.contains("`bdy.weight`") && text.contains("`body.weight`"), "{text}");
    assert!(text.contains("model.safetensors") && text.contains("Params::head"), "{text}");
    let text = message(&open(), "model.body.weight", &[2, 3]);
    assert!(text.contains("it has `body.weight`"), "{text}");
    let text = message(&open(), "body.weight", &[3, 2]);
    assert!(text.contains("`body.weight` has shape [2, 3], but the model needs [3, 2]"), "{text}");
    let text = message(&Params::new(&CPU), "w", &[1]);
    assert!(text.contains("there is no checkpoint"), "{text}");
    // Nothing that failed is registered.
    let params = open();
    message(&params, "body.weight", &[3, 2]);
    assert!(params.all().is_empty());

    let params = open();
    params.var_builder().get((2, 3), "body.weight").unwrap();
    let text = message(&params, "body.weight", &[6]);
    assert!(text.contains("[2, 3]") && text.contains("[6]"), "{text}");
    assert!(params.var_builder().set_dtype(DType::F64).get((2, 3), "body.weight").is_err());

    let headless = open().head("new").var_builder().get_unchecked("new").unwrap_err().to_string();
    assert!(headless.contains("`new` is new"), "{headless}");
    for (option, params) in [
        ("head", open().head("clasifier.*")),
        ("freeze", open().freeze("clasifier.*")),
        ("buffer", open().buffer("clasifier.*")),
        ("zero_anchor", open().zero_anchor("clasifier.*")),
        ("rename", open().rename("clasifier.*", "x")),
        ("unused", open().unused("clasifier.*")),
    ] {
        params.var_builder().get((2, 3), "body.weight").unwrap();
        // Patterns on the checkpoint's names are measured by these.
        let names = if option == "unused" { 5 } else { 1 };
        for error in [params.set().map(drop), params.report().map(drop)] {
            let error = error.unwrap_err();
            assert!(
                matches!(&error, tpgm_candle::params::Error::UnmatchedPattern { option: o, pattern, tensors, .. }
                    if *o == option && *tensors == names && pattern == "clasifier.*"),
                "{error}"
            );
        }
    }
}

#[test]
fn var_maps_are_taken_over_with_their_traps_named() {
    let folder = TempDir::new().unwrap();
    let path = two_layers(&folder);
    let map = VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&map, DType::F32, &CPU);
    let body = linear(3, 2, vb.pp("body")).unwrap();
    linear(2, 9, vb.pp("head")).unwrap();
    vb.get_with_hints(2, "gamma", Init::Const(0.0)).unwrap();

    let error = Params::open(&path, &CPU).unwrap().head("head.*").adopt(&map).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::params::Error::UndeclaredVariables { tensors } if tensors == &["gamma"]),
        "{error}"
    );
    let params = Params::open(&path, &CPU).unwrap().head("head.*").head("gamma").adopt(&map).unwrap();
    assert_eq!(names(&params), ["body.bias", "body.weight", "gamma", "head.bias", "head.weight"]);
    assert_eq!(anchor(&params, "body.weight"), flat(&ramp(&[2, 3], DType::F32)));
    assert_ne!(flat(body.weight()), flat(&ramp(&[2, 3], DType::F32)));
    params.reset_to_anchors().unwrap();
    assert_eq!(flat(body.weight()), flat(&ramp(&[2, 3], DType::F32)));
    let report = params.report().unwrap();
    assert_eq!(report.fresh_zero, ["gamma"]);
    assert_eq!(report.unused, ["extra.mask"]);
    let error = Params::open(&path, &CPU).unwrap().head("gamma").adopt(&map).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::params::Error::ShapeInFile { tensor, .. } if tensor.starts_with("head.")),
        "{error}"
    );

    let here = Params::from_var_map(&map).unwrap();
    assert_eq!(names(&here), names(&params));
    assert_eq!(anchor(&here, "body.weight"), flat(&ramp(&[2, 3], DType::F32)));
}

#[test]
fn values_load_whole_or_not_at_all() {
    let folder = TempDir::new().unwrap();
    let params = Params::open(two_layers(&folder), &CPU).unwrap();
    let body = linear(3, 2, params.var_builder().pp("body")).unwrap();
    let before = flat(body.weight());
    let mut values: BTreeMap<String, Tensor> = BTreeMap::new();
    values.insert("body.weight".into(), Tensor::ones((2, 3), DType::F64, &CPU).unwrap());
    let error = params.load_values(&values).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::params::Error::ValueNames { missing, .. } if missing == &["body.bias"]),
        "{error}"
    );
    values.insert("body.bias".into(), Tensor::ones(3, DType::F32, &CPU).unwrap());
    let error = params.load_values(&values).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::params::Error::ShapeMismatch { tensor, .. } if tensor == "body.bias"),
        "{error}"
    );
    values.insert("body.bias".into(), Tensor::ones(2, DType::F32, &CPU).unwrap());
    values.insert("other".into(), Tensor::ones(2, DType::F32, &CPU).unwrap());
    let error = params.load_values(&values).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::params::Error::ValueNames { unknown, .. } if unknown == &["other"]),
        "{error}"
    );
    assert_eq!(flat(body.weight()), before);
    values.remove("other");
    params.load_values(&values).unwrap();
    assert_eq!(flat(body.weight()), [1.0; 6]);

    // Values that live in the variables themselves, even in each other's.
    params.load_values(&params.values()).unwrap();
    assert_eq!(flat(body.weight()), [1.0; 6]);
    let swapped = Params::new(&CPU).head("*");
    let (a, b) = (swapped.var_builder().get(2, "a").unwrap(), swapped.var_builder().get(2, "b").unwrap());
    Var::from_tensor(&a).unwrap().set(&Tensor::new(&[1f32, 2.0], &CPU).unwrap()).unwrap();
    let exchange = BTreeMap::from([("a".to_owned(), b.clone()), ("b".to_owned(), a.clone())]);
    swapped.load_values(&exchange).unwrap();
    assert_eq!((flat(&a), flat(&b)), (vec![0.0, 0.0], vec![1.0, 2.0]));
}

#[test]
fn zero_anchors_of_declared_tensors() {
    let folder = TempDir::new().unwrap();
    let params = Params::open(two_layers(&folder), &CPU)
        .unwrap()
        .head("lora.*")
        .zero_anchor("lora.*")
        .zero_anchor("body.bias")
        .unused("body.weight");
    let vb = params.var_builder();
    vb.get_with_hints((4, 2), "lora.a", Init::Randn { mean: 0.0, stdev: 1.0 }).unwrap();
    vb.get(2, "body.bias").unwrap();
    assert_eq!(params.set().unwrap().anchors(), [AnchorKind::Zero, AnchorKind::Zero]);
    let before = flat(params.get("lora.a").unwrap().var());
    params.reset_to_anchors().unwrap();
    assert_eq!(flat(params.get("lora.a").unwrap().var()), before);
}
