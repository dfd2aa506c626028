//! Layers of `nn`, forward and backward: fused, against the same composed of candle's operations.
//!
//! `cargo bench -p tpgm-candle --bench nn -- layer-norm` runs one of them. Sizes are those of a small BERT (32 x 128 tokens
//! of 384 features) and of ViT-B/16 (32 x 197 tokens of 768).

use std::time::Duration;

use candle_core::{Device, Module, ModuleT, Result, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use tpgm_nn::{self as nn, composed};

/// Normal variables of these shapes.
fn variables(shapes: &[&[usize]]) -> Vec<Var> {
    shapes.iter().map(|&shape| Var::randn(0f32, 1.0, shape, &Device::Cpu).expect("a shape fits")).collect()
}

/// Measures forward and backward of two functions of the same variables.
fn compare(
    c: &mut Criterion,
    name: &str,
    shapes: &[&[usize]],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let vars = variables(shapes);
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let size = shapes[0].iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
    let mut group = c.benchmark_group(format!("{name}/{size}"));
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let step = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
        f(&tensors).and_then(|y| y.backward()).expect("the layer fits")
    };
    group.bench_function("fused", |b| b.iter(|| step(&fused)));
    group.bench_function("composed", |b| b.iter(|| step(&composed)));
    group.finish();
}

fn norms(c: &mut Criterion) {
    for (rows, features) in [(4096, 384), (6304, 768)] {
        let shapes: &[&[usize]] = &[&[rows, features], &[features], &[features]];
        compare(
            c,
            "layer-norm",
            shapes,
            |x| nn::LayerNorm::new(x[1].clone(), x[2].clone(), 1e-5).forward(&x[0]),
            |x| composed::norm(&x[0], &x[1], Some(&x[2]), 1e-5, true),
        );
        compare(
            c,
            "rms-norm",
            &shapes[..2],
            |x| nn::RmsNorm::new(x[1].clone(), 1e-5).forward(&x[0]),
            |x| composed::norm(&x[0], &x[1], None, 1e-5, false),
        );
    }
}

fn softmax(c: &mut Criterion) {
    for shape in [[32, 12, 128, 128], [32, 12, 197, 197]] {
        compare(
            c,
            "softmax",
            &[&shape],
            |x| nn::softmax_last_dim(&x[0]),
            |x| composed::softmax_last_dim(&x[0]),
        );
    }
    for (rows, classes) in [(4096, 1000), (512, 30_522)] {
        let labels: Vec<u32> = (0..rows as u32).map(|row| row * 7 % classes as u32).collect();
        let labels = Tensor::from_vec(labels, rows, &Device::Cpu).expect("a shape fits");
        compare(
            c,
            "cross-entropy",
            &[&[rows, classes]],
            |x| nn::cross_entropy(&x[0], &labels),
            |x| candle_nn::loss::cross_entropy(&x[0], &labels),
        );
    }
}

fn activations(c: &mut Criterion) {
    for shape in [[4096, 1536], [6304, 3072]] {
        compare(c, "gelu", &[&shape], |x| nn::gelu(&x[0]), |x| composed::gelu(&x[0]));
    }
    let shape = [4096, 1536];
    compare(c, "gelu-tanh", &[&shape], |x| nn::gelu_tanh(&x[0]), |x| composed::gelu_tanh(&x[0]));
    compare(c, "quick-gelu", &[&shape], |x| nn::quick_gelu(&x[0]), |x| composed::quick_gelu(&x[0]));
    compare(c, "silu", &[&shape], |x| nn::silu(&x[0]), |x| composed::silu(&x[0]));
    compare(c, "relu", &[&shape], |x| nn::relu(&x[0]), |x| composed::relu(&x[0]));
}

fn others(c: &mut Criterion) {
    let angles = Tensor::rand(0f32, 6.0, (128, 16), &Device::Cpu).expect("a shape fits");
    let (cos, sin) = (angles.cos().expect("finite"), angles.sin().expect("finite"));
    let shape = [32, 12, 128, 32];
    compare(c, "rope", &[&shape], |x| nn::rope(&x[0], &cos, &sin), |x| composed::rope(&x[0], &cos, &sin));
    compare(
        c,
        "rope-i",
        &[&shape],
        |x| nn::rope_i(&x[0], &cos, &sin),
        |x| composed::rope_i(&x[0], &cos, &sin),
    );

    let rng = nn::DropoutRng::new(1);
    let dropout = nn::Dropout::new(0.1, &rng).expect("a probability");
    let candle = candle_nn::Dropout::new(0.1);
    compare(
        c,
        "dropout",
        &[&[4096, 384]],
        |x| dropout.forward_t(&x[0], true),
        |x| candle.forward(&x[0], true),
    );

    // candle can go backward only through windows side by side.
    let shape = [32, 64, 56, 56];
    compare(c, "max-pool-2", &[&shape], |x| nn::max_pool2d(&x[0], (2, 2), (2, 2)), |x| x[0].max_pool2d(2));
    let stem = nn::MaxPool2d::new((3, 3), (2, 2)).padding((1, 1));
    compare(
        c,
        "max-pool-3",
        &[&shape],
        |x| stem.forward(&x[0]),
        |x| composed::max_pool2d(&x[0], (3, 3), (2, 2), (1, 1)),
    );
}

