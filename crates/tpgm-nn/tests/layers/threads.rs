//! The same bits on any number of threads.

use candle_core::{DType, Device, Module, ModuleT, Result, Tensor};
use tpgm_nn::{
    BatchNorm, Conv2d, ConvActivation, ConvBlock, ConvNorm, Dropout, DropoutRng, Embedding, LayerNorm,
    Linear, Padding, RmsNorm, Shortcut, Statistics, cross_entropy_smoothed, gelu, global_avg_pool,
    masked_softmax, matmul, matmul_transposed, max_pool2d, rope, scale_channels, sigmoid, softmax_last_dim,
};

use crate::gradients::{flat, gradients, values, weighted_sum};

/// One of everything, over tensors of several pieces of work.
fn model(x: &[Tensor]) -> Result<Tensor> {
    let rows = x[0].dim(0)?;
    let y = LayerNorm::new(x[1].clone(), x[2].clone(), 1e-5).forward(&x[0])?;
    let y = gelu(&Linear::new(x[3].clone(), Some(x[2].clone())).forward(&y)?)?;
    let y = Dropout::new(0.1, &DropoutRng::new(3))?.forward_t(&y, true)?;
    let y = RmsNorm::new(x[1].clone(), 1e-5).forward(&y)?;
    let angles = values((rows, 18), 4).to_dtype(y.dtype())?;
    let y = rope(&y.reshape((1, 1, rows, 36))?, &angles.cos()?, &angles.sin()?)?;
    let tokens = y.reshape((rows / 50, 50, 36))?;
    let scores = softmax_last_dim(&matmul_transposed(&tokens, &tokens)?)?;
    let y = matmul(&scores, &tokens)?.reshape((1, 1, rows, 36))?;
    let y = max_pool2d(&y, (2, 2), (2, 1))?;
    let y = Conv2d::new(x[4].clone()).padding(1).forward(&y.reshape((50, 1, 40, 35))?)?;
    let running = Tensor::ones(3, y.dtype(), &Device::Cpu)?;
    let norm = BatchNorm::new(x[5].clone(), x[5].clone(), &running, &running, 1e-5)?;
    let y = norm.forward_t(&y, true)?.sum(1)?.reshape((1, 1, rows / 2, 35))?;
    let y = softmax_last_dim(&y)?;
    let labels: Vec<u32> = (0..rows / 2).map(|i| i as u32 % 35).collect();
    let labels = Tensor::from_vec(labels, (1, 1, rows / 2), &Device::Cpu)?;
    cross_entropy_smoothed(&y, &labels, 0.1)
}

/// Rows of a table, some of them many times, and the causal weights of each with those before it.
fn tokens(x: &[Tensor]) -> Result<Tensor> {
    let ids: Vec<u32> = (0..1600).map(|i| if i % 3 == 0 { 7 } else { i * 31 % 300 }).collect();
    let y = Embedding::new(x[0].clone()).forward(&Tensor::from_vec(ids, (8, 4, 50), &Device::Cpu)?)?;
    let weights = masked_softmax(&matmul_transposed(&y, &y)?, 0.25, None, true)?;
    let mask = values((8, 1, 1, 50), 7).to_dtype(y.dtype())?;
    let masked = masked_softmax(&matmul_transposed(&y, &y)?, 0.25, Some(&mask), false)?;
    matmul(&(weights + masked)?, &y)
}

/// An inverted residual with squeeze-excite, and a convolution that makes columns, over several tasks of several images.
fn images(x: &[Tensor]) -> Result<Tensor> {
    let norm = |i: usize| {
        let running = Tensor::ones(x[i].dims()[0], x[i].dtype(), &Device::Cpu)?;
        let norm = BatchNorm::new(x[i].clone(), x[i].clone(), &running, &running, 1e-5)?;
        Ok::<_, candle_core::Error>(norm.statistics(Statistics::Running))
    };
    let conv = |i: usize| Conv2d::new(x[i].clone());
    let stem = ConvNorm::new(conv(1).stride(2).padding(Padding::Same), norm(2)?, ConvActivation::Silu);
    let expand = ConvNorm::new(conv(3), norm(4)?, ConvActivation::Relu6);
    let depthwise = conv(5).groups(48).padding(2);
    let depthwise = ConvNorm::new(depthwise, norm(6)?, ConvActivation::HardSwish);
    let y = ConvBlock::new(vec![stem, expand, depthwise], Shortcut::None).forward_t(&x[0], true)?;
    let y = scale_channels(&y, &sigmoid(&global_avg_pool(&y)?)?)?;
    conv(7).groups(3).padding(1).forward(&y)
}

