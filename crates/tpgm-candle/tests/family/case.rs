//! One golden case of the wider family: inputs, what must come out, and how far it may be off.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use serde_json::Value;

/// What a subject computes: names as in the file without `output/`, or whole names (`grad/OUTPUT/INPUT`) of gradients that do not
/// come from candle's backward pass.
pub(crate) type Outputs = Vec<(String, Tensor)>;

/// Limits of a folder: `|a - b| / max(1e-3, |b|)`, or over the largest entry of the tensor.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) f64: f64,
    pub(crate) f32: f64,
    pub(crate) of_largest: bool,
}

/// A case in one element type.
pub(crate) struct Case {
    pub(crate) settings: Value,
    pub(crate) tensors: BTreeMap<String, Tensor>,
    vars: BTreeMap<String, Var>,
    pub(crate) limit: f64,
    of_largest: bool,
}

impl Case {
    pub(crate) fn load(
        description: &Value,
        tensors: &Path,
        limit: f64,
        of_largest: bool,
    ) -> anyhow::Result<Self> {
        let tensors: BTreeMap<_, _> =
            candle_core::safetensors::load(tensors, &Device::Cpu)?.into_iter().collect();
        let differentiated = |name: &str| {
            let end = format!("/{name}");
            tensors.keys().any(|key| key.starts_with("grad/") && key.ends_with(&end))
        };
        let vars = tensors
            .iter()
            .filter_map(|(key, tensor)| Some((key.strip_prefix("input/")?, tensor)))
            .filter(|(name, _)| differentiated(name))
            .map(|(name, tensor)| Ok((name.to_owned(), Var::from_tensor(tensor)?)))
            .collect::<Result<_>>()?;
        Ok(Self { settings: description["settings"].clone(), tensors, vars, limit, of_largest })
    }

    /// The type of the numbers.
    pub(crate) fn dtype(&self) -> DType {
        let float =
            self.tensors.iter().find(|(key, tensor)| key.starts_with("input/") && tensor.dtype().is_float());
        float.map_or(DType::F64, |(_, tensor)| tensor.dtype())
    }

    /// An input, a variable if it was differentiated.
    pub(crate) fn input(&self, name: &str) -> Result<Tensor> {
        match (self.vars.get(name), self.tensors.get(&format!("input/{name}"))) {
            (Some(var), _) => Ok(var.as_tensor().clone()),
            (None, Some(tensor)) => Ok(tensor.clone()),
            (None, None) => candle_core::bail!("the case has no input `{name}`"),
        }
    }

    /// An input as numbers.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        numbers(&self.input(name)?)
    }

    /// The names K of inputs `prefix/K`.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let start = format!("input/{prefix}/");
        self.tensors.keys().filter_map(|key| key.strip_prefix(&start)).map(str::to_owned).collect()
    }

    /// A number among the settings.
    pub(crate) fn number(&self, option: &str) -> Result<f64> {
        match self.settings.pointer(option).and_then(Value::as_f64) {
            Some(number) => Ok(number),
            None => candle_core::bail!("the case has no setting `{option}`"),
        }
    }

    /// A flag among the settings; not there is off.
    pub(crate) fn flag(&self, option: &str) -> bool {
        self.settings[option] == true
    }

    /// A tensor of the case's type.
    pub(crate) fn tensor(&self, values: &[f64], like: &Tensor) -> Result<Tensor> {
        Tensor::from_slice(values, like.shape(), &Device::Cpu)?.to_dtype(like.dtype())
    }

    /// Compares everything that the file expects; what is off or was not computed.
    pub(crate) fn check(&self, outputs: &Outputs) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let mut compared = BTreeSet::new();
        let mut compare = |key: &str, got: &Tensor| -> Result<Option<String>> {
            compared.insert(key.to_owned());
            match self.tensors.get(key) {
                Some(expected) => self.off(key, got, expected),
                None => Ok(Some(format!("{key} is not in the case"))),
            }
        };
        for (name, value) in outputs {
            if name.starts_with("grad/") {
                problems.extend(compare(name, value)?);
                continue;
            }
            problems.extend(compare(&format!("output/{name}"), value)?);
            let prefix = format!("grad/{name}/");
            let given = |key: &String| outputs.iter().any(|(name, _)| name == key);
            let wanted: Vec<&String> =
                self.tensors.keys().filter(|key| key.starts_with(&prefix) && !given(key)).collect();
            if wanted.is_empty() {
                continue;
            }
            let scalar = match self.tensors.get(&format!("cotangent/{name}")) {
                Some(cotangent) => (value * cotangent)?.sum_all()?,
                None => value.sum_all()?,
            };
            let grads = scalar.backward()?;
            for (name, var) in &self.vars {
                let (key, zeros) = (format!("{prefix}{name}"), var.zeros_like()?);
                let got = grads.get(var).unwrap_or(&zeros);
                if wanted.contains(&&key) {
                    problems.extend(compare(&key, got)?);
                } else if !given(&key) && numbers(got)?.iter().any(|x| *x != 0.0) {
                    problems.push(format!("{key} is not 0, but the output does not depend on that input"));
                }
            }
        }
        let expected = |key: &&String| key.starts_with("output/") || key.starts_with("grad/");
        let left: Vec<_> =
            self.tensors.keys().filter(expected).filter(|key| !compared.contains(*key)).collect();
        if !left.is_empty() {
            problems.push(format!("not computed here: {left:?}"));
        }
        Ok(problems)
    }

    /// How a tensor is off, if it is.
    fn off(&self, key: &str, got: &Tensor, expected: &Tensor) -> Result<Option<String>> {
        if got.dims() != expected.dims() {
            return Ok(Some(format!("{key} is {:?}, not {:?}", got.dims(), expected.dims())));
        }
        let (got, expected) = (numbers(got)?, numbers(expected)?);
        let largest = expected.iter().fold(1e-3f64, |x, y| x.max(y.abs()));
        let scale = |x: f64| if self.of_largest { largest } else { x.abs().max(1e-3) };
        let off = |(got, expected): (&f64, &f64)| {
            let off = (got - expected).abs() / scale(*expected);
            (if off.is_nan() { f64::INFINITY } else { off }, *got, *expected)
        };
        let worst = got.iter().zip(&expected).map(off).max_by(|a, b| a.0.total_cmp(&b.0));
        Ok(worst.filter(|(off, ..)| *off > self.limit).map(|(off, got, expected)| {
            format!("{key} is {got:e}, not {expected:e}: off by {off:.1e} (limit {:.0e})", self.limit)
        }))
    }
}

/// All elements as f64.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}
