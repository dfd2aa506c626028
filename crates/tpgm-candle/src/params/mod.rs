//! The parameters of a model: variables by name, each with its anchor.

mod anchor;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Tensor, Var};
use tpgm_core::{Group, ParamSet, TensorSpec};

pub use self::anchor::{Anchor, AnchorData};
use crate::dtype::{core_dtype, to_buffer};
use crate::error::{Error, Result};

/// One variable of a model with its name and anchor. Cheap to clone: clones share the variable.
#[derive(Debug, Clone)]
pub struct Param {
    name: String,
    var: Var,
    anchor: Anchor,
}

impl Param {
    /// A parameter.
    pub fn new(name: impl Into<String>, var: Var, anchor: Anchor) -> Self {
        Self { name: name.into(), var, anchor }
    }

    /// A parameter whose anchor is a copy of what the variable holds now.
    ///
    /// # Errors
    ///
    /// [`Error::ElementType`], or the device fails.
    pub fn anchored_here(name: impl Into<String>, var: Var) -> Result<Self> {
        let name = name.into();
        let anchor = Anchor::Pretrained(AnchorData::new(to_buffer(&name, var.as_tensor())?));
        Ok(Self { name, var, anchor })
    }

    /// Its unique name, as in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Where its displacement is measured from.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    fn spec(&self) -> Result<TensorSpec> {
        let dtype = core_dtype(&self.name, self.var.dtype())?;
        Ok(TensorSpec { name: self.name.clone(), shape: self.var.dims().to_vec(), dtype })
    }
}

/// The parameters of a model and the groups with settings of their own. Clones share both.
#[derive(Debug, Clone, Default)]
pub struct Params {
    registry: Arc<Mutex<Registry>>,
}

#[derive(Debug, Default)]
struct Registry {
    params: BTreeMap<String, Param>,
    groups: Vec<Group>,
}

impl Params {
    /// Parameters that exist already.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateParam`].
    pub fn from_params(params: impl IntoIterator<Item = Param>) -> Result<Self> {
        let this = Self::default();
        params.into_iter().try_for_each(|param| this.insert(param))?;
        Ok(this)
    }

    /// Adds a parameter.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateParam`].
    pub fn insert(&self, param: Param) -> Result<()> {
        let mut registry = self.registry();
        if registry.params.contains_key(param.name()) {
            return Err(Error::DuplicateParam { name: param.name });
        }
        registry.params.insert(param.name.clone(), param);
        Ok(())
    }

    /// Gives the parameters that a group's patterns select settings of their own. Later groups win. Patterns are
    /// checked when an optimizer is made: the model's names are not known before.
    #[must_use]
    pub fn group(self, group: Group) -> Self {
        self.registry().groups.push(group);
        self
    }

    /// All trainable parameters, sorted by name.
    pub fn all(&self) -> Vec<Param> {
        self.registry().params.values().cloned().collect()
    }

    /// The variable of this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownParam`].
    pub fn get(&self, name: &str) -> Result<Param> {
        self.registry().params.get(name).cloned().ok_or_else(|| Error::UnknownParam { name: name.to_owned() })
    }

    /// Names, shapes, types and groups, in the order of [`Params::all`].
    ///
    /// # Errors
    ///
    /// A pattern that matches nothing, or an element type that cannot be trained.
    pub fn set(&self) -> Result<ParamSet> {
        let registry = self.registry();
        let mut set = ParamSet::builder();
        for param in registry.params.values() {
            set = set.tensors([param.spec()?]);
            if let Some(group) = param.anchor.group(&param.name) {
                set = set.group(group);
            }
        }
        Ok(set.groups(registry.groups.iter().cloned()).build()?)
    }

    /// The values of all parameters by name; they share storage with the variables.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.all().into_iter().map(|param| (param.name, param.var.as_tensor().clone())).collect()
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
