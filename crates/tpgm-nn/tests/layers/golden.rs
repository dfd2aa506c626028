//! Cases that published code computed, in `tests/reference/family`: inputs, outputs, and gradients of these.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor, Var};
use serde_json::Value;

/// A case in one element type: inputs, and what must come out.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) settings: Value,
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) vars: BTreeMap<String, Var>,
    tolerance: f64,
}

pub(crate) type Outputs = Vec<(&'static str, Tensor)>;

impl Case {
    fn load(path: &Path, kind: &str, tolerance: f64) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let description: Value = serde_json::from_str(&text).unwrap();
        let file = path.with_extension(format!("{kind}.safetensors"));
        let tensors: BTreeMap<_, _> =
            candle_core::safetensors::load(file, &Device::Cpu).unwrap().into_iter().collect();
        let differentiated =
            |name: &str| tensors.keys().any(|key| key.starts_with("grad/") && key.ends_with(name));
        let vars = tensors
            .iter()
            .filter_map(|(key, tensor)| Some((key.strip_prefix("input/")?, tensor)))
            .filter(|(name, _)| differentiated(&format!("/{name}")))
            .map(|(name, tensor)| (name.to_owned(), Var::from_tensor(tensor).unwrap()))
            .collect();
        let name = format!("{} in {kind}", path.with_extension("").display());
        Self { name, settings: description["settings"].clone(), tensors, vars, tolerance }
    }

    pub(crate) fn input(&self, name: &str) -> Tensor {
        match self.vars.get(name) {
            Some(var) => var.as_tensor().clone(),
            None => self.tensors.get(&format!("input/{name}")).unwrap_or_else(|| panic!("{name}")).clone(),
        }
    }

    pub(crate) fn number(&self, option: &str) -> f64 {
        self.settings
            .pointer(option)
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("{}: {option}", self.name))
    }

    pub(crate) fn close(&self, what: &str, got: &Tensor, expected: &Tensor) {
        assert_eq!(got.dims(), expected.dims(), "{}: {what}", self.name);
        let numbers =
            |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (got, expected) in numbers(got).into_iter().zip(numbers(expected)) {
            let off = (got - expected).abs() / expected.abs().max(1e-3);
            assert!(off <= self.tolerance, "{}: {what} is {got}, not {expected}", self.name);
        }
    }

    /// Every output of the file that `outputs` has, with all of its gradients. Returns how many numbers were compared.
    fn check(&self, outputs: &Outputs) {
        for (output, value) in outputs {
            let expected = self.tensors.get(&format!("output/{output}"));
            self.close(output, value, expected.unwrap_or_else(|| panic!("{}: {output}", self.name)));
            let prefix = format!("grad/{output}/");
            let cotangent = self.tensors.get(&format!("cotangent/{output}"));
            let scalar = match cotangent {
                Some(cotangent) => (value * cotangent).unwrap().sum_all().unwrap(),
                None => value.clone(),
            };
            if !self.tensors.keys().any(|key| key.starts_with(&prefix)) {
                continue;
            }
            let grads = scalar.backward().unwrap();
            for (name, var) in &self.vars {
                let got = grads.get(var);
                match (self.tensors.get(&format!("{prefix}{name}")), got) {
                    (Some(expected), Some(got)) => {
                        self.close(&format!("gradient of {output} by {name}"), got, expected)
                    }
                    (Some(expected), None) => {
                        let zero = expected.zeros_like().unwrap();
                        self.close(&format!("gradient of {output} by {name}"), &zero, expected);
                    }
                    (None, Some(got)) => self.close(
                        &format!("gradient of {output} by {name}"),
                        got,
                        &got.zeros_like().unwrap(),
                    ),
                    (None, None) => {}
                }
            }
        }
    }
}

/// Runs `outputs` over all cases of a folder, in both types.
pub(crate) fn golden(folder: &str, cases: usize, outputs: impl Fn(&Case) -> Result<Outputs>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/family").join(folder);
    let files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    assert_eq!(files.len(), cases, "{}", folder.display());
    for file in files {
        // The limits that the cases were published with.
        for (kind, tolerance) in [("f64", 1e-10), ("f32", 1e-3)] {
            let case = Case::load(&file, kind, tolerance);
            case.check(&outputs(&case).unwrap());
        }
    }
}
