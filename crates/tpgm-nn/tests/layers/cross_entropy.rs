use candle_core::{DType, Device, Tensor};
use tpgm_nn::{composed, cross_entropy, cross_entropy_smoothed};

use crate::gradients::{
    assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

fn labels(rows: usize, classes: usize) -> Tensor {
    let data: Vec<u32> = (0..rows).map(|row| (row * 7 % classes) as u32).collect();
    Tensor::from_vec(data, rows, &Device::Cpu).unwrap()
}

/// The definition, term by term.
fn by_definition(logits: &[f64], classes: usize, labels: &[u32], smoothing: f64) -> f64 {
    let mut total = 0.0;
    for (row, &label) in logits.chunks(classes).zip(labels) {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        for (class, x) in row.iter().enumerate() {
            let on_label = if class == label as usize { 1.0 - smoothing } else { 0.0 };
            total -= (on_label + smoothing / classes as f64) * (x.exp() / sum).ln();
        }
    }
    total / labels.len() as f64
}

#[test]
fn value_is_the_definition() {
    for (rows, classes) in [(1, 1), (1, 5), (6, 3), (9, 130), (20_000, 2)] {
        for smoothing in [0.0, 0.1, 1.0] {
            let (logits, labels) = (values((rows, classes), 1), labels(rows, classes));
            let expected = by_definition(&flat(&logits), classes, &labels.to_vec1().unwrap(), smoothing);
            let expected = Tensor::new(expected, &Device::Cpu).unwrap();
            let actual = cross_entropy_smoothed(&logits, &labels, smoothing).unwrap();
            assert_close("cross-entropy", &actual, &expected, 1e-12);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                // Half-precision logits give an f32 loss.
                let actual =
                    cross_entropy_smoothed(&logits.to_dtype(dtype).unwrap(), &labels, smoothing).unwrap();
                assert_close(
                    "cross-entropy",
                    &actual,
                    &expected.to_dtype(DType::F32).unwrap(),
                    tolerance(dtype),
                );
            }
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for (rows, classes) in [(1, 1), (1, 5), (6, 3), (9, 130), (20_000, 2), (3, 33_000)] {
        for smoothing in [0.0, 0.1] {
            let labels = labels(rows, classes);
            check_gradients("cross-entropy", &[values((rows, classes), 1)], |x| {
                cross_entropy_smoothed(&x[0], &labels, smoothing)
            });
        }
    }
}

#[test]
fn gradients_are_those_of_candle() {
    let labels = labels(12, 31);
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-7)] {
        let x = [values((12, 31), 1).to_dtype(dtype).unwrap()];
        let f = |x: &[Tensor]| cross_entropy(&x[0], &labels);
        compare_gradients("cross-entropy", &x, tolerance, f, |x| {
            candle_nn::loss::cross_entropy(&x[0], &labels)
        });
        let f = |x: &[Tensor]| cross_entropy_smoothed(&x[0], &labels, 0.2);
        compare_gradients("smoothed", &x, tolerance, f, |x| composed::cross_entropy(&x[0], &labels, 0.2));
    }
    for dtype in [DType::F16, DType::BF16] {
        let x = [values((12, 31), 1).to_dtype(dtype).unwrap()];
        let f = |x: &[Tensor]| cross_entropy(&x[0], &labels);
        compare_gradients("half", &x, 1e-3, f, |x| composed::cross_entropy(&x[0], &labels, 0.0));
    }
}

#[test]
fn leading_dimensions_label_types_and_scaled_loss() {
    let logits = values((2, 3, 5), 1);
    let flat_labels = labels(6, 5);
    let expected = cross_entropy(&logits.reshape((6, 5)).unwrap(), &flat_labels).unwrap();
    for dtype in [DType::U8, DType::U32, DType::I64] {
        let labels = flat_labels.reshape((2, 3)).unwrap().to_dtype(dtype).unwrap();
        assert_close("leading dimensions", &cross_entropy(&logits, &labels).unwrap(), &expected, 0.0);
    }
    let x = [values((5, 6), 1)];
    let (grad, double) = (
        gradients(&x, |x| cross_entropy(&x[0].t()?, &flat_labels)),
        gradients(&x, |x| cross_entropy(&x[0].t()?, &flat_labels)? * 2.0),
    );
    assert_close("scaled", &double[0], &(&grad[0] * 2.0).unwrap(), 1e-15);
}

#[test]
fn large_logits_do_not_overflow() {
    let logits = Tensor::new(&[[1e4f32, 0.0, -1e4]], &Device::Cpu).unwrap();
    let label = Tensor::new(&[1u32], &Device::Cpu).unwrap();
    assert_eq!(flat(&cross_entropy(&logits, &label).unwrap()), [1e4]);
    // A class that is masked out may have a logit of minus infinity.
    let masked = Tensor::new(&[[0f32, 0.0, f32::NEG_INFINITY]], &Device::Cpu).unwrap();
    assert_eq!(flat(&cross_entropy(&masked, &label).unwrap()), [f64::from(2f32.ln())]);
    assert!(flat(&gradients(&[masked], |x| cross_entropy(&x[0], &label))[0]).iter().all(|x| x.is_finite()));
}

#[test]
fn errors_say_what_is_wrong() {
    let logits = values((2, 3), 1);
    let labels = |data: &[i64]| Tensor::new(data, &Device::Cpu).unwrap();
    let text = message(cross_entropy(&logits, &labels(&[0, 3])));
    assert!(text.contains("row 1") && text.contains('3'), "{text}");
    let text = message(cross_entropy(&logits, &labels(&[-100, 0])));
    assert!(text.contains("row 0") && text.contains("-100"), "{text}");
    let text = message(cross_entropy(&logits, &labels(&[0, 1, 2])));
    assert!(text.contains("[2, 3]") && text.contains("[3]"), "{text}");
    let text = message(cross_entropy(&logits, &logits));
    assert!(text.contains("labels"), "{text}");
    let text = message(cross_entropy(&logits, &values(2, 1)));
    assert!(text.contains("F64"), "{text}");
    let text = message(cross_entropy(&values((0, 3), 1), &labels(&[])));
    assert!(text.contains("at least one row"), "{text}");
    let text = message(cross_entropy_smoothed(&logits, &labels(&[0, 1]), 1.5));
    assert!(text.contains("smoothing") && text.contains("1.5"), "{text}");
}
