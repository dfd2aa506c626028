//! Models against candle-transformers and PyTorch, and their gradients against finite differences.
#![allow(clippy::unwrap_used)]

mod bert;
mod clip;
mod configs;
mod dinov2;
mod efficientnet;
mod families;
mod llama;
mod resnet;
mod resume;
mod vit;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder, VarMap};
use tpgm_candle::Params;

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
        // The factors of norms, and the variances of batch norms.
        let around_one = (name.contains("norm")
            || name.contains("Norm")
            || name.contains("bn")
            || name.contains("downsample.1")
            || name.contains("ln_"))
            && name.ends_with("weight")
            || name.ends_with("running_var");
        let values = if around_one { (values + 1.0).unwrap() } else { values };
        var.set(&values.to_dtype(var.dtype()).unwrap()).unwrap();
    }
    map.save(path).unwrap();
}

/// The largest difference between two tensors.
fn deviation(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap();
    difference.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// The largest difference between two tensors, as a share of the largest element.
fn relative_deviation(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let size: f64 = b.to_dtype(DType::F64).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
    deviation(a, b) / size
}

/// What `make_reference.py`, `make_families.py` or `make_efficientnets.py` of `tpgm-nn` wrote about one model.
struct Reference {
    tensors: HashMap<String, Tensor>,
    name: &'static str,
    folder: tempfile::TempDir,
}

impl Reference {
    fn new(name: &'static str) -> Self {
        Self::of("reference.safetensors", name)
    }

    fn family(name: &'static str) -> Self {
        Self::of("families.safetensors", name)
    }

    fn of(file: &str, name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tpgm-nn/tests/reference").join(file);
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        Self { tensors, name, folder: tempfile::tempdir().unwrap() }
    }

    /// An input or output.
    fn get(&self, what: &str) -> Tensor {
        self.tensors[&format!("{}/{what}", self.name)].clone()
    }

    /// An input or output in f64.
    fn wide(&self, what: &str) -> Tensor {
        self.get(what).to_dtype(DType::F64).unwrap()
    }

    /// The checkpoint in f64.
    fn params(&self) -> Params {
        self.params_with("", |_| true)
    }

    /// The same with a prefix before all names, and only those tensors whose names are wanted.
    fn params_with(&self, prefix: &str, wanted: impl Fn(&str) -> bool) -> Params {
        let of_model = format!("{}/weights/", self.name);
        let weights = self.tensors.iter().filter_map(|(name, x)| {
            let name = name.strip_prefix(&of_model).filter(|name| wanted(name))?;
            Some((format!("{prefix}{name}"), x.clone()))
        });
        let path = self.folder.path().join("model.safetensors");
        candle_core::safetensors::save(&weights.collect::<HashMap<_, _>>(), &path).unwrap();
        Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64)
    }

    /// Its `config.json`.
    fn config(&self) -> PathBuf {
        let path = self.folder.path().join("config.json");
        std::fs::write(&path, self.get("config").to_vec1::<u8>().unwrap()).unwrap();
        path
    }
}

/// A file as people have them.
fn real_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files").join(name)
}

/// Writes a `config.json` into a folder.
fn written(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("config.json");
    std::fs::write(&path, text).unwrap();
    path
}

/// Reproducible images in -1..1.
fn images(shape: (usize, usize, usize, usize), dtype: DType) -> Tensor {
    let count = shape.0 * shape.1 * shape.2 * shape.3;
    let values: Vec<f64> = (0..count).map(|i| ((i as f64 + 0.5) * 7.31).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// How many parameters a model asks for, running statistics aside. It is given zeros, which take no memory.
fn parameters<M>(model: impl FnOnce(VarBuilder<'static>) -> tpgm_candle::nn::Result<M>) -> usize {
    let count = Arc::new(AtomicUsize::new(0));
    let backend = Box::new(Counter(count.clone()));
    model(VarBuilder::from_backend(backend, DType::F32, Device::Cpu)).unwrap();
    count.load(Ordering::Relaxed)
}

struct Counter(Arc<AtomicUsize>);

impl SimpleBackend for Counter {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        if !name.contains("running_") {
            self.0.fetch_add(shape.elem_count(), Ordering::Relaxed);
        }
        Tensor::zeros(shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} without a shape")
    }

    /// What OpenAI's and timm's names are told by.
    fn contains_tensor(&self, name: &str) -> bool {
        ["visual.class_embedding", "visual.attnpool.positional_embedding", "cls_token"].contains(&name)
    }
}
