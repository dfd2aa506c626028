//! State of an optimizer that knows its variables by position alone.
//!
//! `VarMap::all_vars` has another order in every process. So the state says of every position which shape, which weight and
//! which anchor it belongs to, and is looked up by these when it is loaded.

use std::collections::HashMap;
use std::fmt;

use candle_core::Tensor;
use tpgm_core::{Buffer, Constraint, Settings, Slice, StateDict};

use super::error::{Error, Result};
use crate::engine::Operands;
use crate::memory::Elements;

/// Name of what tells a variable, in saved state, after its position and a slash.
const SLOT: &str = "identity";

/// What tells the variables of an optimizer apart, beside their weights of the moment.
#[derive(Debug)]
pub(super) struct Positions {
    /// Digests of the anchors, of variables that are constrained.
    anchors: Vec<Option<u64>>,
    settings: Vec<Settings>,
}

/// What a variable is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    shape: Vec<usize>,
    weight: u64,
    anchor: Option<u64>,
}

/// Why saved state cannot be given to a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PositionProblem {
    /// No saved variable has its shape and its values.
    OtherWeight,
    /// A saved variable has its values, but another anchor.
    OtherAnchor,
    /// Several saved variables have its shape and its values, and their state differs.
    Ambiguous,
    /// A group gives it other settings than the saved variable with its values had.
    OtherSettings,
    /// The state does not say which variables it belongs to.
    NotSaidWhich,
}

impl fmt::Display for PositionProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherWeight => {
                "no saved variable had its values; put the saved weights into the variables before the state"
            }
            Self::OtherAnchor => {
                "its anchor is another than when the state was saved; make the optimizer while the variables hold the \
                 pre-trained weights, and put the saved ones into them afterwards"
            }
            Self::Ambiguous => "several saved variables had its values, each with a state of its own",
            Self::OtherSettings => {
                "a group that names positions gives it other settings than the saved variable with its values had; \
                 the order of the variables has changed"
            }
            Self::NotSaidWhich => "the state does not say which variables it belongs to; another optimizer saved it",
        })
    }
}

impl Positions {
    pub(super) fn new(operands: &Operands, settings: Vec<Settings>) -> Result<Self> {
        // An optimizer is made while each variable is its own anchor.
        let anchor =
            |((name, var), settings): ((&str, &candle_core::Var), &Settings)| match settings.constraint {
                Constraint::None => Ok(None),
                _ => Ok(Some(digest(name, var)?)),
            };
        let anchors = operands.vars().zip(&settings).map(anchor).collect::<Result<_>>()?;
        Ok(Self { anchors, settings })
    }

    /// What [`Positions::load`] needs, for saved state.
    pub(super) fn state(&self, operands: &Operands) -> Result<StateDict> {
        let identities = self.identities(operands)?.into_iter();
        let slot =
            |((name, _), identity): ((&str, _), Identity)| (format!("{name}/{SLOT}"), identity.to_buffer());
        Ok(operands.vars().zip(identities).map(slot).collect())
    }

    /// Gives the slots of a saved state the positions that their variables have here.
    pub(super) fn load(&self, operands: &Operands, state: StateDict) -> Result<StateDict> {
        let names: Vec<&str> = operands.vars().map(|(name, _)| name).collect();
        let here = self.identities(operands)?;
        let refuse = |position: usize, problem| Error::Position {
            position,
            shape: here[position].shape.clone(),
            problem,
        };

        // The slots of every saved variable, without its position.
        let mut saved: Vec<(Option<Identity>, StateDict)> = vec![(None, StateDict::new()); names.len()];
        let mut loaded = StateDict::new();
        let positions: HashMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (*name, i)).collect();
        for (key, buffer) in state {
            let position = key.split_once('/').and_then(|(name, slot)| Some((*positions.get(name)?, slot)));
            match position {
                Some((position, SLOT)) => saved[position].0 = Identity::from_buffer(&buffer),
                Some((position, slot)) => drop(saved[position].1.insert(slot.to_owned(), buffer)),
                // Of the optimizer as a whole, or of a variable that is not here: the engine says so.
                None => drop(loaded.insert(key, buffer)),
            }
        }
        let mut known: HashMap<Identity, Vec<usize>> = HashMap::new();
        for (position, (identity, _)) in saved.iter().enumerate() {
            let identity = identity.clone().ok_or_else(|| refuse(position, PositionProblem::NotSaidWhich))?;
            known.entry(identity).or_default().push(position);
        }
        for (position, identity) in here.iter().enumerate() {
            let Some(candidates) = known.get_mut(identity) else {
                let elsewhere =
                    |other: &Identity| other.shape == identity.shape && other.weight == identity.weight;
                let problem = match known.keys().any(elsewhere) {
                    true => PositionProblem::OtherAnchor,
                    false => PositionProblem::OtherWeight,
                };
                return Err(refuse(position, problem));
            };
            // Twins whose state is the same too may be exchanged; of others nobody knows which is which.
            let alike = candidates.iter().all(|&i| saved[i].1 == saved[candidates[0]].1);
            if !alike {
                return Err(refuse(position, PositionProblem::Ambiguous));
            }
            let from = match candidates.len() {
                1 => candidates[0],
                _ => candidates.remove(0),
            };
            if self.settings[from] != self.settings[position] {
                return Err(refuse(position, PositionProblem::OtherSettings));
            }
            for (slot, buffer) in &saved[from].1 {
                loaded.insert(format!("{}/{slot}", names[position]), buffer.clone());
            }
        }
        Ok(loaded)
    }

    fn identities(&self, operands: &Operands) -> Result<Vec<Identity>> {
        let identity = |((name, var), anchor): ((&str, &candle_core::Var), &Option<u64>)| {
            Ok(Identity { shape: var.dims().to_vec(), weight: digest(name, var)?, anchor: *anchor })
        };
        operands.vars().zip(&self.anchors).map(identity).collect()
    }
}

