//! Models that were built on candle's own `VarMap`.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use candle_core::Var;
use candle_nn::VarMap;

use super::anchor::Anchor;
use super::error::{Error, Result};
use super::{Origin, Param, Params, Role};
use crate::files::Value;
use crate::memory;

impl Params {
    /// The variables of a `VarMap`, each with a copy of what it holds now as its anchor. Call it when the pre-trained
    /// values are loaded and before training. Running statistics of batch norm become buffers. Heads need a group with
    /// [`tpgm_core::Group::no_anchor`].
    ///
    /// # Errors
    ///
    /// [`Error::ElementType`](crate::memory::Error::ElementType), or the device fails.
    pub fn from_var_map(map: &VarMap) -> Result<Self> {
        let vars = sorted(map);
        let device = vars.values().next().map(|var| var.device().clone());
        let this = device.map_or_else(Self::default, |device| Self::new(&device));
        for (name, var) in vars {
            let role = this.registry().options.role(&name);
            match role {
                Role::Trainable => this.registry().insert(Param::anchored_here(name, var)?, Origin::Given)?,
                role => {
                    let mut registry = this.registry();
                    registry.enter(&name, role, var.into_inner(), Anchor::None)?;
                    registry.origins.insert(name, Origin::Given);
                }
            }
        }
        Ok(this)
    }

    /// Takes over the variables of a `VarMap` from which a model was built, with anchors from this checkpoint and the
    /// options given so far. The values of the variables stay; [`Params::reset_to_anchors`] loads the checkpoint into
    /// them, also where [`VarMap::load`] fails because there is a new head.
    ///
    /// A model that is built from an empty `VarMap` may ask for other tensors than one built from the checkpoint: it
    /// leaves optional ones out, or makes up some. Those it made up are errors here, and [`Params::report`] lists as
    /// unused those it left out. Frozen variables keep their gradients, which nobody uses.
    ///
    /// # Errors
    ///
    /// [`Error::UndeclaredVariables`] for variables that are neither in the checkpoint nor under a head,
    /// [`Error::ShapeInFile`], [`Error::ElementType`](crate::memory::Error::ElementType), or a damaged file.
    pub fn adopt(self, map: &VarMap) -> Result<Self> {
        let vars = sorted(map);
        let mut registry = self.registry();
        let mut undeclared = vec![];
        for (name, var) in vars {
            let role = registry.options.role(&name);
            let key = registry.options.checkpoint_name(&name);
            let storage = self.source.storage(&key).map(str::to_owned);
            if registry.origins.contains_key(&name) {
                return Err(Error::DuplicateParam { name });
            }
            let (anchor, origin) = if registry.options.head.matches(&name) {
                (Anchor::None, Origin::Fresh { replaces: storage })
            } else if storage.is_none() {
                undeclared.push(name);
                continue;
            } else {
                (self.anchor_of(&name, &key, &var)?, Origin::Loaded { key })
            };
            let zero = registry.options.zero_anchor.matches(&name);
            registry.enter(&name, role, var.into_inner(), if zero { Anchor::Zero } else { anchor })?;
            registry.origins.insert(name, origin);
        }
        drop(registry);
        match undeclared[..] {
            [] => Ok(self),
            _ => Err(Error::UndeclaredVariables { tensors: undeclared }),
        }
    }

    /// The checkpoint's value of a variable that exists.
    fn anchor_of(&self, name: &str, key: &str, var: &Var) -> Result<Anchor> {
        let (Some(file), Some(path)) = (self.source.shape(key), self.source.path(key)) else {
            return Ok(Anchor::None);
        };
        if file != var.dims() {
            return Err(Error::ShapeInFile {
                tensor: key.to_owned(),
                path: path.to_owned(),
                model: var.dims().to_vec(),
                file: file.to_vec(),
            });
        }
        match self.source.read(key)? {
            Some(Value::Float(data)) => Ok(Anchor::Pretrained(data)),
            Some(Value::Other(tensor)) => {
                Err(memory::Error::ElementType { tensor: name.to_owned(), dtype: tensor.dtype() }.into())
            }
            None => Ok(Anchor::None),
        }
    }
}

/// The order of a `VarMap` changes from run to run.
fn sorted(map: &VarMap) -> BTreeMap<String, Var> {
    let data = map.data().lock().unwrap_or_else(PoisonError::into_inner);
    data.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
}
