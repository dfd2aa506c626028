use tpgm_cuda::layers::{Activation, ActivationGradients, ActivationOperands, GatedGradients, GatedOperands};

use super::{
    Backend, DType, Device, Gpu, HostBuffer, LAYOUTS, Layers, Matrix, TYPES, assert_near, numbers, slopes,
};

const KINDS: [Activation; 6] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Silu,
];

/// The normal distribution function: by its series near 0 and by its continued fraction in the tails.
fn normal(x: f64) -> f64 {
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if x.abs() < 5.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let fraction = (1..60).rev().fold(x.abs(), |below, n| x.abs() + f64::from(n) / below);
    if x < 0.0 { density / fraction } else { 1.0 - density / fraction }
}

fn value(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Gelu => x * normal(x),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// The slope at x, by a fourth-order difference.
fn slope(activation: Activation, x: f64) -> f64 {
    if activation == Activation::Relu {
        return f64::from(u8::from(x > 0.0));
    }
    let (f, h) = (|x| value(activation, x), 1e-3);
    (8.0 * (f(x + h) - f(x - h)) - (f(x + 2.0 * h) - f(x - 2.0 * h))) / (12.0 * h)
}

/// Shapes: short rows, one that is cut into tiles, and more groups of rows than one.
const SHAPES: [(usize, usize); 5] = [(5, 3), (9, 64), (11, 260), (3, 1030), (300, 5)];

pub(crate) fn activations_match_the_formula<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let cases = SHAPES.iter().flat_map(|&shape| TYPES.map(|dtype| (shape, dtype)));
    for (i, (((rows, width), dtype), activation)) in
        cases.flat_map(|case| KINDS.map(|kind| (case, kind))).enumerate()
    {
        let layout = LAYOUTS[i % 3];
        let (x, grad) = (numbers(1, rows * width, 6.0, dtype), numbers(2, rows * width, 1.0, dtype));
        let bias = numbers(3, width, 1.0, dtype);
        let biased = i / 6 % 4 != 3;
        let added = |i: usize| x[i] + if biased { bias[i % width] } else { 0.0 };
        let input = |values: &[f64]| Matrix::input(gpu, dtype, values, width, layout);
        let output = |rows| Matrix::output(gpu, dtype, rows, width, layout);
        let (on_x, on_grad, on_bias) = (input(&x), input(&grad), input(&bias));
        let view = biased.then(|| on_bias.view());
        let context = format!("{activation:?} of {rows} rows of {width}, bias {biased}, {layout:?}");

        let mut y = output(rows);
        let operands = ActivationOperands { x: on_x.rows(), bias: view, y: y.rows_mut() };
        layers.activation(activation, operands).unwrap();
        let expected: Vec<f64> = (0..x.len()).map(|i| value(activation, added(i))).collect();
        assert_near(&y.read(gpu), &expected, dtype, 1.0, &context);

        let (mut dx, mut d_bias) = (output(rows), output(1));
        let wanted = biased || i % 2 == 0;
        let operands = ActivationGradients {
            x: on_x.rows(),
            bias: view,
            grad: on_grad.rows(),
            dx: dx.rows_mut(),
            d_bias: wanted.then(|| d_bias.view_mut()),
        };
        layers.activation_gradient(activation, operands).unwrap();
        let expected: Vec<f64> = (0..x.len()).map(|i| grad[i] * slope(activation, added(i))).collect();
        assert_near(&dx.read(gpu), &expected, dtype, 1.0, &context);
        if wanted {
            let sums = columns(&expected, width);
            assert_near(&d_bias.read(gpu), &sums, dtype, 1.0 + (rows as f64).sqrt(), &context);
        }
    }
}

fn columns(values: &[f64], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    values.iter().enumerate().for_each(|(i, value)| sums[i % width] += value);
    sums
}

pub(crate) fn gradients_of_biases_are_sums<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    for (i, ((rows, width), dtype)) in SHAPES
        .iter()
        .chain(&[(0, 7), (2100, 3)])
        .flat_map(|&shape| TYPES.map(|dtype| (shape, dtype)))
        .enumerate()
    {
        let grad = numbers(1, rows * width, 1.0, dtype);
        let on_grad = Matrix::input(gpu, dtype, &grad, width, LAYOUTS[i % 3]);
        let mut sums = Matrix::output(gpu, dtype, 1, width, LAYOUTS[i % 3]);
        layers.bias_gradient(on_grad.rows(), sums.view_mut()).unwrap();
        let scale = 1.0 + (rows as f64).sqrt();
        assert_near(
            &sums.read(gpu),
            &columns(&grad, width),
            dtype,
            scale,
            &format!("{rows} rows of {width}"),
        );
    }
}