fn blocks(c: &mut Criterion) {
    for (rows, features) in [(4096, 1536), (6304, 768)] {
        let shapes: &[&[usize]] = &[&[rows, features], &[features]];
        compare(c, "add-bias", shapes, |x| nn::add_bias(&x[0], &x[1]), |x| composed::add_bias(&x[0], &x[1]));
    }
    // Feed-forward block of a small BERT.
    let (inner, outer) = (1536, 384);
    compare(
        c,
        "mlp",
        &[&[1024, outer], &[inner, outer], &[inner], &[outer, inner], &[outer]],
        |x| {
            let y = nn::Linear::new(x[1].clone(), Some(x[2].clone())).forward(&x[0])?;
            nn::Linear::new(x[3].clone(), Some(x[4].clone())).forward(&nn::gelu(&y)?)
        },
        |x| {
            let y = candle_nn::Linear::new(x[1].clone(), Some(x[2].clone())).forward(&x[0])?;
            candle_nn::Linear::new(x[3].clone(), Some(x[4].clone())).forward(&y.gelu_erf()?)
        },
    );
}

/// Attention over 64 tokens of 384 features: the projection of queries, and 12 heads.
fn attention(c: &mut Criterion) {
    compare(
        c,
        "linear",
        &[&[32, 64, 384], &[384, 384], &[384]],
        |x| nn::Linear::new(x[1].clone(), Some(x[2].clone())).forward(&x[0]),
        |x| composed::linear(&x[0], &x[1], Some(&x[2])),
    );
    let shape = [32, 12, 64, 32];
    compare(
        c,
        "scores",
        &[&shape, &shape],
        |x| nn::matmul_transposed(&x[0], &x[1]),
        |x| composed::matmul_transposed(&x[0], &x[1]),
    );
    compare(
        c,
        "attended",
        &[&[32, 12, 64, 64], &shape],
        |x| nn::matmul(&x[0], &x[1]),
        |x| composed::matmul(&x[0], &x[1]),
    );
}

/// Layers of ResNet-50, with a batch of 8.
fn convolutions(c: &mut Criterion) {
    for (name, [inputs, outputs, size, kernel], stride) in [
        ("conv-stem", [3, 64, 224, 7], 2),
        ("conv-1x1", [256, 64, 56, 1], 1),
        ("conv-3x3", [64, 64, 56, 3], 1),
        ("conv-3x3-half", [128, 128, 56, 3], 2),
        ("conv-3x3", [512, 512, 7, 3], 1),
    ] {
        compare(
            c,
            name,
            &[&[8, inputs, size, size], &[outputs, inputs, kernel, kernel]],
            |x| nn::Conv2d::new(x[1].clone()).stride(stride).padding(kernel / 2).forward(&x[0]),
            |x| composed::conv2d(&x[0], &x[1], stride, (kernel / 2).into(), 1),
        );
    }
    for (channels, size) in [(64, 112), (256, 56), (2048, 7)] {
        let running = Tensor::ones(channels, candle_core::DType::F32, &Device::Cpu).expect("a shape fits");
        compare(
            c,
            "batch-norm",
            &[&[8, channels, size, size], &[channels], &[channels]],
            |x| {
                let norm = nn::BatchNorm::new(x[1].clone(), x[2].clone(), &running, &running, 1e-5)?;
                norm.forward_t(&x[0], true)
            },
            |x| {
                let (mean, variance) = composed::batch_statistics(&x[0])?;
                composed::batch_norm(&x[0], &x[1], &x[2], &mean, &variance, 1e-5)
            },
        );
    }
}

/// A norm with given statistics, of weight and bias `x[0]` and `x[1]`.
fn frozen(x: &[Tensor]) -> Result<nn::BatchNorm> {
    let running = Tensor::ones(x[0].dims(), candle_core::DType::F32, &Device::Cpu)?;
    Ok(nn::BatchNorm::new(x[0].clone(), x[1].clone(), &running, &running, 1e-3)?
        .statistics(nn::Statistics::Running))
}

