use crate::common::Watched;
use tpgm_cuda::layers::{Error, Norm, NormGradients, NormOperands, Residual};

use super::{
    Backend, DType, Device, Gpu, HostBuffer, LAYOUTS, Layers, Matrix, Rows, RowsMut, TYPES, WIDTHS,
    assert_near, largest, numbers, slopes,
};

/// Values, and what comes out of them.
struct Case {
    rows: usize,
    x: Vec<f64>,
    residual: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    grad: Vec<f64>,
}

impl Case {
    fn new(rows: usize, width: usize, dtype: DType) -> Self {
        let matrix = |seed| numbers(seed, rows * width, 2.0, dtype);
        // A mean that is not small beside the deviation.
        let x = HostBuffer::from_f64(dtype, &matrix(1).iter().map(|x| x + 1.5).collect::<Vec<_>>()).to_f64();
        let (weight, bias) = (numbers(3, width, 1.5, dtype), numbers(4, width, 1.0, dtype));
        Self { rows, x, residual: matrix(2), weight, bias, grad: matrix(5) }
    }

    /// `x + residual` as the element type has it.
    fn sum(&self, dtype: DType) -> Vec<f64> {
        let sum: Vec<f64> = self.x.iter().zip(&self.residual).map(|(x, r)| x + r).collect();
        HostBuffer::from_f64(dtype, &sum).to_f64()
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let len = values.len() as f64;
    values.sum::<f64>() / len
}

/// Normalized rows and one over the deviation of each.
fn normalized(norm: Norm, x: &[f64], width: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut all, mut scales) = (Vec::new(), Vec::new());
    for row in x.chunks(width) {
        let center = if norm.remove_mean { mean(row.iter().copied()) } else { 0.0 };
        let scale = 1.0 / (mean(row.iter().map(|x| (x - center).powi(2))) + norm.eps).sqrt();
        all.extend(row.iter().map(|x| (x - center) * scale));
        scales.push(scale);
    }
    (all, scales)
}

fn forward(norm: Norm, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let width = weight.len();
    let value = |(i, n): (usize, f64)| n * weight[i % width] + bias.map_or(0.0, |bias| bias[i % width]);
    normalized(norm, x, width).0.into_iter().enumerate().map(value).collect()
}

/// Gradients of x, weight and bias.
fn gradients(norm: Norm, x: &[f64], weight: &[f64], grad: &[f64]) -> [Vec<f64>; 3] {
    let width = weight.len();
    let (n, scales) = normalized(norm, x, width);
    let (mut dx, mut d_weight, mut d_bias) = (Vec::new(), vec![0.0; width], vec![0.0; width]);
    for ((n, grad), scale) in n.chunks(width).zip(grad.chunks(width)).zip(scales) {
        let h: Vec<f64> = grad.iter().zip(weight).map(|(g, w)| g * w).collect();
        let mean_h = if norm.remove_mean { mean(h.iter().copied()) } else { 0.0 };
        let mean_hn = mean(h.iter().zip(n).map(|(h, n)| h * n));
        dx.extend(h.iter().zip(n).map(|(h, n)| scale * (h - mean_h - n * mean_hn)));
        for i in 0..width {
            d_weight[i] += grad[i] * n[i];
            d_bias[i] += grad[i];
        }
    }
    [dx, d_weight, d_bias]
}

const NORMS: [Norm; 2] = [Norm { eps: 1e-5, remove_mean: true }, Norm { eps: 1e-6, remove_mean: false }];