/// Tails, zeros and what is not finite.
pub(crate) fn activations_hold_at_the_ends<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let x = [0.0, -0.0, -12.0, 12.0, -90.0, 90.0, -1e4, 1e4, f64::NAN, f64::INFINITY];
    let on_x = gpu.upload(&HostBuffer::from_f64(DType::F32, &x)).unwrap();
    for activation in KINDS {
        let (mut y, mut dx) = (gpu.zeros(DType::F32, 10).unwrap(), gpu.zeros(DType::F32, 10).unwrap());
        let grad = gpu.upload(&HostBuffer::from_f64(DType::F32, &[1.0; 10])).unwrap();
        let rows = |buffer| super::Rows::new(buffer, 10).unwrap();
        let operands = ActivationOperands {
            x: rows(on_x.view()),
            bias: None,
            y: super::RowsMut::new(y.view_mut(), 10).unwrap(),
        };
        layers.activation(activation, operands).unwrap();
        let operands = ActivationGradients {
            x: rows(on_x.view()),
            bias: None,
            grad: rows(grad.view()),
            dx: super::RowsMut::new(dx.view_mut(), 10).unwrap(),
            d_bias: None,
        };
        layers.activation_gradient(activation, operands).unwrap();
        let (y, dx) = (gpu.download(&y).unwrap().to_f64(), gpu.download(&dx).unwrap().to_f64());
        for (i, &x) in x[..8].iter().enumerate() {
            let (value, slope) = (value(activation, x), slope(activation, x));
            assert!((y[i] - value).abs() <= 1e-5 * value.abs().max(1e-3), "{activation:?}({x}) is {}", y[i]);
            assert!((dx[i] - slope).abs() <= 1e-5, "{activation:?}'({x}) is {}", dx[i]);
        }
        assert!(y[8].is_nan() && y[9] == f64::INFINITY, "{activation:?}: {y:?}");
    }
    // The tail of GELU does not cancel: relative accuracy where the result is small.
    let x: Vec<f64> =
        (0..40).map(|i| HostBuffer::from_f64(DType::F32, &[-0.2 * f64::from(i)]).to_f64()[0]).collect();
    let on_x = gpu.upload(&HostBuffer::from_f64(DType::F32, &x)).unwrap();
    for activation in [Activation::Gelu, Activation::GeluTanh] {
        let mut y = gpu.zeros(DType::F32, 40).unwrap();
        let operands = ActivationOperands {
            x: super::Rows::new(on_x.view(), 40).unwrap(),
            bias: None,
            y: super::RowsMut::new(y.view_mut(), 40).unwrap(),
        };
        layers.activation(activation, operands).unwrap();
        for (&x, y) in x.iter().zip(gpu.download(&y).unwrap().to_f64()) {
            let expected = match activation {
                Activation::Gelu => x * normal(x),
                // `1 + tanh(u)` as twice a sigmoid, since tanh cancels in f64 too.
                _ => {
                    x / (1.0
                        + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).exp())
                }
            };
            // An argument of the exponential of 40 turns a rounding into 40 of them.
            assert!(
                (y - expected).abs() <= 1e-5 * expected.abs(),
                "{activation:?}({x}) is {y}, not {expected}"
            );
        }
    }
}

pub(crate) fn gated_products_match_the_formula<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let cases = SHAPES.iter().flat_map(|&shape| TYPES.map(|dtype| (shape, dtype)));
    for (i, ((rows, width), dtype)) in cases.enumerate() {
        let (activation, layout) = (KINDS[i % 6], LAYOUTS[i / 2 % 3]);
        let values = |seed| numbers(seed, rows * width, 3.0, dtype);
        let [gate, up, grad] = [values(1), values(2), values(3)];
        let input = |values: &[f64]| Matrix::input(gpu, dtype, values, width, layout);
        let output = || Matrix::output(gpu, dtype, rows, width, layout);
        let [on_gate, on_up, on_grad] = [&gate, &up, &grad].map(|values| input(values));
        let [mut y, mut d_gate, mut d_up] = [output(), output(), output()];
        let context = format!("{activation:?} of {rows} rows of {width}, {layout:?}");
        let operands = GatedOperands { gate: on_gate.rows(), up: on_up.rows(), y: y.rows_mut() };
        layers.gated(activation, operands).unwrap();
        let of = |f: &dyn Fn(usize) -> f64| (0..gate.len()).map(f).collect::<Vec<f64>>();
        let expected = of(&|i| value(activation, gate[i]) * up[i]);
        assert_near(&y.read(gpu), &expected, dtype, 3.0, &context);
        let operands = GatedGradients {
            gate: on_gate.rows(),
            up: on_up.rows(),
            grad: on_grad.rows(),
            d_gate: d_gate.rows_mut(),
            d_up: d_up.rows_mut(),
        };
        layers.gated_gradient(activation, operands).unwrap();
        let expected = of(&|i| grad[i] * up[i] * slope(activation, gate[i]));
        assert_near(&d_gate.read(gpu), &expected, dtype, 9.0, &context);
        let expected = of(&|i| grad[i] * value(activation, gate[i]));
        assert_near(&d_up.read(gpu), &expected, dtype, 9.0, &context);
    }
    let gate = numbers(1, 6, 3.0, DType::F32);
    let got: Vec<f64> = gate.iter().map(|&x| slope(Activation::Silu, x)).collect();
    let slopes = slopes(&gate, &[1.0; 6], |x| x.iter().map(|&x| value(Activation::Silu, x)).collect());
    assert!(got.iter().zip(&slopes).all(|(a, b)| (a - b).abs() < 1e-8), "{got:?} {slopes:?}");
}
