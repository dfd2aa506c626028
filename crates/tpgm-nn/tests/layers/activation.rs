use candle_core::{DType, Device, Result, Tensor};
use tpgm_nn::{composed, gelu, gelu_tanh, hard_sigmoid, hard_swish, quick_gelu, relu, relu6, sigmoid, silu};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

type Function = fn(&Tensor) -> Result<Tensor>;

/// Name, function, the same composed.
const FUNCTIONS: [(&str, Function, Function); 9] = [
    ("gelu", gelu, composed::gelu),
    ("gelu-tanh", gelu_tanh, composed::gelu_tanh),
    ("quick-gelu", quick_gelu, composed::quick_gelu),
    ("silu", silu, composed::silu),
    ("relu", relu, composed::relu),
    ("hard-swish", hard_swish, composed::hard_swish),
    ("relu6", relu6, composed::relu6),
    ("sigmoid", sigmoid, composed::sigmoid),
    ("hard-sigmoid", hard_sigmoid, composed::hard_sigmoid),
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
        // On a bound of the hard functions candle gives half of the gradient.
        let x = flat(&values(1001, 1).affine(3.0, 0.0).unwrap().to_dtype(dtype).unwrap());
        let x = x.into_iter().filter(|x| ![0.0, 3.0].contains(&x.abs())).collect::<Vec<_>>();
        let x = [Tensor::new(x, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()];
        for (name, f, candle) in FUNCTIONS {
            // candle's backward has six digits of its constants.
            compare_gradients(name, &x, tolerance(dtype).max(5e-6), |x| f(&x[0]), |x| candle(&x[0]));
        }
    }
}

#[test]
fn special_values() {
    let x = [Tensor::new(&[f32::INFINITY, -100.0, -0.0, 0.0, f32::NAN], &Device::Cpu).unwrap()];
    // The last three end at a finite value.
    for (name, f, _) in FUNCTIONS {
        let y = flat(&f(&x[0]).unwrap());
        let (infinity, zero) = match name {
            "relu6" => (6.0, 0.0),
            "sigmoid" | "hard-sigmoid" => (1.0, 0.5),
            _ => (f64::INFINITY, 0.0),
        };
        assert_eq!(y[0], infinity, "{name}");
        assert!(y[1].abs() < 1e-30 && y[2] == zero && y[3] == zero, "{name}: {y:?}");
        assert!(y[4].is_nan(), "{name}: {y:?}");
    }
    assert_eq!(
        flat(&gradients(&[Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap()], |x| relu(&x[0]))[0]),
        [0.0]
    );
    for (name, f, _) in FUNCTIONS {
        let far = [Tensor::new(&[1e4f32, -1e4], &Device::Cpu).unwrap()];
        let (grad, unit) = (gradients(&far, |x| f(&x[0])), gradients(&far, |x| Ok(x[0].clone())));
        let slope =
            if matches!(name, "relu6" | "sigmoid" | "hard-sigmoid") { 0.0 } else { flat(&unit[0])[0] };
        assert_eq!(flat(&grad[0])[0], slope, "{name}");
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

#[test]
fn hard_functions_by_hand() {
    let x = [Tensor::new(&[-4.0f64, -3.0, -1.5, 0.0, 1.5, 3.0, 4.0, 6.0, 7.0], &Device::Cpu).unwrap()];
    let unit = flat(&gradients(&x, |x| Ok(x[0].clone()))[0]);
    let slopes = |f: Function| -> Vec<f64> {
        let grad = flat(&gradients(&x, |x| f(&x[0]))[0]);
        grad.iter().zip(&unit).map(|(grad, unit)| (grad / unit * 1e9).round() / 1e9).collect()
    };
    let rounded = |f: Function| -> Vec<f64> {
        flat(&f(&x[0]).unwrap()).iter().map(|y| (y * 1e9).round() / 1e9).collect()
    };
    assert_eq!(rounded(relu6), [0.0, 0.0, 0.0, 0.0, 1.5, 3.0, 4.0, 6.0, 6.0]);
    assert_eq!(slopes(relu6), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(rounded(hard_sigmoid), [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]);
    let sixth = 0.166_666_667;
    assert_eq!(slopes(hard_sigmoid), [0.0, 0.0, sixth, sixth, sixth, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(rounded(hard_swish), [0.0, 0.0, -0.375, 0.0, 1.125, 3.0, 4.0, 6.0, 7.0]);
    assert_eq!(slopes(hard_swish), [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
}