pub(crate) fn norms_match_the_formula<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    for (i, (width, dtype)) in WIDTHS.iter().flat_map(|&width| TYPES.map(|dtype| (width, dtype))).enumerate()
    {
        let layout = LAYOUTS[i / 2 % 3];
        let norm = NORMS[i % 2];
        let case = Case::new(5, width, dtype);
        let input = |values: &[f64]| Matrix::input(gpu, dtype, values, width, layout);
        let output = || Matrix::output(gpu, dtype, case.rows, width, layout);
        let (x, residual) = (input(&case.x), input(&case.residual));
        let (weight, bias) = (input(&case.weight), input(&case.bias));
        let context = format!("{norm:?} of rows of {width}, {layout:?}");

        let mut y = output();
        let operands =
            NormOperands { x: x.rows(), residual: None, weight: weight.view(), bias: None, y: y.rows_mut() };
        layers.norm(norm, operands).unwrap();
        let expected = forward(norm, &case.x, &case.weight, None);
        assert_near(&y.read(gpu), &expected, dtype, largest(&expected), &context);

        let (mut y, mut sum) = (output(), output());
        let residual = Residual { value: residual.rows(), sum: sum.rows_mut() };
        let (weight, bias) = (weight.view(), Some(bias.view()));
        let operands = NormOperands { x: x.rows(), residual: Some(residual), weight, bias, y: y.rows_mut() };
        layers.norm(norm, operands).unwrap();
        let s = case.sum(dtype);
        assert_eq!(sum.read(gpu), s, "{context}");
        let expected = forward(norm, &s, &case.weight, Some(&case.bias));
        assert_near(&y.read(gpu), &expected, dtype, largest(&expected), &context);
    }
}

pub(crate) fn gradients_of_norms_match_the_formula<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let shapes = WIDTHS.map(|width| (11, width)).into_iter().chain([(300, 6), (0, 5)]);
    for (i, ((rows, width), dtype)) in shapes.flat_map(|shape| TYPES.map(|dtype| (shape, dtype))).enumerate()
    {
        let layout = LAYOUTS[i / 2 % 3];
        let norm = NORMS[i % 2];
        let case = Case::new(rows, width, dtype);
        let input = |values: &[f64]| Matrix::input(gpu, dtype, values, width, layout);
        let output = |rows| Matrix::output(gpu, dtype, rows, width, layout);
        let (x, grad, carried) = (input(&case.x), input(&case.grad), input(&case.residual));
        let weight = input(&case.weight);
        let (mut dx, mut d_weight, mut d_bias) = (output(rows), output(1), output(1));
        let operands = NormGradients {
            x: x.rows(),
            weight: weight.view(),
            grad: grad.rows(),
            carried: Some(carried.rows()),
            dx: Some(dx.rows_mut()),
            d_weight: Some(d_weight.view_mut()),
            d_bias: Some(d_bias.view_mut()),
        };
        layers.norm_gradient(norm, operands).unwrap();
        let [mut expected, of_weight, of_bias] = gradients(norm, &case.x, &case.weight, &case.grad);
        // What is subtracted from each other is as large as the deviation's inverse makes it.
        let scale = normalized(norm, &case.x, width).1.into_iter().fold(1.0, f64::max);
        expected.iter_mut().zip(&case.residual).for_each(|(dx, carried)| *dx += carried);
        let context = format!("{norm:?} of {rows} rows of {width}, {layout:?}");
        assert_near(&dx.read(gpu), &expected, dtype, 4.0 * scale, &format!("dx, {context}"));
        let scale = 2.0 * (rows as f64).sqrt();
        assert_near(&d_weight.read(gpu), &of_weight, dtype, scale, &format!("d_weight, {context}"));
        assert_near(&d_bias.read(gpu), &of_bias, dtype, scale, &format!("d_bias, {context}"));

        // One at a time.
        let (mut dx, mut alone) = (output(rows), output(1));
        let operands = |dx, d_weight| NormGradients {
            x: x.rows(),
            weight: weight.view(),
            grad: grad.rows(),
            carried: None,
            dx,
            d_weight,
            d_bias: None,
        };
        layers.norm_gradient(norm, operands(Some(dx.rows_mut()), None)).unwrap();
        layers.norm_gradient(norm, operands(None, Some(alone.view_mut()))).unwrap();
        assert_eq!(alone.read(gpu), d_weight.read(gpu), "{context}");
        let [expected, ..] = gradients(norm, &case.x, &case.weight, &case.grad);
        let scale = normalized(norm, &case.x, width).1.into_iter().fold(1.0, f64::max);
        assert_near(&dx.read(gpu), &expected, dtype, 4.0 * scale, &context);
    }
}

