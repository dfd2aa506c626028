use candle_core::{DType, Device, Result, Tensor};
use tpgm_nn::{composed, gelu, gelu_tanh, quick_gelu, relu, silu};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

type Function = fn(&Tensor) -> Result<Tensor>;

/// Name, function, the same composed.
const FUNCTIONS: [(&str, Function, Function); 5] = [
    ("gelu", gelu, composed::gelu),
    ("gelu-tanh", gelu_tanh, composed::gelu_tanh),
    ("quick-gelu", quick_gelu, composed::quick_gelu),
    ("silu", silu, composed::silu),
    ("relu", relu, composed::relu),
];

#[test]
fn values_are_those_of_candle() {
    for dtype in DTYPES {
        // Odd length, over several pieces of work.
        let x = values(70_001, 1).affine(5.0, 0.0).unwrap().to_dtype(dtype).unwrap();
        for (name, f, candle) in FUNCTIONS {
            // candle's constants of the tanh form and its f32 tanh are less exact than this one's.
            let epsilon = if name == "gelu-tanh" { tolerance(dtype).max(1e-9) } else { tolerance(dtype) };
            assert_close(name, &f(&x).unwrap(), &candle(&x).unwrap(), epsilon);
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for shape in [&[1usize][..], &[3, 7], &[70_001]] {
        for (name, f, _) in FUNCTIONS {
            check_gradients(name, &[values(shape, 1).affine(3.0, 0.0).unwrap()], |x| f(&x[0]));
        }
    }
    check_gradients("strided", &[values((3, 5), 1)], |x| gelu(&x[0].t()?));
}

#[test]
fn gradients_are_those_of_composed_operations() {
    for dtype in DTYPES {
        let x = [values(1001, 1).affine(3.0, 0.0).unwrap().to_dtype(dtype).unwrap()];
        for (name, f, candle) in FUNCTIONS {
            // candle's backward has six digits of its constants.
            compare_gradients(name, &x, tolerance(dtype).max(5e-6), |x| f(&x[0]), |x| candle(&x[0]));
        }
    }
}

#[test]
fn special_values() {
    let x = [Tensor::new(&[f32::INFINITY, -100.0, -0.0, 0.0, f32::NAN], &Device::Cpu).unwrap()];
    for (name, f, _) in FUNCTIONS {
        let y = flat(&f(&x[0]).unwrap());
        assert_eq!(y[0], f64::INFINITY, "{name}");
        assert!(y[1].abs() < 1e-30 && y[2] == 0.0 && y[3] == 0.0, "{name}: {y:?}");
        assert!(y[4].is_nan(), "{name}: {y:?}");
    }
    assert_eq!(
        flat(&gradients(&[Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap()], |x| relu(&x[0]))[0]),
        [0.0]
    );
    for (name, f, _) in FUNCTIONS {
        let far = [Tensor::new(&[1e4f32, -1e4], &Device::Cpu).unwrap()];
        let (grad, unit) = (gradients(&far, |x| f(&x[0])), gradients(&far, |x| Ok(x[0].clone())));
        assert_eq!(flat(&grad[0])[0], flat(&unit[0])[0], "{name}");
        assert_eq!(flat(&grad[0])[1], 0.0, "{name}");
    }
}

#[test]
fn no_elements_and_wrong_types() {
    for (name, f, _) in FUNCTIONS {
        assert_eq!(gradients(&[values((0, 3), 1)], |x| f(&x[0]))[0].dims(), [0, 3]);
        let text = message(f(&Tensor::new(&[1u32], &Device::Cpu).unwrap()));
        assert!(text.contains(name) && text.contains("U32"), "{text}");
    }
}
