//! State as data: named slots that can be taken out and put back.

use std::collections::BTreeMap;

use crate::backend::{Backend, Slot, Slots};
use crate::constraint::{Constraint, FtpMemory};
use crate::element::{Buffer, DType};
use crate::error::{Error, Result};
use crate::params::{ParamSet, Settings, TensorSpec};
use crate::rule::Rule;
use crate::scalars::TensorScalars;

/// State of an optimizer or projector on the host: `tensor name/slot name` to values.
///
/// Complete: put back into an optimizer made with the same set, rule and constraint, the next step gives the same bits.
pub type StateDict = BTreeMap<String, Buffer>;

/// Name of the slot that holds a tensor's [`TensorScalars`] in a [`StateDict`].
pub(crate) const SCALARS: &str = "scalars";

/// Whether half-precision weights get an f32 master copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Masters {
    /// f16 and bf16 weights are roundings of an f32 master, which the step updates. 4 bytes per parameter.
    #[default]
    Auto,
    /// The step reads and writes the half-precision weights themselves. Small updates are lost to rounding: in bf16 a
    /// weight of 1.0 does not move by less than 2^-9.
    Off,
}

/// Which slots a tensor needs for `rule` and its settings: slot, element type, length.
pub(crate) fn layout(
    spec: &TensorSpec,
    settings: &Settings,
    rule: Option<&Rule>,
    masters: Masters,
) -> impl Iterator<Item = (Slot, DType, usize)> {
    let (compute, numel) = (spec.dtype.compute(), spec.numel());
    let mut slots = Vec::new();
    let master = rule.is_some() && spec.dtype.is_half() && masters == Masters::Auto;
    if master {
        slots.push((Slot::Master, compute, numel));
    }
    match rule {
        Some(Rule::AdamW(rule)) => {
            slots.push((Slot::ExpAvg, compute, numel));
            slots.push((Slot::ExpAvgSq, compute, numel));
            if rule.amsgrad {
                slots.push((Slot::MaxExpAvgSq, compute, numel));
            }
        }
        Some(Rule::Sgd(rule)) if rule.momentum > 0.0 => slots.push((Slot::MomentumBuffer, compute, numel)),
        Some(Rule::Sgd(_)) | None => {}
    }
    match &settings.constraint {
        Constraint::Ftp(ftp) => {
            if ftp.memory == FtpMemory::Exact {
                slots.push((Slot::Displacement, compute, numel));
            }
            slots.push((Slot::RowScale, DType::F64, if numel == 0 { 0 } else { spec.rows().0 }));
        }
        Constraint::Digrap(_) => slots.push((Slot::Displacement, compute, numel)),
        Constraint::Pull(pull) if pull.weights.is_kept() => slots.push((Slot::Importance, compute, numel)),
        Constraint::Tpgm(_) if !master => slots.push((Slot::Remembered, spec.dtype, numel)),
        _ => {}
    }
    slots.into_iter()
}

/// Copies all state to the host.
pub(crate) fn save<B: Backend>(
    backend: &B,
    set: &ParamSet,
    slots: &[Slots<B>],
    scalars: &[TensorScalars],
) -> Result<StateDict> {
    let mut state = StateDict::new();
    for ((spec, slots), scalars) in set.tensors().iter().zip(slots).zip(scalars) {
        for slot in Slot::ALL {
            if let (Some(buffer), false) = (slots.get(slot), slot == Slot::Remembered) {
                state.insert(key(spec, slot.name()), backend.download(buffer)?);
            }
        }
        state.insert(key(spec, SCALARS), Buffer::F64(scalars.state().to_vec()));
    }
    Ok(state)
}

/// Checks a saved state against the slots and copies it in. On an error nothing was changed.
pub(crate) fn load<B: Backend>(
    backend: &B,
    set: &ParamSet,
    slots: &mut [Slots<B>],
    state: &StateDict,
) -> Result<Vec<TensorScalars>> {
    let mut loaded = Vec::new();
    let mut scalars = Vec::with_capacity(set.len());
    let mut used = 0;
    for (i, (spec, slots)) in set.tensors().iter().zip(slots.iter()).enumerate() {
        for slot in Slot::ALL {
            if let (Some(buffer), false) = (slots.get(slot), slot == Slot::Remembered) {
                let (dtype, len) = B::describe(B::as_ref(buffer));
                let saved = fetch(state, spec, slot.name(), dtype, len)?;
                loaded.push((i, slot, backend.upload(saved)?));
                used += 1;
            }
        }
        let saved = fetch(state, spec, SCALARS, DType::F64, TensorScalars::STATE.len())?.to_f64();
        used += 1;
        let mut values = [0.0; TensorScalars::STATE.len()];
        values.copy_from_slice(&saved);
        if values.iter().any(|x| !x.is_finite()) {
            return Err(Error::NonFiniteValue { tensor: spec.name.clone(), what: "saved scalar state" });
        }
        scalars.push(TensorScalars::from_state(values));
    }
    if used != state.len() {
        return Err(unexpected(set, slots, state));
    }
    for (i, slot, buffer) in loaded {
        slots[i].put(slot, buffer);
    }
    Ok(scalars)
}

fn fetch<'s>(
    state: &'s StateDict,
    spec: &TensorSpec,
    slot: &'static str,
    dtype: DType,
    len: usize,
) -> Result<&'s Buffer> {
    let key = key(spec, slot);
    let saved = state.get(&key).ok_or(Error::MissingSlot { key })?;
    if saved.dtype() != dtype {
        let (tensor, expected, got) = (spec.name.clone(), dtype, saved.dtype());
        return Err(Error::DTypeMismatch { tensor, what: slot, expected, got });
    }
    if saved.len() != len {
        let (tensor, expected, got) = (spec.name.clone(), len, saved.len());
        return Err(Error::LengthMismatch { tensor, what: slot, expected, got });
    }
    Ok(saved)
}

fn unexpected<B: Backend>(set: &ParamSet, slots: &[Slots<B>], state: &StateDict) -> Error {
    let mut known = std::collections::BTreeSet::new();
    for (spec, slots) in set.tensors().iter().zip(slots) {
        known.extend(
            Slot::ALL.iter().filter(|&&slot| slots.get(slot).is_some()).map(|slot| key(spec, slot.name())),
        );
        known.insert(key(spec, SCALARS));
    }
    let key = state.keys().find(|key| !known.contains(*key)).cloned().unwrap_or_default();
    Error::UnexpectedSlot { key }
}

fn key(spec: &TensorSpec, slot: &str) -> String {
    format!("{}/{slot}", spec.name)
}
