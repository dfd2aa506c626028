//! The layers of `nn` compute the same on a GPU, with the same gradients.

use candle_core::{DType, Device, Module, ModuleT, Result, Tensor, Var};
use tpgm_candle::nn;

use crate::{agree, device, flat, values};

type Layer = fn(&[Tensor]) -> Result<Tensor>;

/// Layers with the shapes of their arguments.
fn layers() -> Vec<(&'static str, Vec<Vec<usize>>, Layer)> {
    let x = || vec![6, 8];
    vec![
        ("gelu", vec![x()], |t| nn::gelu(&t[0])),
        ("gelu_tanh", vec![x()], |t| nn::gelu_tanh(&t[0])),
        ("quick_gelu", vec![x()], |t| nn::quick_gelu(&t[0])),
        ("silu", vec![x()], |t| nn::silu(&t[0])),
        ("gated_silu", vec![x(), x()], |t| nn::gated_silu(&t[0], &t[1])),
        // Rows with gaps, which the kernels read where they are.
        ("gated_silu of halves", vec![vec![6, 16]], |t| {
            nn::gated_silu(&t[0].narrow(1, 0, 8)?, &t[0].narrow(1, 8, 8)?)
        }),
        ("rms_norm of parts", vec![x(), vec![5]], |t| {
            nn::RmsNorm::new(t[1].clone(), 1e-5).forward(&t[0].narrow(1, 2, 5)?)
        }),
        ("relu", vec![x()], |t| nn::relu(&t[0])),
        ("add_bias", vec![x(), vec![8]], |t| nn::add_bias(&t[0], &t[1])),
        ("linear", vec![x(), vec![3, 8], vec![3]], |t| {
            nn::Linear::new(t[1].clone(), Some(t[2].clone())).forward(&t[0])
        }),
        ("matmul", vec![vec![2, 3, 4, 5], vec![2, 3, 5, 6]], |t| nn::matmul(&t[0], &t[1])),
        ("matmul_transposed", vec![vec![2, 3, 4, 5], vec![2, 3, 6, 5]], |t| {
            nn::matmul_transposed(&t[0], &t[1])
        }),
        ("layer_norm", vec![x(), vec![8], vec![8]], |t| {
            nn::LayerNorm::new(t[1].clone(), t[2].clone(), 1e-5).forward(&t[0])
        }),
        ("rms_norm", vec![x(), vec![8]], |t| nn::RmsNorm::new(t[1].clone(), 1e-5).forward(&t[0])),
        ("softmax", vec![x()], |t| nn::softmax_last_dim(&t[0])),
        ("log_softmax", vec![x()], |t| nn::log_softmax_last_dim(&t[0])),
        ("cross_entropy", vec![x()], |t| {
            nn::cross_entropy_smoothed(&t[0], &Tensor::new(&[0u32, 7, 3, 3, 1, 5], t[0].device())?, 0.1)
        }),
        ("rope", vec![vec![1, 2, 5, 8]], |t| {
            let angles = values((5, 4), 7).to_dtype(t[0].dtype())?.to_device(t[0].device())?;
            nn::rope(&t[0], &angles.cos()?, &angles.sin()?)
        }),
        ("rope_i", vec![vec![1, 2, 5, 8]], |t| {
            let angles = values((5, 4), 7).to_dtype(t[0].dtype())?.to_device(t[0].device())?;
            nn::rope_i(&t[0], &angles.cos()?, &angles.sin()?)
        }),
        ("max_pool2d", vec![vec![1, 2, 6, 6]], |t| nn::max_pool2d(&t[0], (2, 2), (2, 2))),
        ("conv2d", vec![vec![2, 2, 6, 6], vec![3, 2, 3, 3]], |t| {
            nn::Conv2d::new(t[1].clone()).stride(2).padding(1).forward(&t[0])
        }),
        ("batch_norm", vec![vec![4, 3, 5], vec![3], vec![3]], |t| {
            let running = Tensor::ones(3, t[0].dtype(), t[0].device())?;
            let norm = nn::BatchNorm::new(t[1].clone(), t[2].clone(), &running, &running, 1e-5)?;
            norm.forward_t(&t[0], true)
        }),
        ("dropout", vec![x()], |t| nn::Dropout::new(0.5, &nn::DropoutRng::new(5))?.forward_t(&t[0], true)),
    ]
}

/// The result, and the gradient of every argument of a weighted sum of it.
fn run(layer: Layer, shapes: &[Vec<usize>], dtype: DType, device: &Device) -> Vec<f64> {
    let var = |(seed, shape): (u64, &Vec<usize>)| {
        let value = values(shape.as_slice(), seed).to_dtype(dtype).unwrap().to_device(device).unwrap();
        Var::from_tensor(&value).unwrap()
    };
    let vars: Vec<Var> = (1..).zip(shapes).map(var).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = layer(&tensors).unwrap();
    // Some layers widen their result: the cross entropy of bf16 logits is f32.
    let weights = values(y.shape(), 9).to_dtype(y.dtype()).unwrap().to_device(device).unwrap();
    let grads = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let grads = vars.iter().flat_map(|var| flat(grads.get(var).unwrap()));
    flat(&y).into_iter().chain(grads).collect()
}

#[test]
fn layers_agree() {
    let Some(device) = device() else { return };
    for (name, shapes, layer) in layers() {
        for (dtype, limit) in [(DType::F64, 1e-5), (DType::F32, 1e-3)] {
            let what = format!("{name} {dtype:?}");
            let (got, expected) =
                (run(layer, &shapes, dtype, &device), run(layer, &shapes, dtype, &Device::Cpu));
            agree(&what, &device, &got, &expected, limit);
        }
        // In half precision nothing is compared here: it has to run, and to give numbers.
        let got = run(layer, &shapes, DType::BF16, &device);
        assert!(got.iter().all(|x| x.is_finite()), "{name} BF16: {got:?}");
    }
}
