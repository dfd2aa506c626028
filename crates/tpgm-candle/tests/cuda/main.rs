//! The same training on the CPU and on a GPU. Every test prints why it skips where there is no GPU.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests

mod layers;
mod operands;
mod trajectories;

use candle_core::{DType, Device, Shape, Tensor, Var};
use tpgm_candle::core::Buffer;
use tpgm_candle::{Anchor, AnchorData, Param, Params};

/// The first GPU, if there is one.
fn gpu() -> Option<Device> {
    Device::new_cuda(0).inspect_err(|error| println!("skipped: no GPU ({error})")).ok()
}

/// Reproducible values in -1..1, of f64 on the CPU.
fn values(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let data: Vec<f64> = (0..shape.elem_count()).map(|_| next()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Names and shapes: rows that fit a block and rows that do not, a scalar, and nothing at all.
const SHAPES: [(&str, &[usize]); 6] = [
    ("bias", &[37]),
    ("conv", &[4, 3, 3, 3]),
    ("empty", &[0, 4]),
    ("long", &[2, 20_001]),
    ("scale", &[]),
    ("weight", &[33, 17]),
];

/// Variables on one device.
struct Model {
    params: Params,
    vars: Vec<Var>,
}

impl Model {
    /// Weights a little off their anchors, the same on every device. Anchors are f32, or f64 for f64 weights.
    fn new(dtype: DType, device: &Device) -> Self {
        let mut vars = Vec::new();
        let param = |(seed, (name, shape)): (u64, &(&str, &[usize]))| {
            let anchor = values(*shape, seed).to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap();
            let start = (&anchor + (values(*shape, seed + 100) * 0.01).unwrap()).unwrap();
            let start = start.to_dtype(dtype).unwrap().to_device(device).unwrap();
            let var = Var::from_tensor(&start).unwrap();
            vars.push(var.clone());
            let anchor = match dtype {
                DType::F64 => Buffer::F64(flat(&anchor)),
                _ => Buffer::F32(flat(&anchor).into_iter().map(|x| x as f32).collect()),
            };
            Param::new(*name, var, Anchor::Pretrained(AnchorData::new(anchor)))
        };
        let params: Vec<_> = (1..).zip(&SHAPES).map(param).collect();
        Self { params: Params::from_params(params).unwrap(), vars }
    }

    /// A loss with a curvature and a gradient of its own for every element, and another one for every `step`.
    fn loss(&self, step: u64) -> candle_core::Result<Tensor> {
        let mut sum = Tensor::zeros((), DType::F64, self.vars[0].device())?;
        for (seed, var) in (1000 + 50 * step..).zip(&self.vars).filter(|(_, var)| var.elem_count() > 0) {
            let target = values(var.shape(), seed).to_dtype(var.dtype())?.to_device(var.device())?;
            let term = (var.as_tensor() - target)?.sqr()?.to_dtype(DType::F64)?.sum_all()?;
            sum = (sum + term)?;
        }
        Ok(sum)
    }

    fn values(&self) -> Vec<f64> {
        self.vars.iter().flat_map(|var| flat(var)).collect()
    }
}

/// Relative to the larger of the two and 1e-2.
fn agree(what: &str, got: &[f64], expected: &[f64], limit: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let distance = (got - expected).abs() / expected.abs().max(1e-2);
        assert!(distance <= limit, "{what}: element {i} is {got} on the GPU, {expected} on the CPU");
    }
}
