//! Tapes with little on them: what a block hands to candle.

use candle_core::{DType, Device, Module, Tensor, Var};

use super::{Parts, block, recorded};
use crate::layers::fused::{Custom, apply1};
use crate::layers::heads::{MergeHeads, SplitHeads};
use crate::layers::scores::Scores;
use crate::layers::{Activation, AttentionMask, LayerNorm, Linear, gated_silu};

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
fn a_reshape_at_the_end_leaves_memory_where_others_read_it() {
    let x = var(&[1.0, -2.0, 0.5, 4.0], &[2, 2]);
    let flat = block("test", &x, Parts::default(), |tape, x| tape.reshape(x, &[4])).unwrap();
    assert_eq!((vec(&flat), flat.dims()), (vec(&x), [4].as_slice()), "the caller's tensor stays");
    let grads = (&flat * &flat).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(vec(grads.get(&x).unwrap()), [2.0, -4.0, 1.0, 8.0]);

    // The weights that their own step keeps to go back.
    let scores = var(&[1.0, -2.0, 0.5, 4.0], &[1, 1, 2, 2]);
    let ends = Tensor::new(&[1.0f64, 2.0, -1.0, 0.5], &Device::Cpu).unwrap();
    let run = |y: Tensor| {
        let grads = (y * &ends).unwrap().sum_all().unwrap().backward().unwrap();
        vec(grads.get(&scores).unwrap())
    };
    let op = || Scores::new(&scores, 1, 2, 0.5, (None, false)).unwrap();
    let ended = run(block("test", &scores, Parts::default(), |tape, x| {
        let weights = tape.fused(op(), [&x.0], super::Keep::Result)?;
        tape.reshape(&weights, &[4])
    })
    .unwrap());
    assert_eq!(ended, run(apply1(op(), &scores).unwrap().flatten_all().unwrap()));
}

#[test]
fn a_frozen_layer_and_gated_halves_go_back_as_layers_do() {
    let x = var(&[1.0, -2.0, 0.5, 4.0, 0.25, -1.0], &[1, 3, 2]);
    let weight = Tensor::new(&[[3.0f64, 1.0], [-0.5, 5.0], [0.75, 2.0], [1.5, -4.0]], &Device::Cpu).unwrap();
    let bias = Tensor::new(&[0.5f64, -1.0, 2.0, 0.0], &Device::Cpu).unwrap();
    let run = |y: Tensor| {
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        vec(grads.get(&x).unwrap())
    };
    for bias in [None, Some(bias)] {
        let frozen = Linear::new(weight.clone(), bias.clone());
        let trained = Linear::new(Var::from_tensor(&weight).unwrap().as_tensor().clone(), bias);
        let [frozen, trained] = [frozen, trained].map(|layer| {
            run(block("test", &x, Parts::default(), |tape, x| {
                let y = tape.linear(x, &layer)?;
                tape.gated_halves(&y)
            })
            .unwrap())
        });
        assert_eq!(frozen, trained);
    }
    let layer = Linear::new(weight, None);
    let together = run(block("test", &x, Parts::default(), |tape, x| {
        let y = tape.linear(x, &layer)?;
        tape.gated_halves(&y)
    })
    .unwrap());
    let y = layer.forward(&x).unwrap();
    let halves = [0, 2].map(|start| y.narrow(2, start, 2).unwrap());
    assert_eq!(together, run(gated_silu(&halves[0], &halves[1]).unwrap()));
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

#[test]
fn attention_weights_are_softmaxes_of_scaled_and_masked_scores() {
    let numbers = |shape: &[usize], step: usize| {
        let count: usize = shape.iter().product();
        let data: Vec<f64> = (0..count).map(|i| ((i * step) % 17) as f64 / 4.0 - 2.0).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    };
    let (batch, heads, queries, keys) = (2, 3, 4, 6);
    let scores = numbers(&[batch, heads, queries, keys], 5);
    let masks: [&[usize]; 5] = [&[2, 1, 1, 6], &[4, 6], &[1, 3, 4, 6], &[2, 3, 4, 6], &[2, 3, 4, 1]];
    let masks = masks.map(|shape| AttentionMask::Added(numbers(shape, 7)));
    // Heads of a group as rows of one matrix are the same rows.
    let grouped = scores.reshape((batch, 1, heads * queries, keys)).unwrap();
    for mask in [None, Some(&AttentionMask::Causal)].into_iter().chain(masks.iter().map(Some)) {
        let scaled = (&scores * 0.3).unwrap();
        let expected = Scores::composed(&scaled, heads, queries, mask).unwrap();
        for x in [&scores, &grouped] {
            let op = Scores::new(x, heads, queries, 0.3, AttentionMask::parts(mask)).unwrap();
            let got = apply1(op, x).unwrap();
            assert_eq!(got.dims(), x.dims());
            for (got, expected) in vec(&got).iter().zip(vec(&expected)) {
                assert!((got - expected).abs() < 1e-14, "{mask:?}: {got} and {expected}");
            }
        }
    }
    // The last query sees all keys, the first those up to the third.
    let op = Scores::new(&scores, heads, queries, 1.0, (None, true)).unwrap();
    let first = vec(&apply1(op, &scores).unwrap())[..2 * keys].to_vec();
    assert!(first[..3].iter().all(|x| *x > 0.0) && first[3..6] == [0.0; 3]);
    assert!(first[6..10].iter().all(|x| *x > 0.0) && first[10..] == [0.0; 2]);
    let wrong = AttentionMask::Added(numbers(&[5], 1));
    let text = Scores::new(&scores, heads, queries, 1.0, AttentionMask::parts(Some(&wrong)))
        .unwrap_err()
        .to_string();
    assert!(text.contains("a mask must broadcast to (batch, heads, queries, keys)"), "{text}");
}

#[test]
fn heads_are_where_a_transposition_has_them() {
    let x = Tensor::arange(0f64, (2 * 3 * 24) as f64, &Device::Cpu).unwrap().reshape((2, 3, 24)).unwrap();
    for part in 0..3 {
        let split = Custom(SplitHeads { heads: 4, parts: 3, part }).run([&x]).unwrap();
        let expected =
            x.narrow(2, part * 8, 8).unwrap().reshape((2, 3, 4, 2)).unwrap().transpose(1, 2).unwrap();
        assert_eq!((split.dims(), vec(&split)), (expected.dims(), vec(&expected)));
    }
    let part = |part| Custom(SplitHeads { heads: 4, parts: 3, part }).run([&x]).unwrap();
    let merged = Custom(MergeHeads { heads: 4 }).run([&part(0), &part(1), &part(2)]).unwrap();
    assert_eq!((merged.dims(), vec(&merged)), (x.dims(), vec(&x)));
    assert!(Custom(SplitHeads { heads: 5, parts: 1, part: 0 }).run([&x]).is_err());
}

#[test]
fn operations_are_counted_inside_and_around() {
    let x = var(&[1.0, -2.0], &[1, 2]);
    let run = || block("test", &x, Parts::default(), |tape, x| tape.add(x, x)).unwrap();
    let ((_, inner), outer) = recorded(|| {
        run();
        recorded(run)
    });
    assert_eq!((inner.len(), outer.len()), (1, 2));
    assert!(recorded(|| ()).1.is_empty());
}
