use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use tpgm_nn::{Linear, add_bias, composed, linear, linear_no_bias};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, gradients, message, tolerance, values,
};

fn layer(inputs: &[Tensor]) -> Result<Tensor> {
    Linear::new(inputs[1].clone(), inputs.get(2).cloned()).forward(&inputs[0])
}

#[test]
fn gradients_are_difference_quotients() {
    for shape in [&[1usize, 1][..], &[3], &[2, 3, 5], &[2, 1, 3, 4]] {
        let inputs = [values(shape, 1), values((7, shape[shape.len() - 1]), 2), values(7, 3)];
        check_gradients("linear", &inputs, layer);
        check_gradients("linear without bias", &inputs[..2], layer);
    }
    for shape in [&[1usize, 1][..], &[5], &[12_000, 3], &[3, 33_000]] {
        let inputs = [values(shape, 1), values(shape[shape.len() - 1], 2)];
        check_gradients("bias", &inputs, |x| add_bias(&x[0], &x[1]));
    }
    check_gradients("strided", &[values((4, 3), 1), values(4, 2)], |x| add_bias(&x[0].t()?, &x[1]));
}

#[test]
fn values_and_gradients_are_those_of_candle() {
    for dtype in DTYPES {
        let inputs: Vec<_> = [values((5, 6, 8), 1), values((4, 8), 2), values(4, 3)]
            .iter()
            .map(|x| x.to_dtype(dtype).unwrap())
            .collect();
        let candle = candle_nn::Linear::new(inputs[1].clone(), Some(inputs[2].clone()));
        let epsilon = 4.0 * tolerance(dtype);
        assert_close("linear", &layer(&inputs).unwrap(), &candle.forward(&inputs[0]).unwrap(), epsilon);
        // Sums over 30 rows: candle's in the element type, those here in f32.
        compare_gradients("linear", &inputs, 30.0 * epsilon, layer, |x| {
            candle_nn::Linear::new(x[1].clone(), Some(x[2].clone())).forward(&x[0])
        });
        let pair = [inputs[0].clone(), values(8, 2).to_dtype(dtype).unwrap()];
        let f = |x: &[Tensor]| add_bias(&x[0], &x[1]);
        compare_gradients("bias", &pair, 30.0 * epsilon, f, |x| composed::add_bias(&x[0], &x[1]));
    }
}

#[test]
fn only_what_is_in_the_graph_gets_a_gradient() {
    let args = [values((5, 8), 1), values((4, 8), 2), values(4, 3)];
    for trained in 0..3 {
        let var = Var::from_tensor(&args[trained]).unwrap();
        let mut inputs = args.clone();
        inputs[trained] = var.as_tensor().clone();
        let grads = layer(&inputs).unwrap().sum_all().unwrap().backward().unwrap();
        for (i, input) in inputs.iter().enumerate() {
            assert_eq!(grads.get(input).is_some(), i == trained, "input {i} while {trained} is trained");
        }
    }
}

#[test]
fn strided_arguments_and_several_pieces() {
    check_gradients("strided", &[values((3, 4), 1), values((3, 5), 2), values((5, 2), 3)], |x| {
        Linear::new(x[1].t()?, Some(x[2].narrow(1, 1, 1)?.squeeze(1)?)).forward(&x[0].t()?)
    });
    check_gradients("long", &[values((9_000, 2), 1), values((5, 2), 2), values(5, 3)], layer);
}

#[test]
fn layers_load_what_candle_loads() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let a = linear(3, 2, vb.pp("a")).unwrap();
    let b = linear_no_bias(3, 2, vb.pp("b")).unwrap();
    assert_eq!((a.weight().dims(), a.bias().unwrap().dims()), (&[2, 3][..], &[2][..]));
    assert_eq!((b.weight().dims(), b.bias().is_none()), (&[2, 3][..], true));
}

#[test]
fn no_elements() {
    for shape in [[0usize, 4], [2, 0]] {
        let inputs = [values(&shape[..], 1), values(shape[1], 2)];
        let grads = gradients(&inputs, |x| add_bias(&x[0], &x[1]));
        assert_eq!((grads[0].dims(), grads[1].dims()), (&shape[..], &shape[1..]));
    }
    assert_eq!(layer(&[values((0, 3), 1), values((7, 3), 2), values(7, 3)]).unwrap().dims(), [0, 7]);
}

#[test]
fn errors_name_operation_and_shapes() {
    let text = message(layer(&[values((2, 4), 1), values((7, 3), 2)]));
    assert!(text.contains("linear") && text.contains("[2, 4]") && text.contains("[7, 3]"), "{text}");
    let text = message(add_bias(&values((2, 4), 1), &values(3, 2)));
    assert!(text.contains("add-bias") && text.contains("[2, 4]") && text.contains("[3]"), "{text}");
    assert!(message(layer(&[values((2, 4), 1), values(4, 2)])).contains("linear"));
    let text = message(layer(&[values((2, 4), 1), values((7, 4), 2), values(6, 3)]));
    assert!(text.contains("linear") && text.contains("[7, 4]") && text.contains("[6]"), "{text}");
    let bias = values(7, 3).to_dtype(DType::F32).unwrap();
    let text = message(layer(&[values((2, 4), 1), values((7, 4), 2), bias]));
    assert!(text.contains("linear") && text.contains("F32"), "{text}");
}

#[test]
fn new_layers_are_drawn_as_pytorch_draws_them() {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
    let (inputs, outputs) = (64, 2000);
    let with_bias = linear(inputs, outputs, vb.pp("a")).unwrap();
    let without = linear_no_bias(inputs, outputs, vb.pp("b")).unwrap();
    for drawn in [with_bias.weight(), without.weight(), with_bias.bias().unwrap()] {
        let values = drawn.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let bound = 1.0 / (inputs as f64).sqrt();
        assert!(values.iter().all(|x| x.abs() <= bound));
        let square = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
        // Of a uniform distribution: a third of the squared bound.
        assert!((square * 3.0 / (bound * bound) - 1.0).abs() < 0.1, "{square}");
    }
}
