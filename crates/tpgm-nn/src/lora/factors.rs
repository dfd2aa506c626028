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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use candle_nn::Linear;

    use super::*;
    use crate::lora::LoraConfig;

    #[test]
    fn factors_go_to_the_map_once() {
        let vars = VarMap::new();
        let factors = VarFactors::new(VarBuilder::zeros(DType::F32, &Device::Cpu), &vars);
        let config = LoraConfig { rank: 2, targets: vec!["q".into()], ..Default::default() };
        let wrap = |name: &str| {
            let weight = Tensor::ones((3, 5), DType::F32, &Device::Cpu).unwrap();
            config.wrap(name, Linear::new(weight, None), &factors)
        };
        assert!(wrap("block.q").unwrap().is_adapted() && !wrap("block.k").unwrap().is_adapted());
        assert_eq!(factors.names(), ["block.q.lora_A.weight", "block.q.lora_B.weight"]);
        config.check_targets(&factors).unwrap();

        let error = wrap("block.q").unwrap_err();
        assert!(
            matches!(&error, Error::DuplicateFactor { name } if name == "block.q.lora_A.weight"),
            "{error}"
        );
        let other = LoraConfig { targets: vec!["v".into()], ..config.clone() };
        let error = other.check_targets(&factors).unwrap_err();
        assert!(matches!(&error, Error::LoraTarget { target, adapted: 1 } if target == "v"), "{error}");
        let integers = Tensor::ones((3, 5), DType::U32, &Device::Cpu).unwrap();
        let error = config.wrap("other.q", Linear::new(integers, None), &factors).unwrap_err();
        assert!(matches!(&error, Error::ElementType { tensor, .. } if tensor == "other.q"), "{error}");
    }
}
