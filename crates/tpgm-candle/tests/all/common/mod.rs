//! The golden cases of `tpgm-core`, with their models in candle.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;
use tpgm_candle::{Anchor, AnchorData, Group, Param, Params, core::Buffer};

/// A case in one of its element types. The layout is described beside the files.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) json: Value,
    pub(crate) dtype: DType,
    tensors: HashMap<String, Tensor>,
}

/// All cases whose name begins with `method`, in f64 and f32.
pub(crate) fn cases(method: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tpgm-core/tests/golden");
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let index = read(folder.join("index.json"));
    let mut cases = Vec::new();
    for entry in index["cases"].as_array().unwrap() {
        let name = entry["case"].as_str().unwrap();
        for (tag, dtype) in [("f64", DType::F64), ("f32", DType::F32)] {
            if name.starts_with(method) {
                let file = folder.join(entry["files"][tag].as_str().unwrap());
                cases.push(Case {
                    name: format!("{name} {tag}"),
                    json: read(folder.join(entry["json"].as_str().unwrap())),
                    dtype,
                    tensors: candle_core::safetensors::load(file, &Device::Cpu).unwrap(),
                });
            }
        }
    }
    assert!(!cases.is_empty());
    cases
}

/// A case's parameters as candle variables, and its model.
pub(crate) struct Model {
    pub(crate) params: Params,
    pub(crate) vars: BTreeMap<String, Var>,
    frozen: BTreeMap<String, Tensor>,
}

impl Case {
    pub(crate) fn number(&self, value: &Value) -> f64 {
        value.as_f64().unwrap_or_else(|| panic!("{}: no number", self.name))
    }

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no `{name}`", self.name))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The model at `PART/P`, trainable parameters registered with their anchors.
    pub(crate) fn model(&self, start: &str) -> Model {
        let (mut params, mut vars, mut frozen) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut groups = Vec::new();
        for param in self.json["params"].as_array().unwrap() {
            let name = param["name"].as_str().unwrap();
            let value = self.get(&format!("{start}/{name}"));
            if param["trainable"] == Value::Bool(false) {
                frozen.insert(name.to_owned(), value.clone());
                continue;
            }
            if param["excluded"] == Value::Bool(true) {
                groups.push(Group::new(name).excluded());
            }
            let var = Var::from_tensor(value).unwrap();
            let anchor = match self.json["anchor"].as_str() {
                Some("zeros") => Anchor::Zero,
                _ => {
                    let anchor = numbers(self.get(&format!("anchor/{name}")));
                    let anchor = match self.dtype {
                        DType::F64 => Buffer::F64(anchor),
                        _ => Buffer::F32(anchor.into_iter().map(|x| x as f32).collect()),
                    };
                    Anchor::Pretrained(AnchorData::new(anchor))
                }
            };
            vars.insert(name.to_owned(), var.clone());
            params.push(Param::new(name, var, anchor));
        }
        let params = Params::from_params(params).unwrap();
        Model { params: groups.into_iter().fold(params, Params::group), vars, frozen }
    }

    /// Mean cross-entropy on the batch of evaluation `i`, counted from 0 over the whole run.
    pub(crate) fn loss(&self, model: &Model, i: usize) -> candle_core::Result<Tensor> {
        let batch = i % self.json["n_batches"].as_u64().unwrap() as usize;
        let x = self.get("x").get(batch)?;
        let y = self.get("y").get(batch)?;
        let linear = |h: &Tensor, name: &str| {
            let (w, b) = (model.tensor(&format!("{name}.weight")), model.tensor(&format!("{name}.bias")));
            h.matmul(&w.t()?)?.broadcast_add(b)
        };
        let json = &self.json["model"];
        let mut logits = match json["kind"].as_str().unwrap() {
            "mlp" => {
                let layers = json["dims"].as_array().unwrap().len() - 1;
                let mut h = x;
                for k in 1..=layers {
                    h = linear(&h, &format!("fc{k}"))?;
                    if k < layers {
                        h = h.tanh()?;
                    }
                }
                h
            }
            "conv" => {
                let h = x.conv2d(model.tensor("conv1.weight"), 0, 1, 1, 1)?;
                let bias = model.tensor("conv1.bias");
                let h = h.broadcast_add(&bias.reshape((1, bias.elem_count(), 1, 1))?)?.tanh()?;
                linear(&h.flatten_from(1)?, "head")?
            }
            kind => panic!("unknown model `{kind}`"),
        };
        if json["scale"] == Value::Bool(true) {
            logits = logits.broadcast_mul(model.tensor("scale.weight"))?;
        }
        let loss = candle_nn::loss::cross_entropy(&logits, &y)?;
        match json.get("extra") {
            // candle stops at a factor that is the number 0; at a tensor that is 0 it goes on.
            Some(Value::Array(_)) => &loss + (model.tensor("dead.weight").sum_all()? * loss.zeros_like()?)?,
            _ => Ok(loss),
        }
    }

    /// Compares every element: `1e-10` in f64, `1e-3` in f32, relative with a floor of 1e-3.
    pub(crate) fn compare(&self, name: &str, got: &[f64]) {
        let limit = if self.dtype == DType::F64 { 1e-10 } else { 1e-3 };
        let expected = numbers(self.get(name));
        assert_eq!(got.len(), expected.len(), "{}: {name}", self.name);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let deviation = (got - expected).abs() / expected.abs().max(1e-3);
            assert!(deviation <= limit, "{}: {name}[{i}] is {got}, expected {expected}", self.name);
        }
    }
}

impl Model {
    fn tensor(&self, name: &str) -> &Tensor {
        self.vars.get(name).map(Var::as_tensor).or(self.frozen.get(name)).unwrap()
    }

    /// Compares all trainable weights with `PREFIX/P`, as far as the case has them; returns how many that are.
    pub(crate) fn compare(&self, case: &Case, prefix: &str) -> usize {
        let names = self.vars.iter().map(|(name, var)| (format!("{prefix}/{name}"), var));
        let known: Vec<_> = names.filter(|(name, _)| case.find(name).is_some()).collect();
        known.iter().for_each(|(name, var)| case.compare(name, &numbers(var)));
        known.len()
    }
}

/// All elements in f64.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
