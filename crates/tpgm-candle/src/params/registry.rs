//! What a model has asked for so far.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use tpgm_core::Group;

use super::Param;
use super::anchor::Anchor;
use super::error::{Error, Result};
use super::options::{Options, Role};
use crate::memory::core_dtype;

#[derive(Debug, Default)]
pub(super) struct Registry {
    /// What is trained.
    pub(super) params: BTreeMap<String, Param>,
    /// Tensors under [`Role::Frozen`], and variables under [`Role::Buffer`].
    pub(super) constants: BTreeMap<String, (Role, Tensor)>,
    /// Where each name that a model asked for comes from.
    pub(super) origins: BTreeMap<String, Origin>,
    /// Who has the value of a storage of the checkpoint.
    pub(super) holders: BTreeMap<(String, Role), String>,
    pub(super) groups: Vec<Group>,
    pub(super) options: Options,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the checkpoint, under this name.
    Loaded { key: String },
    /// New; the checkpoint may have a tensor of its name.
    Fresh { replaces: Option<String> },
    /// Another name of a tensor that was there already.
    Tied { to: String, key: String },
    /// Made outside.
    Given,
}

impl Registry {
    /// The tensor of this name.
    pub(super) fn tensor(&self, name: &str) -> Option<Tensor> {
        let name = match self.origins.get(name) {
            Some(Origin::Tied { to, .. }) => to,
            _ => name,
        };
        match self.params.get(name) {
            Some(param) => Some(param.var().as_tensor().clone()),
            None => self.constants.get(name).map(|(_, tensor)| tensor.clone()),
        }
    }

    /// Name and tensor of whoever holds a storage of the checkpoint in this role.
    pub(super) fn holder(&self, storage: &str, role: Role) -> Option<(String, Tensor)> {
        let name = self.holders.get(&(storage.to_owned(), role))?;
        Some((name.clone(), self.tensor(name)?))
    }

    /// Adds a tensor; a variable unless it is frozen.
    pub(super) fn enter(&mut self, name: &str, role: Role, tensor: Tensor, anchor: Anchor) -> Result<Tensor> {
        match role {
            Role::Trainable => {
                core_dtype(name, tensor.dtype())?;
                self.params.insert(name.to_owned(), Param::new(name, Var::from_tensor(&tensor)?, anchor));
            }
            role => {
                self.constants.insert(name.to_owned(), (role, tensor.clone()));
            }
        }
        Ok(tensor)
    }

    /// Adds a parameter made outside.
    pub(super) fn insert(&mut self, param: Param, origin: Origin) -> Result<()> {
        let name = param.name().to_owned();
        if self.origins.contains_key(&name) {
            return Err(Error::DuplicateParam { name });
        }
        self.origins.insert(name.clone(), origin);
        self.params.insert(name, param);
        Ok(())
    }
}
