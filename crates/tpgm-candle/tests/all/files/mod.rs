//! Checkpoint files for tests, and what was loaded from them.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use tpgm_candle::{Anchor, Params};

pub(crate) fn ramp(shape: &[usize], dtype: DType) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| i as f32 / 8.0 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

pub(crate) fn save(path: &Path, tensors: &[(&str, Tensor)]) -> PathBuf {
    let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
    path.to_owned()
}

pub(crate) fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn anchor(params: &Params, name: &str) -> Vec<f64> {
    match params.get(name).unwrap().anchor() {
        Anchor::Pretrained(data) => data.slice().to_f64(),
        other => panic!("{other:?}"),
    }
}
