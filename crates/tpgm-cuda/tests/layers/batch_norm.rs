use tpgm_cuda::layers::{BatchNorm, BatchNormGradients, BatchNormOperands, Statistics};

use super::{Backend, DType, Device, Gpu, HostBuffer, Layers, TYPES, assert_near, largest, numbers, slopes};
use crate::common::Watched;

const NORM: BatchNorm = BatchNorm { eps: 1e-2, momentum: 0.3, largest: f32::MAX };

/// Batch, channels and size: one element a plane, planes that can be read four at a time, more than a block has threads, and groups of
/// several images.
const SHAPES: [[usize; 3]; 6] = [[3, 2, 1], [2, 3, 12], [2, 1, 7], [1, 2, 300], [5, 3, 49], [1100, 1, 2]];

fn of_channel(shape: [usize; 3], channel: usize) -> impl Iterator<Item = usize> {
    let [batch, channels, size] = shape;
    (0..batch).flat_map(move |image| (0..size).map(move |i| (image * channels + channel) * size + i))
}

/// Means, then variances.
fn moments(shape: [usize; 3], x: &[f64]) -> Vec<f64> {
    let count = (shape[0] * shape[2]) as f64;
    let mean = |channel| of_channel(shape, channel).map(|i| x[i]).sum::<f64>() / count;
    let variance = |channel| {
        let mean = mean(channel);
        of_channel(shape, channel).map(|i| (x[i] - mean).powi(2)).sum::<f64>() / count
    };
    (0..shape[1]).map(mean).chain((0..shape[1]).map(variance)).collect()
}

fn forward(shape: [usize; 3], x: &[f64], weight: &[f64], bias: &[f64], moments: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for channel in 0..shape[1] {
        let scale = weight[channel] / (moments[shape[1] + channel] + NORM.eps).sqrt();
        for i in of_channel(shape, channel) {
            y[i] = (x[i] - moments[channel]) * scale + bias[channel];
        }
    }
    y
}

/// Gradients of images, weight and bias.
fn gradients(
    shape: [usize; 3],
    x: &[f64],
    weight: &[f64],
    grad: &[f64],
    moments: &[f64],
    of_batch: bool,
) -> [Vec<f64>; 3] {
    let (mut dx, mut d_weight, mut d_bias) = (vec![0.0; x.len()], vec![], vec![]);
    let count = (shape[0] * shape[2]) as f64;
    for channel in 0..shape[1] {
        let scale = 1.0 / (moments[shape[1] + channel] + NORM.eps).sqrt();
        let n = |i: usize| (x[i] - moments[channel]) * scale;
        let of_grad: f64 = of_channel(shape, channel).map(|i| grad[i]).sum();
        let of_product: f64 = of_channel(shape, channel).map(|i| grad[i] * n(i)).sum();
        for i in of_channel(shape, channel) {
            let back = if of_batch { (of_grad + n(i) * of_product) / count } else { 0.0 };
            dx[i] = weight[channel] * scale * (grad[i] - back);
        }
        d_weight.push(of_product);
        d_bias.push(of_grad);
    }
    [dx, d_weight, d_bias]
}

struct Outcome {
    y: Vec<f64>,
    moved: Vec<f64>,
    gradients: [Vec<f64>; 3],
}

