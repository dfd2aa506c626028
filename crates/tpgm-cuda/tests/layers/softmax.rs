use tpgm_cuda::layers::{Mask, Softmax, SoftmaxGradients, SoftmaxOperands};

use super::{
    Backend, DType, Device, Gpu, HostBuffer, LAYOUTS, Layers, Matrix, Rows, RowsMut, TYPES, WIDTHS,
    assert_near, largest, numbers, slopes,
};

const KINDS: [Softmax; 2] = [Softmax::Probability, Softmax::Logarithm];

/// Of scores that are scaled and masked already.
fn forward(softmax: Softmax, s: &[f64], width: usize) -> Vec<f64> {
    let row = |s: &[f64]| -> Vec<f64> {
        let most = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = s.iter().map(|s| (s - most).exp()).sum();
        match softmax {
            Softmax::Probability => s.iter().map(|s| (s - most).exp() / total).collect(),
            Softmax::Logarithm => s.iter().map(|s| s - most - total.ln()).collect(),
        }
    };
    s.chunks(width).flat_map(row).collect()
}

/// From the output.
fn gradient(softmax: Softmax, y: &[f64], grad: &[f64], width: usize, scale: f64) -> Vec<f64> {
    let row = |(y, grad): (&[f64], &[f64])| -> Vec<f64> {
        let pairs = || y.iter().zip(grad).filter(|(y, _)| y.is_finite());
        let sum: f64 = match softmax {
            Softmax::Probability => pairs().map(|(y, g)| y * g).sum(),
            Softmax::Logarithm => pairs().map(|(_, g)| g).sum(),
        };
        let one = |(y, g): (&f64, &f64)| match softmax {
            _ if !y.is_finite() => 0.0,
            Softmax::Probability => scale * y * (g - sum),
            Softmax::Logarithm => scale * (g - y.exp() * sum),
        };
        y.iter().zip(grad).map(one).collect()
    };
    y.chunks(width).zip(grad.chunks(width)).flat_map(row).collect()
}

pub(crate) fn softmax_matches_the_formula<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    for (i, (width, dtype)) in WIDTHS.iter().flat_map(|&width| TYPES.map(|dtype| (width, dtype))).enumerate()
    {
        let (softmax, layout, rows) = (KINDS[i % 2], LAYOUTS[i / 2 % 3], 5);
        let values = numbers(1, rows * width, 6.0, dtype);
        let grads = numbers(2, rows * width, 1.0, dtype);
        let x = Matrix::input(gpu, dtype, &values, width, layout);
        let mut y = Matrix::output(gpu, dtype, rows, width, layout);
        let operands = SoftmaxOperands { x: x.rows(), scale: 1.25, mask: None, y: y.rows_mut() };
        layers.softmax(softmax, operands).unwrap();
        let scaled: Vec<f64> = values.iter().map(|x| 1.25 * x).collect();
        let expected = forward(softmax, &scaled, width);
        let context = format!("{softmax:?} of rows of {width}, {layout:?}");
        assert_near(&y.read(gpu), &expected, dtype, largest(&expected), &context);

        // From an output as it is stored.
        let stored = HostBuffer::from_f64(dtype, &expected).to_f64();
        let (y, grad) = (
            Matrix::input(gpu, dtype, &stored, width, layout),
            Matrix::input(gpu, dtype, &grads, width, layout),
        );
        let mut dx = Matrix::output(gpu, dtype, rows, width, layout);
        let operands = SoftmaxGradients { y: y.rows(), grad: grad.rows(), scale: 1.25, dx: dx.rows_mut() };
        layers.softmax_gradient(softmax, operands).unwrap();
        let expected = gradient(softmax, &stored, &grads, width, 1.25);
        assert_near(&dx.read(gpu), &expected, dtype, largest(&expected), &context);
    }
}

