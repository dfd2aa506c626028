//! The tensors of a case.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::error::GoldenError;
use super::model::Param;
use crate::element::DType;

/// One tensor, widened.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f64>,
    dtype: Dtype,
}

/// The tensors of one file, and which of them have been looked at.
#[derive(Debug)]
pub(super) struct TensorFile {
    pub(super) path: PathBuf,
    pub(super) dtype: DType,
    tensors: BTreeMap<String, Tensor>,
    seen: RefCell<BTreeSet<String>>,
}

impl TensorFile {
    /// Reads a file whose tensors are of type `dtype`, labels and learning rates apart.
    pub(super) fn read(path: &Path, dtype: DType) -> Result<Self, GoldenError> {
        let bytes =
            std::fs::read(path).map_err(|source| GoldenError::Io { path: path.to_owned(), source })?;
        let damaged = |source| GoldenError::Safetensors { path: path.to_owned(), source };
        let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let values = widen(view.dtype(), view.data()).ok_or_else(|| GoldenError::DType {
                path: path.to_owned(),
                tensor: name.clone(),
                got: format!("{:?}", view.dtype()),
                expected: "F64, F32 or I64",
            })?;
            let tensor = Tensor { shape: view.shape().to_vec(), values, dtype: view.dtype() };
            tensors.insert(name, tensor);
        }
        Ok(Self { path: path.to_owned(), dtype, tensors, seen: RefCell::default() })
    }

    /// A tensor of the file's own type, if it is there.
    pub(super) fn find(&self, name: &str) -> Result<Option<&Tensor>, GoldenError> {
        let (wanted, label) = match self.dtype {
            DType::F64 => (Dtype::F64, "F64"),
            _ => (Dtype::F32, "F32"),
        };
        self.find_typed(name, wanted, label)
    }

    /// A tensor of the file's own type.
    pub(super) fn get(&self, name: &str) -> Result<&Tensor, GoldenError> {
        self.find(name)?.ok_or_else(|| self.missing(name))
    }

    /// The learning rates, F64 in every file.
    pub(super) fn learning_rates(&self, steps: usize) -> Result<&[f64], GoldenError> {
        let lr = self.find_typed("lr", Dtype::F64, "F64")?.ok_or_else(|| self.missing("lr"))?;
        self.expect_shape("lr", lr, &[steps])?;
        Ok(&lr.values)
    }

    /// The labels, I64 in every file.
    pub(super) fn labels(&self) -> Result<&Tensor, GoldenError> {
        self.find_typed("y", Dtype::I64, "I64")?.ok_or_else(|| self.missing("y"))
    }

    /// `PREFIX/NAME` of a parameter, in its shape, if it is there.
    pub(super) fn find_param(&self, prefix: &str, param: &Param) -> Result<Option<Vec<f64>>, GoldenError> {
        let name = format!("{prefix}/{}", param.name);
        match self.find(&name)? {
            None => Ok(None),
            Some(tensor) => {
                self.expect_shape(&name, tensor, &param.shape)?;
                Ok(Some(tensor.values.clone()))
            }
        }
    }

    /// `PREFIX/NAME` of every parameter, in its shape.
    pub(super) fn get_params(&self, prefix: &str, params: &[Param]) -> Result<Vec<Vec<f64>>, GoldenError> {
        params
            .iter()
            .map(|param| {
                self.find_param(prefix, param)?
                    .ok_or_else(|| self.missing(&format!("{prefix}/{}", param.name)))
            })
            .collect()
    }

    /// Marks a tensor as known without comparing it.
    pub(super) fn skip(&self, name: &str) {
        self.seen.borrow_mut().insert(name.to_owned());
    }

    /// Fails if some tensor was never looked at.
    pub(super) fn expect_all_seen(&self) -> Result<(), GoldenError> {
        let seen = self.seen.borrow();
        let mut unknown = self.tensors.keys().filter(|name| !seen.contains(*name));
        match unknown.next() {
            None => Ok(()),
            Some(first) => Err(GoldenError::UnknownTensor {
                path: self.path.clone(),
                tensor: first.clone(),
                count: 1 + unknown.count(),
            }),
        }
    }

    pub(super) fn missing(&self, name: &str) -> GoldenError {
        GoldenError::MissingTensor { path: self.path.clone(), tensor: name.to_owned() }
    }

    pub(super) fn expect_shape(
        &self,
        name: &str,
        tensor: &Tensor,
        shape: &[usize],
    ) -> Result<(), GoldenError> {
        if tensor.shape == shape { Ok(()) } else { Err(self.wrong_shape(name, tensor, format!("{shape:?}"))) }
    }

    pub(super) fn wrong_shape(&self, name: &str, tensor: &Tensor, expected: String) -> GoldenError {
        GoldenError::Shape {
            path: self.path.clone(),
            tensor: name.to_owned(),
            got: tensor.shape.clone(),
            expected,
        }
    }

    fn find_typed(
        &self,
        name: &str,
        wanted: Dtype,
        expected: &'static str,
    ) -> Result<Option<&Tensor>, GoldenError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Ok(None);
        };
        self.skip(name);
        if tensor.dtype == wanted {
            Ok(Some(tensor))
        } else {
            Err(GoldenError::DType {
                path: self.path.clone(),
                tensor: name.to_owned(),
                got: format!("{:?}", tensor.dtype),
                expected,
            })
        }
    }
}

/// Little-endian elements as f64. Labels are small, so they survive the widening.
fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    match dtype {
        Dtype::F64 => Some(chunks(bytes).map(f64::from_le_bytes).collect()),
        Dtype::F32 => Some(chunks(bytes).map(|b| f64::from(f32::from_le_bytes(b))).collect()),
        Dtype::I64 => Some(chunks(bytes).map(|b| i64::from_le_bytes(b) as f64).collect()),
        _ => None,
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().copied()
}
