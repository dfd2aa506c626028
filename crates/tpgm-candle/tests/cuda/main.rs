//! The same training on the CPU and on a GPU.
//!
//! `TPGM_TEST_DEVICE` says on what the GPU's side of each test runs:
//!
//! - `cuda`: on the first GPU, and a machine without one fails;
//! - `cpu`: on the CPU, in the GPU's place;
//! - unset: with feature `cuda` on the first GPU, and every test prints why it skips where there is none; without the
//!   feature on the CPU.
//!
//! The CPU in the GPU's place shows no difference between the two devices: both sides are independent runs of the same
//! code, so that they must agree to the bit. But everything that these tests ask of candle, of their models and of the
//! optimizers is done, and what panics or fails on any device is found on machines that have no GPU. Tests of what only
//! two devices or a real GPU can show are in `gpu.rs`.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests

#[cfg(feature = "cuda")]
mod gpu;
mod layers;
mod operands;
mod trajectories;

use candle_core::{DType, Device, Shape, Tensor, Var};
use tpgm_candle::core::Buffer;
use tpgm_candle::{Anchor, AnchorData, Param, Params};

/// The variable that chooses the device.
const VARIABLE: &str = "TPGM_TEST_DEVICE";

/// What stands on the GPU's side of a test: see above. `None`, after a line that says so, where the test cannot run.
fn device() -> Option<Device> {
    match std::env::var(VARIABLE).as_deref() {
        Ok("cpu") => Some(Device::Cpu),
        Ok("cuda") => {
            Some(Device::new_cuda(0).unwrap_or_else(|error| panic!("{VARIABLE} is `cuda`: {error}")))
        }
        Ok(other) => panic!("{VARIABLE} is `{other}`, but must be `cpu` or `cuda`"),
        Err(_) if cfg!(feature = "cuda") => {
            Device::new_cuda(0).inspect_err(|error| println!("skipped: no GPU ({error})")).ok()
        }
        Err(_) => Some(Device::Cpu),
    }
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

/// What was got on `device` is what the CPU got: up to `limit`, relative to the larger of that and 1e-2, or to the bit
/// where the device is the CPU itself.
fn agree(what: &str, device: &Device, got: &[f64], expected: &[f64], limit: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let close = match device {
            Device::Cpu => got.to_bits() == expected.to_bits(),
            _ => (got - expected).abs() / expected.abs().max(1e-2) <= limit,
        };
        assert!(close, "{what}: element {i} is {got} on {:?}, {expected} on the CPU", device.location());
    }
}
