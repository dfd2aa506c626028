use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use tpgm_nn::{BatchNorm, Statistics, batch_norm, composed};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

/// Batches of vectors, sequences, images; one channel; channels of more than a piece of work; more channels than one.
const SHAPES: [&[usize]; 6] =
    [&[4, 3], &[2, 3, 5], &[3, 1, 2, 5], &[2, 5, 1, 1], &[3, 2, 90, 80], &[2, 700, 6, 6]];

fn layer(x: &[Tensor], running: &[Tensor; 2]) -> Result<BatchNorm> {
    BatchNorm::new(x[1].clone(), x[2].clone(), &running[0], &running[1], 1e-3)
}

/// Running statistics that the layer copies: they are no variables.
fn running(channels: usize, dtype: DType) -> [Tensor; 2] {
    let positive = values(channels, 5).abs().unwrap().affine(1.0, 0.5).unwrap();
    [values(channels, 4), positive].map(|x| x.to_dtype(dtype).unwrap())
}

fn inputs(shape: &[usize], dtype: DType) -> Vec<Tensor> {
    let x = [values(shape, 1), values(shape[1], 2), values(shape[1], 3)];
    x.map(|x| x.to_dtype(dtype).unwrap()).to_vec()
}

fn forward(x: &[Tensor], train: bool) -> Result<Tensor> {
    layer(x, &running(x[1].elem_count(), x[1].dtype()))?.forward_t(&x[0], train)
}

fn reference(x: &[Tensor], train: bool) -> Result<Tensor> {
    let [mean, variance] = if train {
        composed::batch_statistics(&x[0])?.into()
    } else {
        running(x[1].elem_count(), x[1].dtype())
    };
    composed::batch_norm(&x[0], &x[1], &x[2], &mean, &variance, 1e-3)
}

#[test]
fn gradients_are_difference_quotients() {
    for shape in SHAPES {
        for train in [true, false] {
            check_gradients(&format!("train: {train}"), &inputs(shape, DType::F64), |x| forward(x, train));
        }
    }
}

#[test]
fn values_and_gradients_are_those_of_composed_operations() {
    for (dtype, rounding) in
        [(DType::F64, 1e-11), (DType::F32, 2e-5), (DType::F16, 1e-2), (DType::BF16, 6e-2)]
    {
        for (shape, train) in [(&[3usize, 4, 5, 7][..], true), (&[3, 4, 5, 7], false), (&[9, 3], true)] {
            let inputs = inputs(shape, dtype);
            let (actual, expected) = (forward(&inputs, train).unwrap(), reference(&inputs, train).unwrap());
            assert_close("batch norm", &actual, &expected, 4.0 * tolerance(dtype));
            compare_gradients(
                "batch norm",
                &inputs,
                rounding,
                |x| forward(x, train),
                |x| reference(x, train),
            );
        }
    }
}

/// What `tests/reference/make_reference.py` wrote.
fn pytorch(name: &str) -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/reference.safetensors");
    let all = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let of_this = |(key, x): (String, Tensor)| {
        let float = if x.dtype().is_float() { x.to_dtype(DType::F64).unwrap() } else { x };
        Some((key.strip_prefix(name)?.strip_prefix('/')?.to_owned(), float))
    };
    all.into_iter().filter_map(of_this).collect()
}