impl Identity {
    /// Halves of the digests, each exact in f64, and the shape: weight, anchor (or twice -1), dimensions.
    fn to_buffer(&self) -> Buffer {
        let halves = |digest: u64| [(digest >> 32) as f64, (digest & 0xffff_ffff) as f64];
        let mut numbers = halves(self.weight).to_vec();
        numbers.extend(self.anchor.map_or([-1.0; 2], halves));
        numbers.extend(self.shape.iter().map(|&dim| dim as f64));
        Buffer::F64(numbers)
    }

    fn from_buffer(buffer: &Buffer) -> Option<Self> {
        let Buffer::F64(numbers) = buffer else { return None };
        let [a, b, c, d, shape @ ..] = &numbers[..] else { return None };
        // What is no whole number in range becomes another number, and so matches no variable.
        let whole = |high: f64, low: f64| ((high as u64) << 32) | (low as u64 & 0xffff_ffff);
        let anchor = (*c >= 0.0).then(|| whole(*c, *d));
        Some(Self { shape: shape.iter().map(|&dim| dim as usize).collect(), weight: whole(*a, *b), anchor })
    }
}

/// FNV-1a over the bits of all elements, in steps of eight bytes.
fn digest(name: &str, tensor: &Tensor) -> Result<u64> {
    fn over(bits: impl Iterator<Item = u64>) -> u64 {
        bits.fold(0xcbf2_9ce4_8422_2325, |hash: u64, bits| {
            // FNV carries upwards only; the turn brings high bits of elements down.
            (hash ^ bits).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
        })
    }
    Ok(match Elements::new(name, tensor)?.slice() {
        Slice::F64(x) => over(x.iter().map(|x| x.to_bits())),
        Slice::F32(x) => over(x.iter().map(|x| x.to_bits().into())),
        Slice::F16(x) => over(x.iter().map(|x| x.to_bits().into())),
        Slice::BF16(x) => over(x.iter().map(|x| x.to_bits().into())),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn digests_see_every_element_and_its_place() {
        let of = |values: &[f32], dtype| {
            let tensor = Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            digest("w", &tensor).unwrap()
        };
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let known = [[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [1.0, 2.0, -3.0], [0.0; 3], [-0.0, 0.0, 0.0]];
            let mut digests: Vec<u64> = known.iter().map(|values| of(values, dtype)).collect();
            assert_eq!(digests[0], of(&known[0], dtype));
            digests.sort_unstable();
            digests.dedup();
            assert_eq!(digests.len(), 5);
        }
    }

    #[test]
    fn identities_survive_being_saved() {
        for anchor in [None, Some(0), Some(u64::MAX)] {
            let identity = Identity { shape: vec![3, 0, 70_000], weight: u64::MAX - 7, anchor };
            assert_eq!(Identity::from_buffer(&identity.to_buffer()), Some(identity));
        }
        assert_eq!(Identity::from_buffer(&Buffer::F64(vec![1.0; 3])), None);
        assert_eq!(Identity::from_buffer(&Buffer::F32(vec![1.0; 5])), None);
    }
}
