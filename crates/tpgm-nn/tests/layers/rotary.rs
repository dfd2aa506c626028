use candle_core::{D, DType, Device, Result, Tensor};
use tpgm_nn::{composed, rope, rope_i};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

type Rope = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

/// Angles of `positions` steps for `pairs` pairs.
fn tables(shape: &[usize]) -> (Tensor, Tensor) {
    let angles = values(shape, 5).affine(2.0, 0.0).unwrap();
    (angles.cos().unwrap(), angles.sin().unwrap())
}

/// (batch, heads, steps, d) with tables of (positions, d/2).
const SHAPES: [([usize; 4], usize); 5] =
    [([1, 1, 1, 2], 1), ([2, 3, 4, 6], 4), ([2, 1, 3, 10], 7), ([1, 2, 1, 66], 3), ([2, 70, 40, 6], 40)];

#[test]
fn values_are_those_of_candle() {
    for (shape, positions) in SHAPES {
        for dtype in DTYPES {
            let (cos, sin) = tables(&[positions, shape[3] / 2]);
            let [x, cos, sin] = [values(&shape[..], 1), cos, sin].map(|x| x.to_dtype(dtype).unwrap());
            let epsilon = 2.0 * tolerance(dtype);
            let expected = candle_nn::rotary_emb::rope(&x, &cos, &sin).unwrap();
            assert_close("rope", &rope(&x, &cos, &sin).unwrap(), &expected, epsilon);
            let expected = candle_nn::rotary_emb::rope_i(&x, &cos, &sin).unwrap();
            assert_close("rope_i", &rope_i(&x, &cos, &sin).unwrap(), &expected, epsilon);
        }
    }
}

#[test]
fn a_table_per_sequence() {
    let (cos, sin) = tables(&[2, 5, 3]);
    let x = values((2, 3, 4, 6), 1);
    for f in [rope as Rope, rope_i as Rope, composed::rope as Rope, composed::rope_i as Rope] {
        let both = f(&x, &cos, &sin).unwrap();
        for i in 0..2 {
            let alone = f(&x.narrow(0, i, 1).unwrap(), &cos.get(i).unwrap(), &sin.get(i).unwrap()).unwrap();
            assert_close("one sequence", &both.narrow(0, i, 1).unwrap(), &alone, 0.0);
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for (shape, positions) in SHAPES {
        let (cos, sin) = tables(&[positions, shape[3] / 2]);
        for (what, f) in [("rope", rope as Rope), ("rope_i", rope_i as Rope)] {
            check_gradients(what, &[values(&shape[..], 1)], |x| f(&x[0], &cos, &sin));
        }
    }
    let (cos, sin) = tables(&[2, 5, 3]);
    for (what, f) in [("rope", rope as Rope), ("rope_i", rope_i as Rope)] {
        check_gradients(what, &[values((2, 3, 4, 6), 1)], |x| f(&x[0], &cos, &sin));
        // As attention makes its inputs: (batch, steps, heads, d), transposed.
        check_gradients(what, &[values((2, 4, 3, 6), 1)], |x| f(&x[0].transpose(1, 2)?, &cos, &sin));
        // Angles that are trained.
        check_gradients(what, &[values((2, 3, 4, 6), 1), cos.clone(), sin.clone()], |x| {
            f(&x[0], &x[1], &x[2])
        });
    }
}

#[test]
fn gradients_are_those_of_composed_operations() {
    let (cos, sin) = tables(&[4, 3]);
    for dtype in DTYPES {
        let [x, cos, sin] =
            [values((2, 3, 4, 6), 1), cos.clone(), sin.clone()].map(|x| x.to_dtype(dtype).unwrap());
        let x = [x];
        let epsilon = 2.0 * tolerance(dtype);
        compare_gradients(
            "rope",
            &x,
            epsilon,
            |x| rope(&x[0], &cos, &sin),
            |x| candle_nn::rotary_emb::rope_slow(&x[0], &cos, &sin),
        );
        compare_gradients(
            "rope_i",
            &x,
            epsilon,
            |x| rope_i(&x[0], &cos, &sin),
            |x| candle_nn::rotary_emb::rope_i_slow(&x[0], &cos, &sin),
        );
        compare_gradients(
            "rope",
            &x,
            epsilon,
            |x| rope(&x[0], &cos, &sin),
            |x| composed::rope(&x[0], &cos, &sin),
        );
        compare_gradients(
            "rope_i",
            &x,
            epsilon,
            |x| rope_i(&x[0], &cos, &sin),
            |x| composed::rope_i(&x[0], &cos, &sin),
        );
    }
}

#[test]
fn rotation_keeps_lengths() {
    let (cos, sin) = tables(&[4, 3]);
    let x = values((2, 3, 4, 6), 1);
    for f in [rope as Rope, rope_i as Rope] {
        let length = |x: &Tensor| x.sqr().unwrap().sum(D::Minus1).unwrap();
        assert_close("length", &length(&f(&x, &cos, &sin).unwrap()), &length(&x), 1e-14);
    }
}

#[test]
fn no_elements() {
    let (cos, sin) = tables(&[4, 3]);
    for shape in [[0, 3, 4, 6], [2, 3, 0, 6]] {
        let x = [values(&shape[..], 1)];
        assert_eq!(gradients(&x, |x| rope(&x[0], &cos, &sin))[0].dims(), shape);
    }
    let empty = Tensor::zeros((4, 0), DType::F64, &Device::Cpu).unwrap();
    assert!(flat(&rope_i(&values((2, 3, 4, 0), 1), &empty, &empty).unwrap()).is_empty());
}

#[test]
fn errors_name_operation_and_shapes() {
    let (cos, sin) = tables(&[4, 3]);
    for shape in [&[1, 1, 5, 6][..], &[1, 1, 4, 7], &[1, 1, 4, 8], &[4, 6]] {
        let text = message(rope(&values(shape, 1), &cos, &sin));
        assert!(
            text.contains("rope") && text.contains("[4, 3]") && text.contains(&format!("{shape:?}")),
            "{text}"
        );
    }
    let x = values((1, 1, 4, 6), 1);
    assert!(message(rope_i(&x, &cos, &sin.narrow(0, 0, 3).unwrap())).contains("rope_i"));
    assert!(message(rope_i(&x, &cos.to_dtype(DType::F32).unwrap(), &sin)).contains("F32"));
}
