//! Cases that published code computed, in `tests/reference/family`: inputs and outputs, in f64 and f32.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::common::numbers;

/// A case in one element type.
pub(crate) struct Case {
    pub(crate) settings: Value,
    pub(crate) tensors: HashMap<String, Tensor>,
    /// The limit that the case was published with.
    pub(crate) tolerance: f64,
}

impl Case {
    pub(crate) fn load(name: &str, kind: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/family").join(name);
        let json: Value =
            serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
        let file = path.with_extension(format!("{kind}.safetensors"));
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        Self {
            settings: json["settings"].clone(),
            tensors,
            tolerance: if kind == "f64" { 1e-10 } else { 1e-3 },
        }
    }

    pub(crate) fn number(&self, option: &str) -> f64 {
        self.settings.pointer(option).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {option}"))
    }

    pub(crate) fn input(&self, name: &str) -> &Tensor {
        self.tensors.get(&format!("input/{name}")).unwrap_or_else(|| panic!("no input {name}"))
    }

    pub(crate) fn output(&self, name: &str) -> &Tensor {
        self.tensors.get(&format!("output/{name}")).unwrap_or_else(|| panic!("no output {name}"))
    }
}

/// Every number relative to itself, from 1e-3 on.
pub(crate) fn close(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims());
    for (got, expected) in numbers(got).into_iter().zip(numbers(expected)) {
        assert!((got - expected).abs() <= tolerance * expected.abs().max(1e-3), "{got}, not {expected}");
    }
}

/// Every number relative to the largest.
pub(crate) fn close_to_largest(got: &[f64], expected: &Tensor, tolerance: f64) {
    let expected = numbers(expected);
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1e-3f64, |largest, x| largest.max(x.abs()));
    for (got, wanted) in got.iter().zip(&expected) {
        assert!((got - wanted).abs() <= tolerance * largest, "{got}, not {wanted}");
    }
}