fn run<D: Device, E: Device>(
    layers: &Layers<E>,
    gpu: &Gpu<D>,
    shape: [usize; 3],
    [x, weight, bias, grad, running]: [&[f64]; 5],
    (norm, of_batch, dtype, offset): (BatchNorm, bool, DType, usize),
) -> Outcome {
    let upload = |values: &[f64], dtype| gpu.upload(&HostBuffer::from_f64(dtype, values)).unwrap();
    // Images that start behind others, so that four elements cannot be read at a time.
    let images = |values: &[f64]| upload(&[&vec![77.0; offset], values].concat(), dtype);
    let [x, grad, mut y, mut dx] = [x, grad, &vec![0.0; x.len()], &vec![0.0; x.len()]].map(images);
    let end = shape.iter().product::<usize>() + offset;
    let (weight, bias, running) = (upload(weight, dtype), upload(bias, dtype), upload(running, DType::F32));
    let floats = || gpu.zeros(DType::F32, 2 * shape[1]).unwrap();
    let (mut state, mut moved) = (floats(), floats());
    let statistics = match of_batch {
        true => Statistics::Batch(Some((running.view(), moved.view_mut()))),
        false => Statistics::Running(running.view()),
    };
    let operands = BatchNormOperands {
        x: x.view().slice(offset..end),
        weight: weight.view(),
        bias: bias.view(),
        statistics,
        state: state.view_mut(),
        y: y.view_mut().slice(offset..end),
    };
    layers.batch_norm(norm, shape, operands).unwrap();
    let [mut d_weight, mut d_bias] = [(); 2].map(|()| gpu.zeros(dtype, shape[1]).unwrap());
    let operands = BatchNormGradients {
        x: x.view().slice(offset..end),
        weight: weight.view(),
        grad: grad.view().slice(offset..end),
        state: state.view(),
        of_batch,
        dx: Some(dx.view_mut().slice(offset..end)),
        d_weight: Some(d_weight.view_mut()),
        d_bias: Some(d_bias.view_mut()),
    };
    layers.batch_norm_gradient(shape, operands).unwrap();
    let read = |buffer| gpu.download(buffer).unwrap().to_f64();
    Outcome {
        y: read(&y)[offset..].to_vec(),
        moved: read(&moved),
        gradients: [read(&dx)[offset..].to_vec(), read(&d_weight), read(&d_bias)],
    }
}

pub(crate) fn batch_norms_match_the_formula<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    for (i, (shape, dtype)) in SHAPES.iter().flat_map(|&s| TYPES.map(|dtype| (s, dtype))).enumerate() {
        let (len, channels, of_batch) = (shape.iter().product(), shape[1], i % 4 != 1);
        let mut x = numbers(1, len, 1.0, dtype);
        // A channel whose mean is large against its deviation.
        x.iter_mut().for_each(|x| *x += if i % 2 == 0 { 32.0 } else { 0.0 });
        let x = HostBuffer::from_f64(dtype, &x).to_f64();
        let (weight, bias) = (numbers(2, channels, 2.0, dtype), numbers(3, channels, 1.0, dtype));
        let grad = numbers(4, len, 1.0, dtype);
        let running: Vec<f64> =
            numbers(5, 2 * channels, 1.0, DType::F32).iter().map(|x| x.abs() + 0.5).collect();
        let got = run(
            &layers,
            gpu,
            shape,
            [&x, &weight, &bias, &grad, &running],
            (NORM, of_batch, dtype, [0, 1, 4][i % 3]),
        );
        let context = format!("batch norm of {shape:?}, of the batch {of_batch}");
        let batch = moments(shape, &x);
        let moments = if of_batch { &batch } else { &running };
        let expected = forward(shape, &x, &weight, &bias, moments);
        // What is off by the mean's rounding is scaled with the rest.
        let scale = 40.0 / NORM.eps.sqrt();
        assert_near(&got.y, &expected, dtype, scale.min(largest(&expected) * 40.0), &context);
        let [dx, d_weight, d_bias] = gradients(shape, &x, &weight, &grad, moments, of_batch);
        let of_sums = scale * (len as f64).sqrt();
        let got_gradients = got.gradients.iter().zip([dx, d_weight, d_bias]);
        for ((what, scale), (got, expected)) in
            [("dx", scale), ("d_weight", of_sums), ("d_bias", of_sums)].into_iter().zip(got_gradients)
        {
            assert_near(got, &expected, dtype, scale, &format!("{what}, {context}"));
        }
        if of_batch {
            let count = (shape[0] * shape[2]) as f64;
            let moved = |i: usize| {
                let batch = if i < channels { batch[i] } else { batch[i] * count / (count - 1.0) };
                running[i] + NORM.momentum * (batch - running[i])
            };
            let expected: Vec<f64> = (0..2 * channels).map(moved).collect();
            assert_near(&got.moved, &expected, DType::F32, 40.0, &format!("running, {context}"));
        }
    }
}

