//! Where the factors of adapted layers go.

use candle_core::Var;
use candle_nn::{VarBuilder, VarMap};

use crate::error::Error;

/// What a model with LoRA is built over: it has the base weights, and takes the new factors. `Params` of `tpgm-candle` is one,
/// where factors get the zero anchor; [`VarFactors`] needs nothing but candle.
pub trait Factors {
    /// What can go wrong.
    type Error: From<Error> + From<candle_core::Error>;

    /// Gives the base weights.
    fn var_builder(&self) -> VarBuilder<'static>;

    /// Takes a new factor.
    ///
    /// # Errors
    ///
    /// If there is a tensor of this name.
    fn insert(&self, name: String, factor: Var) -> Result<(), Self::Error>;

    /// The names of all tensors that are trained, factors among them.
    fn names(&self) -> Vec<String>;
}

/// Factors in a [`VarMap`], for candle's own optimizers.
#[derive(Clone)]
pub struct VarFactors<'a> {
    base: VarBuilder<'static>,
    factors: &'a VarMap,
}

impl<'a> VarFactors<'a> {
    /// Base weights from `base`; factors go to `factors`.
    pub fn new(base: VarBuilder<'static>, factors: &'a VarMap) -> Self {
        Self { base, factors }
    }
}

impl Factors for VarFactors<'_> {
    type Error = Error;

    fn var_builder(&self) -> VarBuilder<'static> {
        self.base.clone()
    }

    /// # Errors
    ///
    /// [`Error::DuplicateFactor`].
    fn insert(&self, name: String, factor: Var) -> Result<(), Error> {
        let mut data = self.factors.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if data.contains_key(&name) {
            return Err(Error::DuplicateFactor { name });
        }
        data.insert(name, factor);
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        let data = self.factors.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut names: Vec<_> = data.keys().cloned().collect();
        names.sort();
        names
    }
}
