use candle_core::{DType, Device, Tensor, Var};
use tpgm_nn::losses::{cross_entropy_soft, cross_entropy_soft_smoothed, one_hot};
use tpgm_nn::{composed, cross_entropy_smoothed};

use crate::gradients::{
    assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

/// Rows of positive numbers that do not sum to 1, some of them 0.
fn targets(rows: usize, classes: usize) -> Tensor {
    values((rows, classes), 5).relu().unwrap()
}

/// The definition, term by term.
fn by_definition(logits: &[f64], targets: &[f64], classes: usize, smoothing: f64) -> f64 {
    let rows = (logits.len() / classes) as f64;
    let mut total = 0.0;
    for (row, target) in logits.chunks(classes).zip(targets.chunks(classes)) {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        for (x, t) in row.iter().zip(target) {
            total -= ((1.0 - smoothing) * t + smoothing / classes as f64) * (x.exp() / sum).ln();
        }
    }
    total / rows
}

const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 5), (6, 3), (9, 130), (20_000, 2), (3, 33_000)];

#[test]
fn value_is_the_definition() {
    for (rows, classes) in SHAPES {
        for smoothing in [0.0, 0.1, 1.0] {
            let (logits, targets) = (values((rows, classes), 1), targets(rows, classes));
            let expected = by_definition(&flat(&logits), &flat(&targets), classes, smoothing);
            let expected = Tensor::new(expected, &Device::Cpu).unwrap();
            let actual = cross_entropy_soft_smoothed(&logits, &targets, smoothing).unwrap();
            assert_close("soft", &actual, &expected, 1e-12);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                // Half-precision logits give an f32 loss, and targets may have another type.
                let logits = logits.to_dtype(dtype).unwrap();
                let actual = cross_entropy_soft_smoothed(&logits, &targets, smoothing).unwrap();
                // Sums over tens of thousands of classes are of their size, and so is what rounding adds.
                let rows = tolerance(dtype) * classes.clamp(1, 200) as f64;
                assert_close("soft", &actual, &expected.to_dtype(DType::F32).unwrap(), rows);
            }
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for (rows, classes) in SHAPES {
        for smoothing in [0.0, 0.1] {
            // Sizes of a usual target: difference quotients of sums of thousands have no digits left.
            let targets = (targets(rows, classes) / classes as f64).unwrap();
            check_gradients("soft", &[values((rows, classes), 1)], |x| {
                cross_entropy_soft_smoothed(&x[0], &targets, smoothing)
            });
        }
    }
}

#[test]
fn gradients_are_those_of_the_composed_form() {
    let targets = targets(12, 31);
    for (dtype, tolerance) in
        [(DType::F64, 1e-13), (DType::F32, 2e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)]
    {
        let x = [values((12, 31), 1).to_dtype(dtype).unwrap()];
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let composed_targets = targets.to_dtype(wide).unwrap();
        for smoothing in [0.0, 0.2] {
            let f = |x: &[Tensor]| cross_entropy_soft_smoothed(&x[0], &targets, smoothing);
            compare_gradients("soft", &x, tolerance, f, |x| {
                composed::cross_entropy_soft(&x[0], &composed_targets, smoothing)
            });
        }
    }
}

#[test]
fn one_hot_targets_are_labels() {
    let labels = Tensor::new(&[3i64, 0, 4], &Device::Cpu).unwrap();
    let hot = one_hot(&labels, 5, DType::F64).unwrap();
    let x = [values((3, 5), 1)];
    for smoothing in [0.0, 0.3] {
        let f = |x: &[Tensor]| cross_entropy_soft_smoothed(&x[0], &hot, smoothing);
        compare_gradients("one-hot", &x, 1e-14, f, |x| cross_entropy_smoothed(&x[0], &labels, smoothing));
    }
}

#[test]
fn leading_dimensions_strides_and_scaled_loss() {
    let (logits, all) = (values((2, 3, 5), 1), targets(6, 5));
    let expected = cross_entropy_soft(&logits.reshape((6, 5)).unwrap(), &all).unwrap();
    let shaped = all.reshape((2, 3, 5)).unwrap();
    assert_close("leading dimensions", &cross_entropy_soft(&logits, &shaped).unwrap(), &expected, 0.0);
    let x = [values((5, 6), 1)];
    let (grad, double) = (
        gradients(&x, |x| cross_entropy_soft(&x[0].t()?, &all)),
        gradients(&x, |x| cross_entropy_soft(&x[0].t()?, &all)? * 2.0),
    );
    assert_close("scaled", &double[0], &(&grad[0] * 2.0).unwrap(), 1e-15);
}

#[test]
fn large_logits_do_not_overflow() {
    let logits = Tensor::new(&[[1e4f32, 0.0, -1e4]], &Device::Cpu).unwrap();
    let target = Tensor::new(&[[0.25f32, 0.75, 0.0]], &Device::Cpu).unwrap();
    assert_eq!(flat(&cross_entropy_soft(&logits, &target).unwrap()), [7500.0]);
    // A class that is masked out may have a logit of minus infinity if its target is 0.
    let masked = Tensor::new(&[[0f32, 0.0, f32::NEG_INFINITY]], &Device::Cpu).unwrap();
    for loss in [cross_entropy_soft, |x: &Tensor, t: &Tensor| composed::cross_entropy_soft(x, t, 0.0)] {
        assert_eq!(flat(&loss(&masked, &target).unwrap()), [f64::from(2f32.ln())]);
    }
    // 0.5 - 0.25, 0.5 - 0.75 and 0, times the weight that the loss has here.
    let grad = flat(&gradients(&[masked], |x| cross_entropy_soft(&x[0], &target))[0]);
    assert!(grad[0] != 0.0 && grad[1] == -grad[0] && grad[2] == 0.0, "{grad:?}");
}

#[test]
fn no_gradient_reaches_the_targets() {
    let (logits, target) =
        (Var::from_tensor(&values((2, 3), 1)).unwrap(), Var::from_tensor(&targets(2, 3)).unwrap());
    let grads = cross_entropy_soft(&logits, &target).unwrap().backward().unwrap();
    assert!(grads.get(&logits).is_some() && grads.get(&target).is_none());
}

#[test]
fn errors_say_what_is_wrong() {
    let (a, none) = (values((2, 3), 1), values((0, 3), 1));
    let integers = Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap();
    for (error, expected) in [
        (message(cross_entropy_soft(&a, &values((3, 2), 1))), "must have one shape; got [[2, 3], [3, 2]]"),
        (message(cross_entropy_soft(&none, &none)), "at least one row"),
        (message(cross_entropy_soft(&integers, &integers)), "got [U32, U32]"),
        (message(cross_entropy_soft(&a, &integers)), "got [F64, U32]"),
        (message(cross_entropy_soft_smoothed(&a, &a, -0.5)), "label smoothing is -0.5"),
    ] {
        assert!(error.contains("soft-target cross-entropy") && error.contains(expected), "{error}");
    }
}