/// The same after candle's convolution, as candle's own operations have it, and ReLU6.
fn frozen_composed(y: &Tensor, x: &[Tensor]) -> Result<Tensor> {
    let running = Tensor::ones(x[0].dims(), candle_core::DType::F32, &Device::Cpu)?;
    composed::relu6(&composed::batch_norm(y, &x[0], &x[1], &running, &running, 1e-3)?)
}

/// Layers of EfficientNet-Lite0 at 96 pixels with a batch of 32, with frozen norms.
fn mobile(c: &mut Criterion) {
    for (channels, size, kernel, stride) in
        [(96, 48, 3, 2), (144, 24, 3, 1), (240, 12, 5, 1), (672, 6, 5, 1), (1152, 3, 5, 1)]
    {
        let same = nn::Padding::Same;
        compare(
            c,
            &format!("depthwise-{kernel}x{kernel}-stride-{stride}"),
            &[&[32, channels, size, size], &[channels, 1, kernel, kernel]],
            |x| nn::Conv2d::new(x[1].clone()).stride(stride).padding(same).groups(channels).forward(&x[0]),
            |x| composed::conv2d(&x[0], &x[1], stride, same, channels),
        );
    }
    for (inputs, outputs, size) in [(16, 96, 48), (24, 144, 24), (240, 40, 12), (112, 672, 6), (192, 1152, 3)]
    {
        compare(
            c,
            &format!("conv-1x1-norm-relu6-to-{outputs}"),
            &[&[32, inputs, size, size], &[outputs, inputs, 1, 1], &[outputs], &[outputs]],
            |x| {
                let conv = nn::Conv2d::new(x[1].clone());
                nn::ConvNorm::new(conv, frozen(&x[2..])?, nn::ConvActivation::Relu6).forward_t(&x[0], true)
            },
            |x| frozen_composed(&composed::conv2d(&x[0], &x[1], 1, 0.into(), 1)?, &x[2..]),
        );
    }
    for (inputs, kernel, size) in [(24, 3, 24), (40, 5, 12), (112, 5, 6), (192, 5, 3)] {
        let inner = 6 * inputs;
        let (expand, depthwise, project) =
            ([inner, inputs, 1, 1], [inner, 1, kernel, kernel], [inputs, inner, 1, 1]);
        compare(
            c,
            &format!("inverted-residual-{kernel}x{kernel}"),
            &[
                &[32, inputs, size, size],
                &expand,
                &[inner],
                &[inner],
                &depthwise,
                &[inner],
                &[inner],
                &project,
                &[inputs],
                &[inputs],
            ],
            |x| {
                let conv = |i: usize| nn::Conv2d::new(x[i].clone()).padding(nn::Padding::Same);
                let relu6 = nn::ConvActivation::Relu6;
                let layers = vec![
                    nn::ConvNorm::new(conv(1), frozen(&x[2..])?, relu6),
                    nn::ConvNorm::new(conv(4).groups(inner), frozen(&x[5..])?, relu6),
                    nn::ConvNorm::new(conv(7), frozen(&x[8..])?, nn::ConvActivation::None),
                ];
                nn::ConvBlock::new(layers, nn::Shortcut::Input).forward_t(&x[0], true)
            },
            |x| {
                let conv = |y: &Tensor, i: usize, groups: usize| {
                    composed::conv2d(y, &x[i], 1, nn::Padding::Same, groups)
                };
                let y = frozen_composed(&conv(&x[0], 1, 1)?, &x[2..])?;
                let y = frozen_composed(&conv(&y, 4, inner)?, &x[5..])?;
                let running = Tensor::ones(inputs, candle_core::DType::F32, &Device::Cpu)?;
                composed::batch_norm(&conv(&y, 7, 1)?, &x[8], &x[9], &running, &running, 1e-3)? + &x[0]
            },
        );
    }
    let shape = [32, 240, 12, 12];
    compare(c, "relu6", &[&shape], |x| nn::relu6(&x[0]), |x| composed::relu6(&x[0]));
    compare(c, "hard-swish", &[&shape], |x| nn::hard_swish(&x[0]), |x| composed::hard_swish(&x[0]));
    compare(
        c,
        "global-avg-pool",
        &[&shape],
        |x| nn::global_avg_pool(&x[0]),
        |x| composed::global_avg_pool(&x[0]),
    );
    compare(
        c,
        "scale-channels",
        &[&shape, &[32, 240, 1, 1]],
        |x| nn::scale_channels(&x[0], &x[1]),
        |x| composed::scale_channels(&x[0], &x[1]),
    );
}

criterion_group!(benches, norms, softmax, activations, others, blocks, attention, convolutions, mobile);
criterion_main!(benches);
