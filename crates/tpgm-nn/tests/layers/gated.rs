use candle_core::{DType, Tensor};
use tpgm_nn::{composed, gated_silu, silu};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, message, tolerance, values,
};

/// Gate and factor, over several pieces of work.
fn operands(dtype: DType) -> [Tensor; 2] {
    [(1, 5.0), (2, 1.0)]
        .map(|(seed, scale)| values(40_001, seed).affine(scale, 0.0).unwrap().to_dtype(dtype).unwrap())
}

#[test]
fn values_and_gradients_are_those_of_composed_operations() {
    for dtype in DTYPES {
        let [gate, up] = operands(dtype);
        // Composed it is rounded twice.
        let tolerance = 2.0 * tolerance(dtype).max(5e-6);
        let y = gated_silu(&gate, &up).unwrap();
        assert_close("gated_silu", &y, &composed::gated_silu(&gate, &up).unwrap(), tolerance);
        let both = [gate, up];
        let fused = |x: &[Tensor]| gated_silu(&x[0], &x[1]);
        compare_gradients("gated_silu", &both, tolerance, fused, |x| composed::gated_silu(&x[0], &x[1]));
    }
}

#[test]
fn gradients_are_difference_quotients() {
    let both = [values((3, 7), 1).affine(3.0, 0.0).unwrap(), values((3, 7), 2)];
    check_gradients("gated_silu", &both, |x| gated_silu(&x[0], &x[1]));
    check_gradients("strided", &both, |x| gated_silu(&x[0].t()?, &x[1].t()?));
    let halves = [values((3, 8), 3)];
    check_gradients("halves", &halves, |x| gated_silu(&x[0].narrow(1, 0, 4)?, &x[0].narrow(1, 4, 4)?));
}

#[test]
fn in_f32_it_has_the_bits_of_its_parts() {
    let [gate, up] = operands(DType::F32);
    let parts = (silu(&gate).unwrap() * &up).unwrap();
    assert_eq!(flat(&gated_silu(&gate, &up).unwrap()), flat(&parts));
}

#[test]
fn operands_of_other_shapes_or_types_are_named() {
    let [gate, up] = operands(DType::F32);
    let text = message(gated_silu(&gate, &up.narrow(0, 0, 5).unwrap()));
    assert!(text.contains("gate and factor must have one shape; got [[40001], [5]]"), "{text}");
    let text = message(gated_silu(&gate, &up.to_dtype(DType::F16).unwrap()));
    assert!(text.contains("gated-silu") && text.contains("[F32, F16]"), "{text}");
}
