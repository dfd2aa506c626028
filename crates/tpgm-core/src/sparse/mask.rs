//! Which entries SAFT trains.

use crate::blocks::check_count;
use crate::element::Buffer;
use crate::error::{Error, Result};
use crate::params::ParamSet;
use crate::state::StateDict;

/// Name of the slot that holds the indices of a tensor in a [`StateDict`].
const INDICES: &str = "indices";

/// What is trained of one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Trained {
    /// All of it: tensors that are excluded or have no anchor, such as a new head.
    Whole,
    /// The entries with these indices into the flattened tensor, in increasing order.
    Entries(Vec<u64>),
}

/// Which entries of a set of tensors are trained; the others keep their bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaftMask {
    tensors: Vec<Trained>,
}

impl SaftMask {
    /// A mask from its parts, one per tensor in set order; the counterpart of [`SaftMask::tensors`].
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`] or [`Error::InvalidIndices`].
    pub fn new(set: &ParamSet, tensors: Vec<Trained>) -> Result<Self> {
        check_count("masks", set.len(), tensors.len())?;
        for (spec, trained) in set.tensors().iter().zip(&tensors) {
            let Trained::Entries(indices) = trained else {
                continue;
            };
            let numel = spec.numel();
            let increasing = indices.windows(2).all(|pair| pair[0] < pair[1]);
            if !increasing || indices.last().is_some_and(|&last| last >= numel as u64) {
                return Err(Error::InvalidIndices { tensor: spec.name.clone(), numel });
            }
        }
        Ok(Self { tensors })
    }

    /// The mask in the state of a [`SaftOptimizer`](super::SaftOptimizer).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidIndices`] for indices that do not fit the set. Tensors without saved indices are trained whole.
    pub fn from_state(set: &ParamSet, state: &StateDict) -> Result<Self> {
        let trained = |name: &str, saved: &Buffer| {
            let index = |x: f64| {
                let index = x as u64;
                (index as f64 == x).then_some(index).ok_or_else(|| Error::InvalidIndices {
                    tensor: name.to_owned(),
                    numel: set.position(name).map_or(0, |i| set.tensors()[i].numel()),
                })
            };
            saved.to_f64().into_iter().map(index).collect::<Result<_>>().map(Trained::Entries)
        };
        let tensors = set.tensors().iter().map(|spec| match state.get(&key(&spec.name)) {
            Some(saved) => trained(&spec.name, saved),
            None => Ok(Trained::Whole),
        });
        Self::new(set, tensors.collect::<Result<_>>()?)
    }

    /// What is trained of each tensor, in set order.
    pub fn tensors(&self) -> &[Trained] {
        &self.tensors
    }

    /// Adds the mask to a state. f64 holds indices below 2^53 exactly.
    pub(super) fn save(&self, set: &ParamSet, state: &mut StateDict) {
        for (spec, trained) in set.tensors().iter().zip(&self.tensors) {
            if let Trained::Entries(indices) = trained {
                let indices: Vec<f64> = indices.iter().map(|&index| index as f64).collect();
                state.insert(key(&spec.name), indices.into());
            }
        }
    }

    /// Takes the mask out of a state, leaving the inner optimizer's.
    pub(super) fn strip(set: &ParamSet, state: &StateDict) -> StateDict {
        let mut rest = state.clone();
        for spec in set.tensors() {
            rest.remove(&key(&spec.name));
        }
        rest
    }
}

fn key(tensor: &str) -> String {
    format!("{tensor}/{INDICES}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::DType;

    fn set() -> ParamSet {
        let set = ParamSet::builder().tensor("a", [2, 3], DType::F32).tensor("b", [1], DType::F32);
        set.build().unwrap()
    }

    #[test]
    fn a_mask_survives_saving() {
        let mask = SaftMask::new(&set(), vec![Trained::Entries(vec![0, 5]), Trained::Whole]).unwrap();
        let mut state = StateDict::from([("b/exp_avg".to_owned(), Buffer::F32(vec![1.0]))]);
        let inner = state.clone();
        mask.save(&set(), &mut state);
        assert_eq!(state["a/indices"], Buffer::F64(vec![0.0, 5.0]));
        assert_eq!(SaftMask::from_state(&set(), &state).unwrap(), mask);
        assert_eq!(SaftMask::strip(&set(), &state), inner);
    }

    #[test]
    fn bad_indices_are_named() {
        for indices in [vec![6], vec![1, 1], vec![2, 1], vec![u64::MAX]] {
            let error = SaftMask::new(&set(), vec![Trained::Entries(indices.clone()), Trained::Whole]);
            assert_eq!(error, Err(Error::InvalidIndices { tensor: "a".into(), numel: 6 }), "{indices:?}");
        }
        assert!(matches!(SaftMask::new(&set(), vec![]), Err(Error::CountMismatch { .. })));
        for saved in [0.5, -1.0, 6.0, 1e300, f64::NAN] {
            let state = StateDict::from([("a/indices".to_owned(), Buffer::F64(vec![saved]))]);
            let error = SaftMask::from_state(&set(), &state);
            assert!(matches!(error, Err(Error::InvalidIndices { .. })), "{saved}: {error:?}");
        }
    }
}