#[test]
fn values_gradients_and_running_statistics_are_those_of_pytorch() {
    for (name, train, momentum) in [("batch_norm_train", true, 0.1), ("batch_norm_eval", false, 0.3)] {
        let saved = pytorch(name);
        let weight = |key: &str| saved[&format!("weights/{key}")].clone();
        let vars =
            [saved["x"].clone(), weight("weight"), weight("bias")].map(|x| Var::from_tensor(&x).unwrap());
        let [x, w, b] = vars.each_ref().map(|var| var.as_tensor().clone());
        let norm = BatchNorm::new(w, b, &weight("running_mean"), &weight("running_var"), 1e-3)
            .unwrap()
            .momentum(momentum)
            .unwrap();
        let y = norm.forward_t(&x, train).unwrap();
        assert_close(name, &y, &saved["y"], 1e-12);
        let grads = (y * &saved["output_grad"]).unwrap().sum_all().unwrap().backward().unwrap();
        for (var, key) in vars.iter().zip(["x_grad", "weight_grad", "bias_grad"]) {
            assert_close(key, grads.get(var).unwrap(), &saved[key], 1e-12);
        }
        assert_close(name, norm.running_mean(), &saved["running_mean"], 1e-13);
        assert_close(name, norm.running_var(), &saved["running_var"], 1e-13);
    }
}

#[test]
fn running_statistics_move_in_place_and_only_in_training() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let norm = batch_norm(2, 1e-5, vb.pp("bn")).unwrap().momentum(0.25).unwrap();
    let get = |name: &str| flat(&map.data().lock().unwrap()[name]);
    assert_eq!((get("bn.weight"), get("bn.bias")), (vec![1.0; 2], vec![0.0; 2]));
    // Channels 1, 3 and 0, 8: means 2 and 4, variances with n - 1: 2 and 32.
    let x = Tensor::new(&[[1f32, 0.0], [3.0, 8.0]], &Device::Cpu).unwrap();
    let before = norm.forward_t(&x, false).unwrap();
    assert_close("with initial statistics", &before, &x, 1e-5);
    norm.forward_t(&x, true).unwrap();
    assert_eq!(get("bn.running_mean"), [0.5, 1.0]);
    assert_eq!(get("bn.running_var"), [0.75 + 0.5, 0.75 + 8.0]);
    norm.forward_t(&x, false).unwrap();
    norm.clone().statistics(Statistics::Running).forward_t(&x, true).unwrap();
    assert_eq!(get("bn.running_mean"), [0.5, 1.0]);
    let names: std::collections::BTreeSet<String> = map.data().lock().unwrap().keys().cloned().collect();
    assert!(names.iter().eq(["bn.bias", "bn.running_mean", "bn.running_var", "bn.weight"].iter()));
}

