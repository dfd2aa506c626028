use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use tpgm_nn::{LayerNorm, RmsNorm, composed, layer_norm, rms_norm};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, message, tolerance, values,
};

/// Shapes of inputs: one element, rows of one, odd sizes, more rows than a piece of work, rows longer than a piece.
const SHAPES: [&[usize]; 7] = [&[1, 1], &[3, 1], &[17], &[2, 3, 5], &[1, 4, 33], &[12_000, 3], &[3, 33_000]];

fn layer(inputs: &[Tensor]) -> Result<Tensor> {
    LayerNorm::new(inputs[1].clone(), inputs[2].clone(), 1e-3).forward(&inputs[0])
}

fn layer_no_bias(inputs: &[Tensor]) -> Result<Tensor> {
    LayerNorm::new_no_bias(inputs[1].clone(), 1e-3).forward(&inputs[0])
}

fn rms(inputs: &[Tensor]) -> Result<Tensor> {
    RmsNorm::new(inputs[1].clone(), 1e-3).forward(&inputs[0])
}

fn inputs(shape: &[usize]) -> Vec<Tensor> {
    let features = shape[shape.len() - 1];
    vec![values(shape, 1), values(features, 2), values(features, 3)]
}

#[test]
fn gradients_are_difference_quotients() {
    for shape in SHAPES {
        let inputs = inputs(shape);
        check_gradients("layer norm", &inputs, layer);
        check_gradients("layer norm without bias", &inputs[..2], layer_no_bias);
        check_gradients("rms norm", &inputs[..2], rms);
    }
}

#[test]
fn values_are_those_of_candle() {
    for shape in [&[2usize, 3, 5][..], &[4, 768], &[3, 1]] {
        for dtype in DTYPES {
            let [x, weight, bias] =
                <[Tensor; 3]>::try_from(inputs(shape)).unwrap().map(|x| x.to_dtype(dtype).unwrap());
            let actual = LayerNorm::new(weight.clone(), bias.clone(), 1e-5).forward(&x).unwrap();
            // candle's own computes half precision in that precision.
            let expected = candle_nn::ops::layer_norm_slow(&x, &weight, &bias, 1e-5).unwrap();
            let epsilon = if dtype == DType::F64 { 1e-9 } else { 2.0 * tolerance(dtype) }; // candle's 1e-5 is an f32
            assert_close("layer norm", &actual, &expected, epsilon);
            if dtype == DType::F32 {
                let expected = candle_nn::LayerNorm::new(weight.clone(), bias, 1e-5).forward(&x).unwrap();
                assert_close("layer norm", &actual, &expected, epsilon);
            }
            let actual = RmsNorm::new(weight.clone(), 1e-5).forward(&x).unwrap();
            let expected = candle_nn::ops::rms_norm_slow(&x, &weight, 1e-5).unwrap();
            assert_close("rms norm", &actual, &expected, epsilon);
        }
    }
}

#[test]
fn gradients_are_those_of_composed_operations() {
    for (dtype, tolerance) in
        [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::F16, 1e-2), (DType::BF16, 6e-2)]
    {
        let inputs: Vec<_> = inputs(&[2, 7, 40]).iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
        let own = |x: &[Tensor]| composed::norm(&x[0], &x[1], Some(&x[2]), 1e-3, true);
        compare_gradients("layer norm", &inputs, tolerance, layer, own);
        let own = |x: &[Tensor]| composed::norm(&x[0], &x[1], None, 1e-3, false);
        compare_gradients("rms norm", &inputs[..2], tolerance, rms, own);
        let slow = |x: &[Tensor]| candle_nn::ops::layer_norm_slow(&x[0], &x[1], &x[2], 1e-3);
        let tolerance = if dtype == DType::F64 { 1e-6 } else { tolerance };
        compare_gradients("layer norm", &inputs, tolerance, layer, slow);
    }
}

