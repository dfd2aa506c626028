//! Layers of images.

use candle_core::{DType, Module, ModuleT, Tensor};

use super::{Host, Layer, TYPES, assert_near, check, flat, values};
use crate::layers::{BatchNorm, MaxPool2d, Statistics};

#[test]
fn maxima_over_windows_are_those_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    for shape in [vec![1, 1, 3, 2], vec![2, 3, 7, 6]] {
        check(&host, "max_pool2d", 2, [1.0, 1.0], std::slice::from_ref(&shape), |t| {
            MaxPool2d::new((3, 2), (2, 1)).padding((1, 0)).forward(&t[0])
        });
    }
}

/// A layer of these tensors, and its running statistics.
fn batch_norm(t: &[Tensor], statistics: Statistics) -> BatchNorm {
    let channels = t[1].dims()[0];
    let of = |seed: u64, shift: f64| {
        let values = (values(&[channels], seed, DType::BF16).abs().unwrap() + shift).unwrap();
        values.to_dtype(DType::BF16).unwrap().to_dtype(t[1].dtype()).unwrap()
    };
    let norm = BatchNorm::new(t[1].clone(), t[2].clone(), &of(5, 0.0), &of(6, 0.5), 1e-1).unwrap();
    norm.statistics(statistics)
}

#[test]
fn batch_norms_are_those_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    for shape in [vec![5, 2], vec![3, 2, 7], vec![2, 3, 4, 5], vec![70, 1, 2, 6]] {
        let shapes = [shape.clone(), vec![shape[1]], vec![shape[1]]];
        let layers: [(&str, Layer); 3] = [
            ("batch norm", |t| batch_norm(t, Statistics::Batch).forward_t(&t[0], true)),
            ("frozen batch norm", |t| batch_norm(t, Statistics::Running).forward_t(&t[0], true)),
            ("batch norm in evaluation", |t| batch_norm(t, Statistics::Batch).forward_t(&t[0], false)),
        ];
        for (name, layer) in layers {
            check(&host, name, 2, [1.0, 1.0], &shapes, layer);
        }
        for dtype in TYPES {
            let args: Vec<_> =
                (1..).zip(&shapes).map(|(i, s)| values(s, i, dtype).to_dtype(dtype).unwrap()).collect();
            let moved = || {
                let norm = batch_norm(&args, Statistics::Batch);
                norm.forward_t(&args[0], true).unwrap();
                [flat(norm.running_mean()), flat(norm.running_var())].concat()
            };
            let ((got, calls), expected) = (host.run(moved), moved());
            assert_eq!(calls, 1);
            assert_near("running statistics", dtype, 2.0, &got, &expected);
        }
    }
}