#[test]
fn a_batch_that_is_not_finite_leaves_the_running_statistics() {
    // 1e300 squared is infinite; 1e30 is finite, but its square is not in f32.
    for (dtype, bad) in
        [(DType::F64, f64::NAN), (DType::F64, f64::INFINITY), (DType::F64, 1e300), (DType::F32, 1e30)]
    {
        let channels = running(3, dtype).map(|x| Var::from_tensor(&x).unwrap());
        let before = [&channels[0], &channels[1]].map(|x| flat(x));
        let inputs = inputs(&[2, 3, 4], dtype);
        let norm = layer(&inputs, &channels.clone().map(Var::into_inner)).unwrap();
        // One number, in the last channel: the others would be finite.
        let mut values = flat(&inputs[0]);
        values[11] = bad;
        let x = Tensor::from_vec(values, (2, 3, 4), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let y = norm.forward_t(&x, true).unwrap();
        assert!(bad.is_finite() || flat(&y).iter().any(|y| y.is_nan()), "{dtype:?} {bad}");
        assert_eq!([&channels[0], &channels[1]].map(|x| flat(x)), before, "{dtype:?} {bad}");
        // The next batch moves them.
        norm.forward_t(&inputs[0], true).unwrap();
        for (channel, before) in channels.iter().zip(&before) {
            assert!(flat(channel).iter().zip(before).all(|(now, before)| now != before && now.is_finite()));
        }
    }
}

#[test]
fn kept_statistics_still_train_weight_and_bias() {
    let inputs = inputs(&[3, 4, 5], DType::F64);
    let kept = |x: &[Tensor]| {
        layer(x, &running(4, DType::F64))?.statistics(Statistics::Running).forward_t(&x[0], true)
    };
    assert_close("kept", &kept(&inputs).unwrap(), &reference(&inputs, false).unwrap(), 1e-12);
    compare_gradients("kept", &inputs, 1e-11, kept, |x| reference(x, false));
}

#[test]
fn a_large_mean_does_not_spoil_the_variance() {
    // Two sums, of x and of its square, would leave nothing of the variance in f32.
    let single = {
        let mut inputs = inputs(&[4, 2, 8, 9], DType::F64);
        inputs[0] = inputs[0].affine(1.0, 3000.0).unwrap();
        inputs.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect::<Vec<_>>()
    };
    let double: Vec<_> = single.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
    let expected = reference(&double, true).unwrap().to_dtype(DType::F32).unwrap();
    assert_close("batch norm", &forward(&single, true).unwrap(), &expected, 5e-4);
    let norm = layer(&single, &running(2, DType::F64)).unwrap().momentum(1.0).unwrap();
    norm.forward_t(&single[0], true).unwrap();
    let (mean, variance) = composed::batch_statistics(&double[0]).unwrap();
    assert_close("mean", norm.running_mean(), &mean, 1e-9);
    let unbiased = variance.affine(288.0 / 287.0, 0.0).unwrap();
    assert_close("variance", norm.running_var(), &unbiased, 1e-6);
}

#[test]
fn strided_inputs_and_frozen_parameters() {
    let transposed = [values((4, 3, 5), 1), values(5, 2), values(5, 3)];
    check_gradients("strided", &transposed, |x| {
        forward(&[x[0].transpose(1, 2)?, x[1].clone(), x[2].clone()], true)
    });
    let inputs = inputs(&[3, 4, 5], DType::F64);
    let all = gradients(&inputs, |x| forward(x, true));
    for trained in 0..3 {
        let var = Var::from_tensor(&inputs[trained]).unwrap();
        let mut mixed = inputs.clone();
        mixed[trained] = var.as_tensor().clone();
        let loss = crate::gradients::weighted_sum(&forward(&mixed, true).unwrap()).unwrap();
        let grads = loss.backward().unwrap();
        assert_close("the only one trained", grads.get(&var).unwrap(), &all[trained], 0.0);
    }
}

#[test]
fn no_elements() {
    for shape in [&[0usize, 3][..], &[2, 3, 0], &[2, 0, 4]] {
        let inputs = inputs(shape, DType::F64);
        assert_eq!(forward(&inputs, false).unwrap().dims(), shape);
        assert_eq!(gradients(&inputs, |x| forward(x, false))[0].dims(), shape);
    }
}

#[test]
fn errors_name_what_is_wrong() {
    let inputs = inputs(&[2, 4, 3], DType::F64);
    let wrong = |x: Tensor| message(forward(&[x, inputs[1].clone(), inputs[2].clone()], true));
    let text = wrong(values((2, 3, 4), 1));
    assert!(text.contains("batch-norm") && text.contains("[2, 3, 4]") && text.contains("[4]"), "{text}");
    assert!(wrong(values(4, 1)).contains("(batch, channels, ...)"));
    let text = wrong(values((1, 4), 1));
    assert!(text.contains("more than one element") && text.contains("[1, 4]"), "{text}");
    let text = wrong(inputs[0].to_dtype(DType::F32).unwrap());
    assert!(text.contains("F32") && text.contains("F64"), "{text}");
    let norm = layer(&inputs, &running(4, DType::F64)).unwrap();
    assert!(message(norm.momentum(1.5)).contains("momentum is 1.5"));
    let text = message(layer(&inputs, &running(3, DType::F64)));
    assert!(text.contains("running statistics") && text.contains("[3]"), "{text}");
    for dtype in DTYPES {
        // The wrong type of the running statistics is none: they are converted.
        layer(&inputs, &running(4, dtype)).unwrap().forward_t(&inputs[0], true).unwrap();
    }
}
