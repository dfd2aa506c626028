//! Tapes with little on them: what a block hands to candle.

use candle_core::{DType, Device, Module, Tensor, Var};

use super::{Parts, block};
use crate::layers::{Activation, LayerNorm, Linear};

fn var(values: &[f64], shape: &[usize]) -> Var {
    Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn vec(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_result_that_a_later_step_has_read_stays_as_it_was() {
    let (x, weight) = (var(&[1.0, -2.0], &[1, 2]), var(&[3.0, 0.0, 0.0, 5.0], &[2, 2]));
    let layer = Linear::new(weight.as_tensor().clone(), None);
    let unused = Linear::new(var(&[1.0; 4], &[2, 2]).as_tensor().clone(), None);
    let y = block("test", &x, Parts::default(), |tape, x| {
        let y = tape.linear(x, &layer)?;
        // Reads the result, and leads nowhere.
        tape.activated(&y, &unused, Activation::Relu)?;
        Ok(y)
    })
    .unwrap();
    assert_eq!(vec(&y), [3.0, -10.0]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(vec(grads.get(&x).unwrap()), [3.0, 5.0]);
    assert_eq!(vec(grads.get(&weight).unwrap()), [1.0, -2.0, 1.0, -2.0]);
    assert_eq!(vec(grads.get(unused.weight()).unwrap()), [0.0; 4], "what leads nowhere");
}

#[test]
fn an_input_that_comes_out_is_the_input() {
    let x = var(&[1.0, 2.0], &[2]);
    let y = block("test", &x, Parts::default(), |_, x| Ok(x.clone())).unwrap();
    assert_eq!(y.id(), x.id());
}

#[test]
fn a_parameter_that_is_used_twice_gets_both_gradients() {
    let (x, weight) = (var(&[1.0, -2.0], &[1, 2]), var(&[3.0, 1.0, 0.5, 5.0], &[2, 2]));
    let layer = Linear::new(weight.as_tensor().clone(), None);
    let run = |y: Tensor| {
        let grads = y.sum_all().unwrap().backward().unwrap();
        [&x, &weight].map(|var| vec(grads.get(var).unwrap()))
    };
    let together = run(block("test", &x, Parts::default(), |tape, x| {
        let y = tape.linear(x, &layer)?;
        let y = tape.linear(&y, &layer)?;
        tape.add(&y, x)
    })
    .unwrap());
    let plain = {
        let t = weight.t().unwrap();
        run((x.matmul(&t).unwrap().matmul(&t).unwrap() + x.as_tensor()).unwrap())
    };
    assert_eq!(together, plain);
}

#[test]
fn a_sum_that_goes_on_carries_its_gradient_through_the_norm() {
    let (x, y) = (var(&[1.0, -2.0, 0.5, 4.0], &[2, 2]), var(&[0.25, 3.0, -1.0, 2.0], &[2, 2]));
    let (weight, bias) = (var(&[1.5, -0.5], &[2]), var(&[0.1, 0.2], &[2]));
    let norm = LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-3);
    let all = [&x, &y, &weight, &bias];
    let weights = Tensor::new(&[[1.0f64, 2.0], [-1.0, 0.5]], &Device::Cpu).unwrap();
    let run = |out: Tensor| {
        let grads = (out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        all.map(|var| vec(grads.get(var).unwrap()))
    };
    // `y` comes in as the bias of a layer, so that it is a parameter of the block.
    let eye = Tensor::eye(2, DType::F64, &Device::Cpu).unwrap();
    let both = run(block("test", &x, Parts::default(), |tape, x| {
        let y = tape.linear(&super::Value(y.as_tensor().clone()), &Linear::new(eye.clone(), None))?;
        let [sum, normed] = tape.add_norm(x, &y, &norm)?;
        tape.add(&normed, &sum)
    })
    .unwrap());
    let sum = (x.as_tensor() + y.as_tensor()).unwrap();
    let plain = run((norm.forward(&sum).unwrap() + &sum).unwrap());
    for (got, expected) in both.iter().flatten().zip(plain.iter().flatten()) {
        assert!((got - expected).abs() < 1e-14, "{got} and {expected}");
    }
}