#[test]
fn a_large_mean_does_not_spoil_the_variance() {
    // Two-pass variance: with E[x^2] - E[x]^2 in f32, nothing would be left of it.
    let x = (values((4, 64), 1).affine(1.0, 3000.0)).unwrap();
    let inputs = [x, values(64, 2), values(64, 3)];
    let single: Vec<_> = inputs.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let double: Vec<_> = single.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
    let expected = layer(&double).unwrap().to_dtype(DType::F32).unwrap();
    assert_close("layer norm", &layer(&single).unwrap(), &expected, 1e-3);
}

#[test]
fn strided_inputs() {
    let inputs = inputs(&[6, 5]);
    let transposed = [values((5, 6), 1), inputs[1].clone(), inputs[2].clone()];
    check_gradients("strided", &transposed, |x| layer(&[x[0].t()?, x[1].clone(), x[2].clone()]));
    let x = transposed[0].t().unwrap();
    let of_copy = layer(&[x.contiguous().unwrap(), inputs[1].clone(), inputs[2].clone()]).unwrap();
    assert_close("strided", &layer(&[x, inputs[1].clone(), inputs[2].clone()]).unwrap(), &of_copy, 0.0);
    // A view that starts inside its storage.
    check_gradients("narrowed", &[values((9, 5), 1), inputs[1].clone()], |x| {
        rms(&[x[0].narrow(0, 2, 4)?, x[1].clone()])
    });
}

#[test]
fn no_elements() {
    for shape in [&[0usize, 4][..], &[2, 0], &[0]] {
        let inputs = inputs(shape);
        assert_eq!(layer(&inputs).unwrap().dims(), shape);
        let grads = crate::gradients::gradients(&inputs, layer);
        assert_eq!(grads[0].dims(), shape);
        assert!(flat(&grads[1]).iter().chain(&flat(&grads[2])).all(|&x| x == 0.0));
    }
}

#[test]
fn frozen_inputs_get_no_gradient_and_others_do() {
    let inputs = inputs(&[4, 5]);
    let all = crate::gradients::gradients(&inputs, layer);
    for trained in 0..3 {
        let var = Var::from_tensor(&inputs[trained]).unwrap();
        let mut mixed = inputs.clone();
        mixed[trained] = var.as_tensor().clone();
        let loss = crate::gradients::weighted_sum(&layer(&mixed).unwrap()).unwrap();
        let grads = loss.backward().unwrap();
        assert_close("the only one trained", grads.get(&var).unwrap(), &all[trained], 0.0);
    }
}

#[test]
fn layers_load_what_candle_loads() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let norm = layer_norm(5, 1e-12, vb.pp("a")).unwrap();
    assert_eq!((norm.eps(), norm.weight().dims(), norm.bias().unwrap().dims()), (1e-12, &[5][..], &[5][..]));
    let rms = rms_norm(5, 1e-6, vb.pp("b")).unwrap();
    assert_eq!((rms.eps(), rms.weight().dims()), (1e-6, &[5][..]));
    let mut names: Vec<_> = map.data().lock().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["a.bias", "a.weight", "b.weight"]);
    // The weights are the map's variables, not copies.
    let x = values((2, 5), 1);
    let grads = crate::gradients::weighted_sum(&norm.forward(&x).unwrap()).unwrap().backward().unwrap();
    assert!(grads.get(&map.data().lock().unwrap()["a.weight"]).is_some());
}

#[test]
fn errors_name_operation_and_shapes() {
    let text = message(layer(&[values((2, 4), 1), values(5, 2), values(5, 3)]));
    assert!(text.contains("layer-norm") && text.contains("[2, 4]") && text.contains("[5]"), "{text}");
    let text = message(rms(&[values((), 1), values(5, 2)]));
    assert!(text.contains("rms-norm") && text.contains("dimension"), "{text}");
    let text = message(rms(&[values(5, 1).to_dtype(DType::F32).unwrap(), values(5, 2)]));
    assert!(text.contains("rms-norm") && text.contains("F32") && text.contains("F64"), "{text}");
    let text = message(rms(&[values(5, 1).to_dtype(DType::U32).unwrap(), values(5, 2)]));
    assert!(text.contains("rms-norm") && text.contains("U32"), "{text}");
}
