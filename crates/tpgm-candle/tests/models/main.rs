//! Models against candle-transformers, and their gradients against finite differences.
#![allow(clippy::unwrap_used)]

mod bert;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;

/// Gives every variable that a model has asked for reproducible values, norms and biases too, and saves them.
fn checkpoint(map: &VarMap, path: &Path) {
    let mut data: Vec<_> = map.data().lock().unwrap().clone().into_iter().collect();
    data.sort_by(|a, b| a.0.cmp(&b.0));
    for (seed, (name, var)) in data.iter().enumerate() {
        let values: Vec<f64> = (0..var.elem_count())
            .map(|i| ((i as f64 + 1.0) * 12.9898 + seed as f64 * 78.233).sin() * 43758.5453)
            .map(|x| (x - x.floor() - 0.5) * 0.4)
            .collect();
        let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
        let values = if name.contains("LayerNorm.weight") { (values + 1.0).unwrap() } else { values };
        var.set(&values.to_dtype(var.dtype()).unwrap()).unwrap();
    }
    map.save(path).unwrap();
}

/// The largest difference between two tensors.
fn deviation(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap();
    difference.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}