pub(crate) fn gradients_of_batch_norms_are_slopes<D: Device>(_: &Gpu<D>) {
    let shape = [2, 2, 3];
    let (x, grad) = (numbers(1, 12, 1.0, DType::F32), numbers(2, 12, 1.0, DType::F32));
    let (weight, bias) = (numbers(3, 2, 1.0, DType::F32), numbers(4, 2, 1.0, DType::F32));
    let given = [0.1, 0.2, 0.7, 1.5];
    let close = |got: &[f64], slopes: &[f64]| {
        assert!(got.iter().zip(slopes).all(|(a, b)| (a - b).abs() < 1e-7), "{got:?} {slopes:?}");
    };
    for of_batch in [true, false] {
        let of = |x: &[f64]| if of_batch { moments(shape, x) } else { given.to_vec() };
        let [dx, d_weight, d_bias] = gradients(shape, &x, &weight, &grad, &of(&x), of_batch);
        close(&dx, &slopes(&x, &grad, |x| forward(shape, x, &weight, &bias, &of(x))));
        close(&d_weight, &slopes(&weight, &grad, |weight| forward(shape, &x, weight, &bias, &of(&x))));
        close(&d_bias, &slopes(&bias, &grad, |bias| forward(shape, &x, &weight, bias, &of(&x))));
    }
}

pub(crate) fn running_statistics_stay_finite_and_the_same_on_any_blocks<D: Device>(gpu: &Gpu<D>) {
    let shape = [5, 3, 70];
    let len = shape.iter().product();
    let (x, grad) = (numbers(1, len, 1.0, DType::F32), numbers(2, len, 1.0, DType::F32));
    let (channel, running) = ([0.5, 1.0, 2.0], [0.1, 0.2, 0.3, 1.0, 1.1, 1.2]);
    let on = |blocks, x: &[f64], norm| {
        let layers = Layers::on(Watched::new(gpu.device().clone()).blocks(blocks));
        let values = [x, &channel, &channel, &grad, &running];
        run(&layers, gpu, shape, values, (norm, true, DType::F32, 0))
    };
    let one = on(1, &x, NORM);
    for blocks in [2, 1000] {
        let other = on(blocks, &x, NORM);
        let same = other.y == one.y && other.moved == one.moved && other.gradients == one.gradients;
        assert!(same, "{blocks} blocks differ from one");
    }
    let kept = HostBuffer::from_f64(DType::F32, &running).to_f64();
    assert_ne!(one.moved, kept);
    // One channel with a NaN, or a number that the statistics' type cannot hold: all stay.
    let mut bad = x.clone();
    bad[70] = f64::NAN;
    assert_eq!(on(7, &bad, NORM).moved, kept);
    assert_eq!(on(7, &x, BatchNorm { largest: 0.5, ..NORM }).moved, kept);
}

pub(crate) fn batch_norms_refuse_what_does_not_fit<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let (x, weight, state) = (
        gpu.zeros(DType::F32, 12).unwrap(),
        gpu.zeros(DType::F32, 3).unwrap(),
        gpu.zeros(DType::F32, 6).unwrap(),
    );
    let error = |norm, shape, running: bool| {
        let (mut y, mut to) = (gpu.zeros(DType::F32, 12).unwrap(), gpu.zeros(DType::F32, 6).unwrap());
        let statistics = if running { Statistics::Running(state.view()) } else { Statistics::Batch(None) };
        let operands = BatchNormOperands {
            x: x.view(),
            weight: weight.view(),
            bias: weight.view(),
            statistics,
            state: to.view_mut(),
            y: y.view_mut(),
        };
        layers.batch_norm(norm, shape, operands).map_err(|error| error.to_string())
    };
    assert_eq!(error(NORM, [2, 3, 2], false), Ok(()));
    assert_eq!(error(NORM, [4, 3, 1], true), Ok(()));
    assert_eq!(
        error(NORM, [2, 3, 3], false).unwrap_err(),
        "batch norm: `x` has 12 elements, but 18 are needed"
    );
    assert_eq!(
        error(NORM, [3, 2, 2], true).unwrap_err(),
        "batch norm: `weight` has 3 elements, but 2 are needed"
    );
    assert!(error(BatchNorm { eps: 0.0, ..NORM }, [2, 3, 2], true).unwrap_err().contains("`eps`"));
    assert!(error(BatchNorm { momentum: 1.5, ..NORM }, [2, 3, 2], true).unwrap_err().contains("`momentum`"));
    let text = error(NORM, [1 << 20, 1 << 20, 1], true).unwrap_err();
    assert!(text.contains("fewer than 2^32 elements"), "{text}");
}