/// The blocks of a ResNet: one with a projection, one with its input, whose weights are larger than its images.
fn residuals(x: &[Tensor]) -> Result<Tensor> {
    let layer = |i: usize, stride: usize, activation| {
        let conv = Conv2d::new(x[i].clone()).stride(stride).padding(x[i].dims()[2] / 2);
        let (channels, dtype) = (x[i].dims()[0], x[i].dtype());
        let ones = Tensor::ones(channels, dtype, &Device::Cpu)?;
        let zeros = ones.zeros_like()?;
        let norm = BatchNorm::new(ones.clone(), zeros.clone(), &zeros, &ones, 1e-5)?;
        Ok::<_, candle_core::Error>(ConvNorm::new(conv, norm.statistics(Statistics::Running), activation))
    };
    let (relu, none) = (ConvActivation::Relu, ConvActivation::None);
    let convs = vec![layer(1, 1, relu)?, layer(2, 2, relu)?, layer(3, 1, none)?];
    let shortcut = Shortcut::Projection(Box::new(layer(4, 2, none)?));
    let y = ConvBlock::new(convs, shortcut).activation(relu).forward_t(&x[0], true)?;
    let convs = vec![layer(5, 1, relu)?, layer(6, 1, none)?];
    ConvBlock::new(convs, Shortcut::Input).activation(relu).forward_t(&y, true)
}

#[test]
fn same_bits_on_any_number_of_threads() {
    for dtype in [DType::F32, DType::BF16] {
        let inputs: Vec<Tensor> = [
            values((33, 24, 19, 17), 1),
            values((16, 24, 1, 1), 2),
            values((16, 16, 3, 3), 3),
            values((64, 16, 1, 1), 4),
            values((64, 24, 1, 1), 5),
            values((64, 64, 3, 3), 6),
            values((64, 64, 3, 3), 7),
        ]
        .iter()
        .map(|x| x.affine(0.5, 0.0).unwrap().to_dtype(dtype).unwrap())
        .collect();
        same_bits(&inputs, dtype, residuals);
        same_bits(&[values((300, 24), 1).to_dtype(dtype).unwrap()], dtype, tokens);
        let inputs: Vec<Tensor> = [
            values((33, 3, 40, 38), 1),
            values((16, 3, 3, 3), 2),
            values(16, 3),
            values((48, 16, 1, 1), 4),
            values(48, 5),
            values((48, 1, 5, 5), 6),
            values(48, 7),
            values((6, 16, 3, 3), 8),
        ]
        .iter()
        .map(|x| x.to_dtype(dtype).unwrap())
        .collect();
        same_bits(&inputs, dtype, images);
        let inputs: Vec<Tensor> = [
            values((4000, 36), 1),
            values(36, 2),
            values(36, 3),
            values((36, 36), 4),
            values((3, 1, 3, 3), 5),
            values(3, 6),
        ]
        .iter()
        .map(|x| x.to_dtype(dtype).unwrap())
        .collect();
        same_bits(&inputs, dtype, model);
    }
}

fn same_bits(inputs: &[Tensor], dtype: DType, model: impl Fn(&[Tensor]) -> Result<Tensor> + Sync) {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let loss = flat(&weighted_sum(&model(inputs).unwrap()).unwrap());
            let grads: Vec<_> = gradients(inputs, &model).iter().map(flat).collect();
            (loss, grads)
        })
    };
    let one = run(1);
    assert!(one.1.iter().all(|grad| grad.iter().any(|&x| x != 0.0)));
    for threads in [2, 3, 8] {
        assert_eq!(run(threads), one, "{threads} threads, {dtype:?}");
    }
}
