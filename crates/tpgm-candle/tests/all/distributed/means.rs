//! Means over ranks.

use std::thread;

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::core::element::{bf16, f16};
use tpgm_candle::distributed::{Communicator, InProcess, average_gradients};
use tpgm_candle::{Anchor, Param, Params};

use super::ranks;

/// What every rank has, and the mean that follows from the values by hand.
fn averaged<T: candle_core::WithDType + std::fmt::Debug>(values: [[T; 2]; 3]) -> Vec<Vec<T>> {
    // Arrival in every order: rank `k` of round `i` comes as number `(k + i) % 3`, as well as a sleep can tell.
    let means: Vec<Vec<Vec<T>>> = (0..3)
        .map(|shift| {
            ranks(3, |communicator| {
                let turn = (communicator.rank() + shift) % 3;
                thread::sleep(std::time::Duration::from_millis(5 * turn as u64));
                let tensor = Tensor::new(&values[communicator.rank()], &Device::Cpu).unwrap();
                communicator.all_reduce_mean(&[("g", &tensor)]).unwrap();
                tensor.to_vec1::<T>().unwrap()
            })
        })
        .collect();
    assert!(means.iter().all(|ranks| format!("{ranks:?}") == format!("{:?}", means[0])));
    means.into_iter().next().unwrap()
}

#[test]
fn means_are_summed_in_order_of_rank_whoever_comes_first() {
    // (2^24 + 1) + 1 is 2^24 in f32, summed in any other order it would be 2^24 + 2.
    let big = 16_777_216f32;
    for mean in averaged([[big, 3.0], [1.0, 6.0], [1.0, 0.0]]) {
        assert_eq!(mean, [big * (1.0 / 3.0), 9.0 * (1.0f32 / 3.0)]);
    }
    for mean in averaged([[1.0f64, -3.0], [2.0, 0.0], [6.0, 0.0]]) {
        assert!((mean[0] - 3.0).abs() < 1e-15 && (mean[1] + 1.0).abs() < 1e-15);
    }
    // The sum, 180000, is beyond f16; the mean is not.
    let f16s = |a: f32| [f16::from_f32(a), f16::from_f32(1.0)];
    assert!(
        averaged([f16s(60000.0), f16s(60000.0), f16s(60000.0)])
            .iter()
            .all(|mean| mean[0].to_f32() == 60000.0)
    );
    let bf16s = |a: f32| [bf16::from_f32(a), bf16::from_f32(0.0)];
    assert!(averaged([bf16s(1.0), bf16s(2.0), bf16s(3.0)]).iter().all(|mean| mean[0].to_f32() == 2.0));
}

#[test]
fn gradients_of_any_optimizer_are_averaged() {
    let means = ranks(2, |communicator| {
        let (a, b) =
            (Var::new(&[1.0f32, 2.0], &Device::Cpu).unwrap(), Var::new(1.0f32, &Device::Cpu).unwrap());
        let params = Params::from_params([Param::new("a", a.clone(), Anchor::None)]).unwrap();
        let scale = communicator.rank() as f64 * 2.0 + 1.0;
        let loss = ((a.sum_all().unwrap() * scale).unwrap() + b.as_tensor()).unwrap();
        let mut grads = loss.backward().unwrap();
        average_gradients(&communicator, &params, &mut grads).unwrap();
        (grads.get(&a).unwrap().to_vec1::<f32>().unwrap(), grads.get(&b).unwrap().to_vec0::<f32>().unwrap())
    });
    assert_eq!(means, vec![(vec![2.0, 2.0], 1.0); 2]);
}

#[test]
fn gradients_that_share_memory_are_averaged_apart() {
    // One tensor given as the gradient of two variables, and a strided one.
    let weights = ranks(2, |communicator| {
        let var = || Var::zeros((2, 2), DType::F64, &Device::Cpu).unwrap();
        let vars = [var(), var(), var()];
        let params = ["a", "b", "c"].iter().zip(&vars);
        let params = params.map(|(name, var)| Param::new(*name, var.clone(), Anchor::None));
        let params = Params::from_params(params).unwrap();
        let gradient =
            [[1.0f64, 2.0], [3.0, 4.0]].map(|row| row.map(|x| x * (communicator.rank() + 1) as f64));
        let shared = Tensor::new(&gradient, &Device::Cpu).unwrap();
        let mut grads = vars[0].sum_all().unwrap().backward().unwrap();
        grads.insert(&vars[0], shared.clone());
        grads.insert(&vars[1], shared.clone());
        grads.insert(&vars[2], shared.t().unwrap());
        average_gradients(&communicator, &params, &mut grads).unwrap();
        vars.map(|var| grads.get(&var).unwrap().to_vec2::<f64>().unwrap())
    });
    let expected = vec![vec![1.5, 3.0], vec![4.5, 6.0]];
    let turned = vec![vec![1.5, 4.5], vec![3.0, 6.0]];
    assert_eq!(weights[0], [expected.clone(), expected, turned]);
    assert_eq!(weights[0], weights[1]);
}

#[test]
fn one_rank_alone_needs_nobody() {
    let communicator = InProcess::group(1).pop().unwrap();
    let tensor = Tensor::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
    communicator.all_reduce_mean(&[("t", &tensor)]).unwrap();
    communicator.barrier().unwrap();
    assert_eq!(tensor.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    assert!(InProcess::group(0).is_empty());
}
