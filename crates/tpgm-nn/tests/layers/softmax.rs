use candle_core::{D, DType, Device, Tensor};
use tpgm_nn::{composed, log_softmax_last_dim, softmax_last_dim};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

const SHAPES: [&[usize]; 6] = [&[1, 1], &[3, 1], &[17], &[2, 3, 5], &[9_000, 4], &[2, 33_000]];

#[test]
fn gradients_are_difference_quotients() {
    for shape in SHAPES {
        let x = [values(shape, 1).affine(3.0, 0.0).unwrap()];
        check_gradients("softmax", &x, |x| softmax_last_dim(&x[0]));
        check_gradients("log softmax", &x, |x| log_softmax_last_dim(&x[0]));
    }
    check_gradients("strided", &[values((6, 5), 1)], |x| softmax_last_dim(&x[0].t()?));
}

#[test]
fn values_are_those_of_candle() {
    for shape in [&[2usize, 3, 5][..], &[4, 700], &[3, 1]] {
        for dtype in DTYPES {
            let x = values(shape, 1).affine(5.0, 0.0).unwrap().to_dtype(dtype).unwrap();
            let wide = if dtype == DType::F64 { x.clone() } else { x.to_dtype(DType::F32).unwrap() };
            let expected = candle_nn::ops::softmax(&wide, D::Minus1).unwrap().to_dtype(dtype).unwrap();
            assert_close("softmax", &softmax_last_dim(&x).unwrap(), &expected, tolerance(dtype));
            if dtype == DType::F32 {
                let expected = candle_nn::ops::softmax_last_dim(&x).unwrap();
                assert_close("softmax", &softmax_last_dim(&x).unwrap(), &expected, tolerance(dtype));
            }
            let expected = candle_nn::ops::log_softmax(&wide, D::Minus1).unwrap().to_dtype(dtype).unwrap();
            assert_close("log softmax", &log_softmax_last_dim(&x).unwrap(), &expected, tolerance(dtype));
        }
    }
}

#[test]
fn gradients_are_those_of_composed_operations() {
    for (dtype, tolerance) in
        [(DType::F64, 1e-13), (DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)]
    {
        let x = [values((2, 3, 41), 1).affine(2.0, 0.0).unwrap().to_dtype(dtype).unwrap()];
        let f = |x: &[Tensor]| softmax_last_dim(&x[0]);
        compare_gradients("softmax", &x, tolerance, f, |x| composed::softmax_last_dim(&x[0]));
        compare_gradients("softmax", &x, tolerance, f, |x| candle_nn::ops::softmax(&x[0], D::Minus1));
        let f = |x: &[Tensor]| log_softmax_last_dim(&x[0]);
        compare_gradients("log softmax", &x, tolerance, f, |x| composed::log_softmax_last_dim(&x[0]));
    }
}

#[test]
fn extreme_inputs() {
    let masked = Tensor::new(&[[1f32, f32::NEG_INFINITY, 1.0], [1e30, 0.0, -1e30]], &Device::Cpu).unwrap();
    assert_eq!(flat(&softmax_last_dim(&masked).unwrap()), [0.5, 0.0, 0.5, 1.0, 0.0, 0.0]);
    let grad = &gradients(&[masked], |x| softmax_last_dim(&x[0]))[0];
    assert!(flat(grad).iter().all(|x| x.is_finite()));
    let nan = Tensor::new(&[f32::NAN, 1.0], &Device::Cpu).unwrap();
    assert!(flat(&softmax_last_dim(&nan).unwrap()).iter().all(|x| x.is_nan()));
    let nothing_allowed = Tensor::full(f32::NEG_INFINITY, 3, &Device::Cpu).unwrap();
    assert!(flat(&softmax_last_dim(&nothing_allowed).unwrap()).iter().all(|x| x.is_nan()));
}

#[test]
fn no_elements() {
    for shape in [&[0usize, 4][..], &[2, 0]] {
        let x = [values(shape, 1)];
        assert_eq!(gradients(&x, |x| softmax_last_dim(&x[0]))[0].dims(), shape);
        assert_eq!(gradients(&x, |x| log_softmax_last_dim(&x[0]))[0].dims(), shape);
    }
}

#[test]
fn errors_name_the_operation() {
    let text = message(softmax_last_dim(&values((), 1)));
    assert!(text.contains("softmax-last-dim"), "{text}");
    let text = message(log_softmax_last_dim(&Tensor::new(&[1u32], &Device::Cpu).unwrap()));
    assert!(text.contains("log-softmax-last-dim") && text.contains("U32"), "{text}");
}