/// Scores of 2 batches, 3 heads and some queries; masks that are the same for all heads or queries, -inf in places.
pub(crate) fn masks_hide_keys<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let (batches, heads) = (2, 3);
    let shapes = [(5, 5), (3, 9), (4, 260), (1, 1100), (6, 4)];
    for (i, ((queries, keys), dtype)) in
        shapes.iter().flat_map(|&shape| TYPES.map(|dtype| (shape, dtype))).enumerate()
    {
        let (softmax, layout, rows) = (KINDS[i / 2 % 2], LAYOUTS[i % 3], batches * heads * queries);
        let causal = i % 4 != 1;
        let values = numbers(1, rows * keys, 3.0, dtype);
        let x = Matrix::input(gpu, dtype, &values, keys, layout);
        // One number in five is -inf, the first of a row never.
        let mut added = numbers(3, batches * queries * keys, 2.0, dtype);
        for (j, added) in added.iter_mut().enumerate() {
            if j % keys > 0 && j % 5 == 3 {
                *added = f64::NEG_INFINITY;
            }
        }
        let of_padding = i % 3 == 2;
        let (strides, len) = match of_padding {
            true => ([keys, 0, 0], batches * keys),
            false => ([queries * keys, 0, keys], batches * queries * keys),
        };
        let mask = gpu.upload(&HostBuffer::from_f64(dtype, &added[..len])).unwrap();
        let mut scores = Vec::new();
        for (row, x) in values.chunks(keys).enumerate() {
            let (batch, query) = (row / (heads * queries), row % queries);
            let first = batch * strides[0] + query * strides[2];
            for (key, x) in x.iter().enumerate() {
                let hidden = causal && (key as i64) > query as i64 + keys as i64 - queries as i64;
                scores.push(if hidden { f64::NEG_INFINITY } else { 0.5 * x + added[first + key] });
            }
        }
        let mut y = Matrix::output(gpu, dtype, rows, keys, layout);
        let mask = Some(Mask { heads, queries, causal, added: Some((mask.view(), strides)) });
        let operands = SoftmaxOperands { x: x.rows(), scale: 0.5, mask, y: y.rows_mut() };
        layers.softmax(softmax, operands).unwrap();
        let expected = forward(softmax, &scores, keys);
        let context =
            format!("{softmax:?} of {queries} queries and {keys} keys, causal {causal}, {layout:?}");
        let scale = expected.iter().filter(|y| y.is_finite()).fold(1.0, |most: f64, y| most.max(y.abs()));
        assert_near(&y.read(gpu), &expected, dtype, scale, &context);
        // With more queries than keys the first ones see nothing.
        let nothing = causal && queries > keys;
        assert_eq!(expected.iter().any(|y| y.is_nan()), nothing, "{context}");
        if nothing {
            continue;
        }

        let grads = numbers(4, rows * keys, 1.0, dtype);
        let stored = HostBuffer::from_f64(dtype, &expected).to_f64();
        let (y, grad) = (
            Matrix::input(gpu, dtype, &stored, keys, layout),
            Matrix::input(gpu, dtype, &grads, keys, layout),
        );
        let mut dx = Matrix::output(gpu, dtype, rows, keys, layout);
        let operands = SoftmaxGradients { y: y.rows(), grad: grad.rows(), scale: 0.5, dx: dx.rows_mut() };
        layers.softmax_gradient(softmax, operands).unwrap();
        let expected = gradient(softmax, &stored, &grads, keys, 0.5);
        assert_near(&dx.read(gpu), &expected, dtype, largest(&expected), &context);
    }
}

pub(crate) fn gradients_of_softmax_are_slopes<D: Device>(_: &Gpu<D>) {
    let (x, grad) = (numbers(1, 21, 3.0, DType::F32), numbers(2, 21, 1.0, DType::F32));
    for softmax in KINDS {
        let of = |x: &[f64]| forward(softmax, &x.iter().map(|x| 0.7 * x).collect::<Vec<_>>(), 7);
        let got = gradient(softmax, &of(&x), &grad, 7, 0.7);
        let slopes = slopes(&x, &grad, of);
        assert!(got.iter().zip(&slopes).all(|(a, b)| (a - b).abs() < 1e-8), "{got:?} {slopes:?}");
    }
}

pub(crate) fn masks_that_do_not_fit_are_refused<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let (x, mask) = (gpu.zeros(DType::F32, 24).unwrap(), gpu.zeros(DType::F32, 11).unwrap());
    let mut y = gpu.zeros(DType::F32, 24).unwrap();
    let mut error = |heads, queries, strides| {
        let mask = Some(Mask { heads, queries, causal: false, added: Some((mask.view(), strides)) });
        let (x, y) = (Rows::new(x.view(), 4).unwrap(), RowsMut::new(y.view_mut(), 4).unwrap());
        let operands = SoftmaxOperands { x, scale: 1.0, mask, y };
        layers.softmax(Softmax::Probability, operands).map_err(|error| error.to_string())
    };
    assert_eq!(error(1, 3, [4, 0, 0]), Ok(()));
    assert_eq!(
        error(2, 2, [0, 0, 4]).unwrap_err(),
        "softmax: `mask` has 2 heads of 2 queries, but a divisor of 6 rows is needed"
    );
    assert_eq!(
        error(1, 3, [0, 0, 4]).unwrap_err(),
        "softmax: `mask` has 11 elements, but [2, 1, 3] rows of 4 with strides [0, 0, 4] are needed"
    );
    assert!(error(0, 3, [0, 0, 0]).unwrap_err().contains("0 heads"));
}
