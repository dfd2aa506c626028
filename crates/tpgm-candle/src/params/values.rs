//! Values of a whole model: taken, put back, and reset.

use std::collections::{BTreeMap, HashSet};

use candle_core::{Tensor, Var};

use super::anchor::Anchor;
use super::error::{Error, Result};
use super::{Params, Role};
use crate::memory::{cast, to_tensor};

impl Params {
    /// All that training changes, by name: trainable parameters and buffers. The tensors share storage with the
    /// variables, so they change as training goes on; [`Tensor::copy`] takes a snapshot.
    pub fn values(&self) -> BTreeMap<String, Tensor> {
        let mut values = self.tensors();
        values.extend(self.buffers());
        values
    }

    /// Puts values into the existing variables, converting their element type. There must be one for every trainable
    /// parameter and buffer, and no other: what [`Params::values`] gave. They may share storage with the variables.
    ///
    /// # Errors
    ///
    /// [`Error::ValueNames`] or [`Error::ShapeMismatch`], with nothing changed; or the device fails.
    pub fn load_values(&self, values: &BTreeMap<String, Tensor>) -> Result<()> {
        let targets = self.variables()?;
        let missing: Vec<String> =
            targets.keys().filter(|name| !values.contains_key(*name)).cloned().collect();
        let unknown: Vec<String> =
            values.keys().filter(|name| !targets.contains_key(*name)).cloned().collect();
        if !missing.is_empty() || !unknown.is_empty() {
            return Err(Error::ValueNames { missing, unknown });
        }
        // A value inside a variable would change, or refuse to be copied, while variables are set one by one.
        let live: HashSet<usize> = targets.values().map(|var| storage(var)).collect();
        let mut pairs = Vec::with_capacity(targets.len());
        for (name, var) in &targets {
            let value = &values[name];
            if value.shape() != var.shape() {
                return Err(Error::ShapeMismatch {
                    tensor: name.clone(),
                    what: "value",
                    expected: var.dims().to_vec(),
                    got: value.dims().to_vec(),
                });
            }
            let value = cast(&value.to_device(var.device())?, var.dtype())?;
            pairs.push((var, if live.contains(&storage(&value)) { value.copy()? } else { value }));
        }
        for (var, value) in pairs {
            var.set(&value)?;
        }
        Ok(())
    }

    /// Gives every variable with a pre-trained value that value again. Heads and variables with the zero anchor are left
    /// as they are: a LoRA pair of zeros would never learn again.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn reset_to_anchors(&self) -> Result<()> {
        for param in self.all() {
            let Anchor::Pretrained(anchor) = param.anchor() else { continue };
            let var = param.var();
            var.set(&cast(&to_tensor(anchor.slice(), var.shape(), var.device())?, var.dtype())?)?;
        }
        Ok(())
    }

    /// The variables behind [`Params::values`].
    pub(crate) fn variables(&self) -> Result<BTreeMap<String, Var>> {
        let registry = self.registry();
        let params = registry.params.iter().map(|(name, param)| Ok((name.clone(), param.var().clone())));
        let buffers = registry.constants.iter().filter(|(_, (role, _))| *role == Role::Buffer);
        // A buffer is a variable already, so this makes no other one.
        params
            .chain(buffers.map(|(name, (_, tensor))| Ok((name.clone(), Var::from_tensor(tensor)?))))
            .collect()
    }
}

/// Which memory a tensor lies in.
fn storage(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref(&*storage).addr()
}
