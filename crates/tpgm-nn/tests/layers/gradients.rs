//! Finite differences, and what the other tests share.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};

/// Reproducible values, spread over -1.5..1.5, of f64.
pub(crate) fn values(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 3.0 - 1.5
    };
    let data: Vec<f64> = (0..shape.elem_count() + 8).map(|_| next()).skip(8).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// The sum of all elements, each with its own weight, so that every element of a gradient is different.
pub(crate) fn weighted_sum(y: &Tensor) -> Result<Tensor> {
    (y * values(y.shape(), 99).to_dtype(y.dtype())?)?.sum_all()
}

/// Gradients of `weighted_sum(f(inputs))`, by backward.
pub(crate) fn gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let grads = weighted_sum(&f(&tensors).unwrap()).unwrap().backward().unwrap();
    vars.iter()
        .enumerate()
        .map(|(i, var)| {
            let grad = grads.get(var).unwrap_or_else(|| panic!("input {i} gets no gradient")).clone();
            assert_eq!((grad.dims(), grad.dtype()), (var.dims(), var.dtype()));
            grad
        })
        .collect()
}

/// Compares backward with central differences in f64, at some 60 elements of each input, 16 of a large one.
pub(crate) fn check_gradients(what: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let value = |inputs: &[Tensor]| f(inputs).unwrap();
    let weights = flat(&values(value(inputs).shape(), 99));
    for (i, grad) in gradients(inputs, &f).iter().enumerate() {
        let grad = flat(grad);
        let base = flat(&inputs[i]);
        let stride = if base.len() < 1000 { (base.len() / 60).max(1) } else { base.len() / 16 };
        for at in (0..base.len()).step_by(stride) {
            let moved = |by: f64| {
                let mut data = base.clone();
                data[at] += by;
                let mut inputs = inputs.to_vec();
                inputs[i] = Tensor::from_vec(data, inputs[i].shape(), &Device::Cpu).unwrap();
                flat(&value(&inputs))
            };
            // Differences first: the sum of tens of thousands of values has too few digits left for its own difference.
            let (above, below) = (moved(STEP), moved(-STEP));
            let difference: f64 = weights
                .iter()
                .zip(above.iter().zip(&below))
                .map(|(w, (above, below))| w * (above - below))
                .sum();
            let expected = difference / (2.0 * STEP);
            let error = (grad[at] - expected).abs();
            assert!(
                error <= 1e-7 * (1.0 + expected.abs()),
                "{what}: input {i} of shape {:?}, element {at}: gradient {}, difference quotient {expected}",
                inputs[i].shape(),
                grad[at]
            );
        }
    }
}

/// All elements as f64.
pub(crate) fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Shapes and types must be the same, and every difference at most `tolerance * (1 + |expected|)`.
pub(crate) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((actual.dims(), actual.dtype()), (expected.dims(), expected.dtype()), "{what}");
    for (i, (a, e)) in flat(actual).into_iter().zip(flat(expected)).enumerate() {
        assert!((a - e).abs() <= tolerance * (1.0 + e.abs()), "{what}: element {i} is {a}, not {e}");
    }
}

/// What rounding to an element type may add, relatively, to a few operations in f32.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-13,
        DType::F32 => 2e-6,
        DType::F16 => 1e-3,
        _ => 8e-3,
    }
}

/// The element types that layers compute with.
pub(crate) const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

/// The text of an error.
pub(crate) fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    }
}

/// Compares gradients of a function with those of another one of the same value.
pub(crate) fn compare_gradients(
    what: &str,
    inputs: &[Tensor],
    tolerance: f64,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let (actual, expected) = (gradients(inputs, f), gradients(inputs, reference));
    for (i, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        assert_close(&format!("{what}: gradient of input {i}"), actual, expected, tolerance);
    }
}
