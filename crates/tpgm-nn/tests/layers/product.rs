use candle_core::{DType, Result, Tensor, Var};
use tpgm_nn::{composed, matmul, matmul_transposed};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, gradients, message, tolerance, values,
};

/// Leading dimensions with m, k and n: single products, several, and more than one task takes.
const SIZES: [(&[usize], [usize; 3]); 5] =
    [(&[], [2, 3, 4]), (&[1], [1, 1, 1]), (&[2, 3], [3, 5, 2]), (&[7], [70, 2, 90]), (&[9], [40, 5, 64])];

/// Factors, the second one as it is and transposed.
fn factors(leading: &[usize], [m, k, n]: [usize; 3]) -> [Tensor; 3] {
    let shape = |a, b| [leading, &[a, b]].concat();
    [values(shape(m, k), 1), values(shape(k, n), 2), values(shape(n, k), 3)]
}

fn plain(x: &[Tensor]) -> Result<Tensor> {
    matmul(&x[0], &x[1])
}

fn transposed(x: &[Tensor]) -> Result<Tensor> {
    matmul_transposed(&x[0], &x[1])
}

#[test]
fn gradients_are_difference_quotients() {
    for (leading, sizes) in SIZES {
        let [x, y, y_t] = factors(leading, sizes);
        check_gradients("matmul", &[x.clone(), y], plain);
        check_gradients("matmul transposed", &[x, y_t], transposed);
    }
    let [x, y, _] = factors(&[3], [4, 5, 6]);
    let strided = |x: &[Tensor]| matmul(&x[0].transpose(1, 2)?, &x[1].transpose(1, 2)?);
    check_gradients("strided", &[x.transpose(1, 2).unwrap(), y.transpose(1, 2).unwrap()], strided);
    check_gradients("parts", &[values((4, 3, 5), 1), values((4, 5, 2), 2)], |x| {
        matmul(&x[0].narrow(0, 1, 2)?, &x[1].narrow(0, 2, 2)?)
    });
}

#[test]
fn values_and_gradients_are_those_of_candle() {
    for dtype in DTYPES {
        for (leading, sizes) in SIZES {
            let [x, y, y_t] = factors(leading, sizes).map(|x| x.to_dtype(dtype).unwrap());
            // Sums of up to 90 products: candle rounds them as it likes.
            let epsilon = 10.0 * tolerance(dtype);
            for (pair, f, reference) in [
                ([x.clone(), y], plain as fn(&[Tensor]) -> _, composed::matmul as fn(&_, &_) -> _),
                ([x, y_t], transposed, composed::matmul_transposed),
            ] {
                let reference = |x: &[Tensor]| reference(&x[0], &x[1]);
                assert_close("value", &f(&pair).unwrap(), &reference(&pair).unwrap(), epsilon);
                compare_gradients("gradient", &pair, epsilon, f, reference);
            }
        }
    }
}

#[test]
fn only_what_is_in_the_graph_gets_a_gradient() {
    let [x, y, _] = factors(&[2], [3, 4, 5]);
    let var = Var::from_tensor(&x).unwrap();
    let grads = matmul(var.as_tensor(), &y).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&var).is_some() && grads.get(&y).is_none());
    let var = Var::from_tensor(&y).unwrap();
    let grads = matmul(&x, var.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&var).is_some() && grads.get(&x).is_none());
}

#[test]
fn no_elements() {
    for sizes in [[0usize, 3, 4], [2, 0, 4], [2, 3, 0]] {
        for leading in [&[][..], &[5], &[0]] {
            let [x, y, y_t] = factors(leading, sizes);
            assert_eq!(gradients(&[x.clone(), y.clone()], plain)[1].dims(), y.dims());
            assert_eq!(gradients(&[x.clone(), y_t], transposed)[0].dims(), x.dims());
        }
    }
    let empty_sum = matmul(&values((2, 0), 1), &values((0, 3), 2)).unwrap();
    assert_eq!(empty_sum.to_vec2::<f64>().unwrap(), vec![vec![0.0; 3]; 2]);
}

#[test]
fn errors_name_operation_and_shapes() {
    for (x, y) in [
        (vec![2, 3], vec![4, 5]),
        (vec![2, 3, 4], vec![3, 4, 5]),
        (vec![3], vec![3]),
        (vec![1, 2, 3], vec![3, 2]),
    ] {
        let text = message(matmul(&values(x.clone(), 1), &values(y.clone(), 2)));
        assert!(
            text.contains("matmul") && text.contains(&format!("{x:?}")) && text.contains(&format!("{y:?}")),
            "{text}"
        );
    }
    let text = message(matmul_transposed(&values((2, 3), 1), &values((3, 2), 2)));
    assert!(text.contains("matmul-transposed") && text.contains("[3, 2]"), "{text}");
    let text = message(matmul(&values((2, 3), 1), &values((3, 2), 2).to_dtype(DType::F32).unwrap()));
    assert!(text.contains("F32") && text.contains("F64"), "{text}");
}
