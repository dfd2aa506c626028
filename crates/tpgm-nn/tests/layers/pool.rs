use candle_core::{DType, Device, Module, Tensor};
use tpgm_nn::{MaxPool2d, composed, max_pool2d};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, values, weighted_sum,
};

/// (height, width), kernel, stride, padding.
type Case = ([usize; 2], (usize, usize), (usize, usize), (usize, usize));

/// Windows side by side, overlapping, with gaps, of one element, of the whole image; sizes that do not divide.
const CASES: [Case; 9] = [
    ([1, 1], (1, 1), (1, 1), (0, 0)),
    ([4, 6], (2, 2), (2, 2), (0, 0)),
    ([5, 7], (2, 2), (2, 2), (0, 0)),
    ([7, 6], (3, 3), (2, 2), (0, 0)),
    ([7, 6], (3, 3), (2, 2), (1, 1)),
    ([5, 9], (2, 3), (3, 1), (1, 0)),
    ([9, 4], (1, 2), (3, 3), (0, 1)),
    ([4, 4], (4, 4), (1, 1), (0, 0)),
    ([180, 190], (3, 3), (2, 2), (1, 1)),
];

/// Output and gradient by walking over all windows.
fn by_hand(x: &[f64], planes: usize, case: &Case, grad: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
    let &([height, width], kernel, stride, padding) = case;
    let (mut out, mut dx) = (Vec::new(), vec![0.0; x.len()]);
    for plane in 0..planes {
        let mut top = -(padding.0 as i64);
        while top + kernel.0 as i64 <= (height + padding.0) as i64 {
            let mut left = -(padding.1 as i64);
            while left + kernel.1 as i64 <= (width + padding.1) as i64 {
                let (mut max, mut at) = (f64::NEG_INFINITY, None);
                for y in top..top + kernel.0 as i64 {
                    for x_at in left..left + kernel.1 as i64 {
                        if y < 0 || x_at < 0 || y >= height as i64 || x_at >= width as i64 {
                            continue;
                        }
                        let i = (plane * height + y as usize) * width + x_at as usize;
                        if at.is_none() || x[i] > max {
                            (max, at) = (x[i], Some(i));
                        }
                    }
                }
                if let Some(grad) = grad {
                    dx[at.unwrap()] += grad[out.len()];
                }
                out.push(max);
                left += stride.1 as i64;
            }
            top += stride.0 as i64;
        }
    }
    (out, dx)
}

#[test]
fn values_and_gradients_by_hand() {
    for case in &CASES {
        let ([height, width], kernel, stride, padding) = *case;
        let pool = MaxPool2d::new(kernel, stride).padding(padding);
        // Rounded to quarters, so that many windows have several largest elements.
        let x = values((2, 3, height, width), 1).affine(4.0, 0.0).unwrap().round().unwrap();
        let y = pool.forward(&x).unwrap();
        let (expected, _) = by_hand(&flat(&x), 6, case, None);
        assert_eq!(flat(&y), expected, "{case:?}");
        let cotangent = flat(&weights_of(&y));
        let (_, expected) = by_hand(&flat(&x), 6, case, Some(&cotangent));
        let grad = &gradients(std::slice::from_ref(&x), |x| pool.forward(&x[0]))[0];
        let expected = Tensor::from_vec(expected, x.shape(), &Device::Cpu).unwrap();
        assert_close(&format!("{case:?}"), grad, &expected, 1e-14);
        let own = |x: &[Tensor]| composed::max_pool2d(&x[0], kernel, stride, padding);
        assert_eq!(flat(&own(std::slice::from_ref(&x)).unwrap()), flat(&y), "{case:?}");
        compare_gradients(&format!("{case:?}"), &[x], 1e-14, |x| pool.forward(&x[0]), own);
    }
}

/// The gradient that `weighted_sum` sends to `y`.
fn weights_of(y: &Tensor) -> Tensor {
    let var = candle_core::Var::from_tensor(y).unwrap();
    weighted_sum(var.as_tensor()).unwrap().backward().unwrap().get(&var).unwrap().clone()
}

#[test]
fn gradients_are_difference_quotients() {
    for ([height, width], kernel, stride, padding) in CASES {
        let pool = MaxPool2d::new(kernel, stride).padding(padding);
        check_gradients("max pool", &[values((2, 2, height, width), 1)], |x| pool.forward(&x[0]));
    }
    check_gradients("strided", &[values((2, 6, 5, 2), 1)], |x| {
        max_pool2d(&x[0].permute((0, 3, 2, 1))?, (2, 2), (2, 1))
    });
}

#[test]
fn values_are_those_of_candle() {
    for dtype in DTYPES {
        let x = values((2, 3, 7, 9), 1).to_dtype(dtype).unwrap();
        let expected = x.max_pool2d_with_stride((3, 2), (2, 3)).unwrap();
        assert_close("max pool", &max_pool2d(&x, (3, 2), (2, 3)).unwrap(), &expected, 0.0);
        let grad = gradients(std::slice::from_ref(&x), |x| max_pool2d(&x[0], (3, 2), (2, 3)));
        let own = gradients(&[x], |x| composed::max_pool2d(&x[0], (3, 2), (2, 3), (0, 0)));
        assert_close("max pool", &grad[0], &own[0], 1e-2);
    }
}

#[test]
fn the_first_of_equal_elements_takes_the_gradient() {
    let x = Tensor::ones((1, 1, 2, 4), DType::F32, &Device::Cpu).unwrap();
    let var = candle_core::Var::from_tensor(&x).unwrap();
    let y = max_pool2d(var.as_tensor(), (2, 2), (2, 2)).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(flat(grads.get(&var).unwrap()), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn infinities_and_nan() {
    let low = Tensor::full(f64::NEG_INFINITY, (1, 1, 2, 2), &Device::Cpu).unwrap();
    assert_eq!(flat(&max_pool2d(&low, (2, 2), (1, 1)).unwrap()), [f64::NEG_INFINITY]);
    for at in 0..4 {
        let mut data = [1.0f64, 2.0, 3.0, 4.0];
        data[at] = f64::NAN;
        let x = Tensor::new(&data, &Device::Cpu).unwrap().reshape((1, 1, 2, 2)).unwrap();
        assert!(flat(&max_pool2d(&x, (2, 2), (1, 1)).unwrap())[0].is_nan());
    }
}

#[test]
fn no_elements() {
    for shape in [[0, 3, 4, 4], [2, 0, 4, 4]] {
        let x = [values(&shape[..], 1)];
        assert_eq!(gradients(&x, |x| max_pool2d(&x[0], (2, 2), (2, 2)))[0].dims(), shape);
    }
}

#[test]
fn errors_name_what_is_wrong() {
    let x = values((1, 1, 4, 4), 1);
    assert!(message(max_pool2d(&x, (0, 2), (1, 1))).contains("window is 0"));
    assert!(message(max_pool2d(&x, (2, 2), (1, 0))).contains("stride is 0"));
    let text = message(max_pool2d(&x, (5, 2), (1, 1)));
    assert!(text.contains("max-pool2d") && text.contains("[1, 1, 4, 4]"), "{text}");
    assert!(message(MaxPool2d::new((3, 3), (1, 1)).padding((2, 0)).forward(&x)).contains("padding is 2"));
    assert!(message(max_pool2d(&values((4, 4), 1), (2, 2), (2, 2))).contains("[4, 4]"));
}
