use candle_core::{D, DType, Device, Tensor};
use tpgm_nn::{composed, log_softmax_last_dim, masked_softmax, softmax_last_dim};

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

/// Scores of (batch, heads, queries, keys), a mask that broadcasts to them, and whether it is causal.
type Masked = ([usize; 4], Option<&'static [usize]>, bool);

const MASKED: [Masked; 7] = [
    ([2, 3, 4, 5], Some(&[2, 1, 1, 5]), false),
    ([2, 3, 4, 5], Some(&[4, 5]), true),
    ([2, 3, 5, 5], None, true),
    ([1, 2, 2, 300], Some(&[1, 2, 2, 300]), true),
    ([2, 1, 3, 4], Some(&[3, 1]), false),
    ([2, 2, 3, 1], Some(&[1]), false),
    ([40, 10, 7, 33], Some(&[40, 1, 7, 33]), true),
];

fn masked_args(shape: &[usize], mask: Option<&[usize]>, dtype: DType) -> (Tensor, Option<Tensor>) {
    let of = |shape: &[usize], seed| values(shape, seed).affine(2.0, 0.0).unwrap().to_dtype(dtype).unwrap();
    (of(shape, 1), mask.map(|mask| of(mask, 2)))
}

#[test]
fn masked_weights_and_their_gradients_are_those_of_composed_operations() {
    for ((shape, mask, causal), dtype) in
        MASKED.into_iter().flat_map(|case| DTYPES.map(|dtype| (case, dtype)))
    {
        let (x, mask) = masked_args(&shape, mask, dtype);
        let (y, composed) = (
            masked_softmax(&x, 0.3, mask.as_ref(), causal).unwrap(),
            composed::masked_softmax(&x, 0.3, mask.as_ref(), causal).unwrap(),
        );
        assert_close("masked softmax", &y, &composed, tolerance(dtype));
        let roundings = if dtype == DType::F64 { 1.0 } else { 4.0 };
        compare_gradients(
            "masked softmax",
            &[x],
            roundings * tolerance(dtype),
            |x| masked_softmax(&x[0], 0.3, mask.as_ref(), causal),
            |x| composed::masked_softmax(&x[0], 0.3, mask.as_ref(), causal),
        );
    }
}

#[test]
fn gradients_of_masked_weights_are_difference_quotients() {
    for (shape, mask, causal) in MASKED.into_iter().take(6) {
        let (x, mask) = masked_args(&shape, mask, DType::F64);
        check_gradients("masked softmax", std::slice::from_ref(&x), |x| {
            masked_softmax(&x[0], 0.7, mask.as_ref(), causal)
        });
        // A mask that is trained.
        let Some(mask) = mask else { continue };
        check_gradients("masked softmax", &[x, mask], |x| masked_softmax(&x[0], 0.7, Some(&x[1]), causal));
    }
    check_gradients("strided", &[values((2, 4, 3, 5), 1)], |x| {
        masked_softmax(&x[0].transpose(1, 2)?, 0.7, None, true)
    });
}

/// By hand: the weights of what is seen, and nothing else.
#[test]
fn what_a_mask_hides_has_no_weight() {
    let hidden = f32::NEG_INFINITY;
    let scores = Tensor::new(&[[[[0f32, 2.0, 9.0], [0.0, 7.0, 0.0]]]], &Device::Cpu).unwrap();
    let weights = |mask: Option<&Tensor>, causal| flat(&masked_softmax(&scores, 0.5, mask, causal).unwrap());
    let e = 1f64.exp();
    let [got, expected] = [weights(None, true), vec![1.0 / (1.0 + e), e / (1.0 + e), 0.0]];
    assert!(got[..3].iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-7), "{got:?}");
    assert!(got[3] > 0.0 && got[4] > 0.0 && got[5] > 0.0, "the last query sees all: {got:?}");
    let mask = Tensor::new(&[0.0, hidden, 0.0], &Device::Cpu).unwrap();
    assert_eq!(weights(Some(&mask), false)[3..], [0.5, 0.0, 0.5]);
    let nothing = Tensor::new(&[hidden; 3], &Device::Cpu).unwrap();
    assert!(weights(Some(&nothing), false).iter().all(|weight| weight.is_nan()));
    // With more queries than keys the first ones see nothing.
    let tall = scores.reshape((1, 1, 3, 2)).unwrap();
    let got = flat(&masked_softmax(&tall, 1.0, None, true).unwrap());
    assert!(got[..2].iter().all(|weight| weight.is_nan()) && got[2..4] == [1.0, 0.0], "{got:?}");
}

#[test]
fn no_scores_have_no_weights() {
    for shape in [[2, 3, 4, 0], [2, 3, 0, 5], [0, 3, 4, 5]] {
        let (scores, mask) = masked_args(&shape, Some(&[shape[0], 1, 1, shape[3]]), DType::F32);
        for causal in [false, true] {
            let y = masked_softmax(&scores, 0.5, mask.as_ref(), causal).unwrap();
            assert_eq!(y.dims(), shape);
            let grads = gradients(std::slice::from_ref(&scores), |x| {
                masked_softmax(&x[0], 0.5, mask.as_ref(), causal)
            });
            assert_eq!(grads[0].dims(), shape);
        }
    }
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let x = values((2, 3, 4, 5), 1);
    let refused = |x: &Tensor, scale, mask: Option<&Tensor>| message(masked_softmax(x, scale, mask, false));
    assert!(refused(&values((3, 4, 5), 1), 1.0, None).contains("(batch, heads, queries, keys)"));
    let text = refused(&x, 1.0, Some(&values((2, 1, 1, 4), 1)));
    assert!(text.contains("must broadcast") && text.contains("[2, 1, 1, 4]"), "{text}");
    assert!(refused(&x, f64::NAN, None).contains("the scale is NaN"));
    let mask = values((4, 5), 1).to_dtype(DType::F32).unwrap();
    assert!(refused(&x, 1.0, Some(&mask)).contains("F32"));
    assert_eq!(masked_softmax(&values((0, 3, 4, 5), 1), 1.0, None, true).unwrap().dims(), [0, 3, 4, 5]);
}