/// The formulas above against differences of the forward pass.
pub(crate) fn gradients_of_norms_are_slopes<D: Device>(_: &Gpu<D>) {
    for norm in NORMS {
        let case = Case::new(3, 7, DType::F32);
        let [dx, d_weight, d_bias] = gradients(norm, &case.x, &case.weight, &case.grad);
        let of = |x: &[f64], w: &[f64], b: &[f64]| forward(norm, x, w, Some(b));
        let near = |got: &[f64], slopes: &[f64]| {
            assert!(got.iter().zip(slopes).all(|(a, b)| (a - b).abs() < 1e-7), "{got:?} {slopes:?}");
        };
        near(&dx, &slopes(&case.x, &case.grad, |x| of(x, &case.weight, &case.bias)));
        near(&d_weight, &slopes(&case.weight, &case.grad, |w| of(&case.x, w, &case.bias)));
        near(&d_bias, &slopes(&case.bias, &case.grad, |b| of(&case.x, &case.weight, b)));
    }
}

pub(crate) fn norms_refuse_what_does_not_fit<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let zeros = |dtype, len| gpu.zeros(dtype, len).unwrap();
    let (x, weight, short) = (zeros(DType::F32, 12), zeros(DType::F32, 4), zeros(DType::F32, 3));
    let mut y = zeros(DType::F32, 12);
    let mut error = |norm, weight| {
        let (x, y) = (Rows::new(x.view(), 4).unwrap(), RowsMut::new(y.view_mut(), 4).unwrap());
        layers.norm(norm, NormOperands { x, residual: None, weight, bias: None, y }).unwrap_err().to_string()
    };
    assert_eq!(
        error(Norm::layer(1e-5), short.view()),
        "layer norm: `weight` has 3 elements, but 4 are needed"
    );
    assert_eq!(
        error(Norm::rms(0.0), weight.view()),
        "RMS norm: option `eps` is 0, but must be finite and above 0 in f32"
    );
    let wide = zeros(DType::F64, 12);
    let (x, mut y) = (Rows::new(wide.view(), 4).unwrap(), zeros(DType::F64, 12));
    let y = RowsMut::new(y.view_mut(), 4).unwrap();
    let operands = NormOperands { x, residual: None, weight: weight.view(), bias: None, y };
    let error = layers.norm(Norm::layer(1e-5), operands).unwrap_err();
    assert!(matches!(error, Error::DType { operand: "x", got: DType::F64, .. }), "{error}");
}

/// Sums over columns are cut by the number of rows alone: one block or more than there is work for give the same bits.
pub(crate) fn any_number_of_blocks_gives_the_same_gradients<D: Device>(gpu: &Gpu<D>) {
    let (rows, width, dtype) = (300, 70, DType::F32);
    let case = Case::new(rows, width, dtype);
    let input = |values: &[f64]| Matrix::input(gpu, dtype, values, width, LAYOUTS[0]);
    let (x, grad, weight) = (input(&case.x), input(&case.grad), input(&case.weight));
    let run = |blocks| {
        let layers = Layers::on(Watched::new(gpu.device().clone()).blocks(blocks));
        let output = |rows| Matrix::output(gpu, dtype, rows, width, LAYOUTS[0]);
        let (mut dx, mut d_weight, mut d_bias) = (output(rows), output(1), output(1));
        let operands = NormGradients {
            x: x.rows(),
            weight: weight.view(),
            grad: grad.rows(),
            carried: None,
            dx: Some(dx.rows_mut()),
            d_weight: Some(d_weight.view_mut()),
            d_bias: Some(d_bias.view_mut()),
        };
        layers.norm_gradient(NORMS[0], operands).unwrap();
        let mut alone = output(1);
        layers.bias_gradient(grad.rows(), alone.view_mut()).unwrap();
        [&dx, &d_weight, &d_bias, &alone].map(|output| output.read(gpu))
    };
    let one = run(1);
    for blocks in [2, 7, 1000] {
        assert!(run(blocks) == one, "{blocks} blocks differ from one");
    }
}
