//! SeleKT: keep what moved most, reset the rest.

use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::{
    BLOCK, check_count, check_dtype, check_len, chunks_mut, load, ranges, widest, with_real, write,
};
use crate::element::{DType, Real, Slice, SliceMut};
use crate::error::{Error, Result};
use crate::params::{AnchorKind, ParamSet, TensorSpec};
use crate::rule::check;

use super::topk::{Magnitude, NanScore, Picker, Scores, Selection};

/// Selective knowledge transfer (NextCoder, ICML 2025, arXiv 2503.03656): training is dense, but every so often each
/// tensor keeps only the `k` entries farthest from the anchor, `k = floor(alpha * numel)`, and all others are reset to
/// it: `W <- W0` except where `|W - W0|` is among the `k` largest.
///
/// Of entries that moved equally far those with the lowest index are kept. Distances are taken in f32, or in f64 if the
/// weights or the anchor are f64; the authors' code takes them in the element type of the weights, where many tie. The
/// state of the rule (moments) is left alone, as published: a reset entry returns if its gradient persists.
///
/// Tensors that are excluded or have no anchor are left alone. **Small tensors**: below `1 / alpha` elements `k` is 0, and
/// the tensor is reset as a whole, as published; exclude biases and normalization scales, or set `min_kept`.
///
/// ```
/// use tpgm_core::sparse::{Selekt, SelektIo};
/// use tpgm_core::{DType, ParamSet};
/// let set = ParamSet::builder().tensor("w", [5], DType::F32).build()?;
/// let anchor = [1.0f32; 5];
/// let mut weight = [1.1f32, 0.5, 1.0, 1.2, 0.9];
/// let selekt = Selekt { alpha: 0.4, ..Selekt::default() };
/// let kept = selekt.project(&set, &mut [SelektIo::new(&mut weight).anchor(&anchor)])?;
/// assert_eq!(weight, [1.0, 0.5, 1.0, 1.2, 1.0]);
/// assert_eq!(kept, [Some(2)]);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Selekt {
    /// Share of the entries of a tensor that are kept, in `[0, 1]`. Default 0.05 (the paper).
    pub alpha: f64,
    /// Entries of a tensor that are kept at least, if it has them. Default 0 (as published).
    pub min_kept: usize,
    /// Steps from one projection to the next, at least 1, for [`Selekt::due`]. Default none: the caller knows when, for
    /// example at the end of each epoch (as published).
    pub every: Option<u64>,
}

impl Default for Selekt {
    fn default() -> Self {
        Self { alpha: 0.05, min_kept: 0, every: None }
    }
}

/// The operands of one tensor.
#[derive(Debug)]
pub struct SelektIo<'a> {
    /// The weights, changed in place.
    pub weight: SliceMut<'a>,
    /// Their pre-trained value, of any element type. Unused for tensors that are left alone or have the zero anchor.
    pub anchor: Option<Slice<'a>>,
    /// The f32 copy of half-precision weights that training updates, if there is one: then it is what is projected, and
    /// the weights become its rounding.
    pub master: Option<SliceMut<'a>>,
}

impl<'a> SelektIo<'a> {
    /// Weights alone.
    pub fn new(weight: impl Into<SliceMut<'a>>) -> Self {
        Self { weight: weight.into(), anchor: None, master: None }
    }

    /// Adds the anchor.
    #[must_use]
    pub fn anchor(mut self, anchor: impl Into<Slice<'a>>) -> Self {
        self.anchor = Some(anchor.into());
        self
    }

    /// Adds the master copy. An [`Optimizer`](crate::Optimizer) keeps masters in its state: take that out, project
    /// `tensor/master` together with the weights, and put it back.
    #[must_use]
    pub fn master(mut self, master: impl Into<SliceMut<'a>>) -> Self {
        self.master = Some(master.into());
        self
    }

    /// What is projected: the master, or else the weights.
    fn base(&self) -> Slice<'_> {
        match &self.master {
            Some(master) => master.as_slice(),
            None => self.weight.as_slice(),
        }
    }

    fn check(&self, spec: &TensorSpec, kind: AnchorKind) -> Result<()> {
        let (name, len) = (&spec.name, spec.numel());
        check_len(name, "weight", len, self.weight.len())?;
        check_dtype(name, "weight", spec.dtype, self.weight.dtype())?;
        if let Some(master) = &self.master {
            check_len(name, "master", len, master.len())?;
            check_dtype(name, "master", spec.dtype.compute(), master.dtype())?;
        }
        match (kind, &self.anchor) {
            (AnchorKind::Pretrained, Some(anchor)) => check_len(name, "anchor", len, anchor.len()),
            (AnchorKind::Pretrained, None) => {
                Err(Error::MissingAnchor { tensor: name.clone(), constraint: "SeleKT" })
            }
            _ => Ok(()),
        }
    }
}

/// A chunk of a tensor that is about to be projected.
struct Job<'a> {
    compute: DType,
    weight: SliceMut<'a>,
    master: Option<SliceMut<'a>>,
    anchor: Option<Slice<'a>>,
    picker: Picker,
}

impl Selekt {
    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`].
    pub fn validate(&self) -> Result<()> {
        check("Selekt::alpha", self.alpha, "in [0, 1]", |alpha| (0.0..=1.0).contains(&alpha))?;
        let every = self.every.map_or(1.0, |every| every as f64);
        check("Selekt::every", every, "at least 1", |every| every >= 1.0)
    }

    /// True if a projection follows step number `step`, counted from 1: a multiple of `every`.
    pub fn due(&self, step: u64) -> bool {
        self.every.is_some_and(|every| every > 0 && step > 0 && step.is_multiple_of(every))
    }

    /// Number of entries kept of a tensor of `numel`.
    pub fn kept(&self, numel: usize) -> usize {
        ((self.alpha * numel as f64) as usize).max(self.min_kept).min(numel)
    }

    /// Projects all tensors of the set in place; `io` has one entry per tensor, in set order. Returns how many entries
    /// of each are kept, `None` for tensors left alone.
    ///
    /// Reads weights and anchors three times as a rule, twice to find the threshold, and writes the weights once: 28 bytes
    /// per f32 parameter. Nothing of parameter size is allocated. Reset entries equal the anchor bit for bit, or its
    /// rounding if the weights have a narrower type.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`], [`Error::CountMismatch`], [`Error::LengthMismatch`], [`Error::DTypeMismatch`],
    /// [`Error::MissingAnchor`], or [`Error::NonFiniteValue`] for a displacement that is NaN. Nothing is changed then.
    pub fn project(&self, set: &ParamSet, io: &mut [SelektIo<'_>]) -> Result<Vec<Option<usize>>> {
        self.validate()?;
        check_count("tensors", set.len(), io.len())?;
        let kinds = set.anchors();
        for ((spec, io), kind) in set.tensors().iter().zip(io.iter()).zip(&kinds) {
            io.check(spec, *kind)?;
        }
        let selections: Vec<Result<Option<Selection>>> = (io.par_iter(), &kinds, set.tensors())
            .into_par_iter()
            .map(|(io, kind, spec)| match kind {
                AnchorKind::None => Ok(None),
                _ => self.select(spec, io.base(), anchor(io, *kind)).map(Some),
            })
            .collect();
        let selections = selections.into_iter().collect::<Result<Vec<_>>>()?;

        let mut jobs = Vec::new();
        for ((io, kind), selection) in io.iter_mut().zip(kinds).zip(&selections) {
            let Some(selection) = selection else { continue };
            let anchor = anchor(io, kind);
            let compute = widest([io.base().dtype()].into_iter().chain(anchor.map(|anchor| anchor.dtype())));
            let mut masters = io.master.as_mut().map(|master| chunks_mut(master.reborrow()));
            for (number, (range, weight)) in chunks_mut(io.weight.reborrow()).enumerate() {
                jobs.push(Job {
                    compute,
                    weight,
                    master: masters.as_mut().and_then(Iterator::next).map(|(_, master)| master),
                    anchor: anchor.map(|anchor| anchor.sub(range)),
                    picker: selection.picker(number),
                });
            }
        }
        jobs.into_par_iter().for_each(|job| with_real!(job.compute, T => reset::<T>(job)));
        let kept = |(spec, selection): (&TensorSpec, &Option<_>)| {
            selection.as_ref().map(|_| self.kept(spec.numel()))
        };
        Ok(set.tensors().iter().zip(&selections).map(kept).collect())
    }

    fn select(&self, spec: &TensorSpec, base: Slice<'_>, anchor: Option<Slice<'_>>) -> Result<Selection> {
        let compute = widest([base.dtype()].into_iter().chain(anchor.map(|anchor| anchor.dtype())));
        let k = self.kept(spec.numel());
        let selection = with_real!(compute, T => {
            let distance = |_, range, out: &mut [T]| displacement(base, anchor, range, out);
            Scores::new([spec.numel()], distance).largest(k)
        });
        selection
            .map_err(|NanScore(_)| Error::NonFiniteValue { tensor: spec.name.clone(), what: "displacement" })
    }
}

/// The anchor to measure from: none is zero.
fn anchor<'a>(io: &SelektIo<'a>, kind: AnchorKind) -> Option<Slice<'a>> {
    io.anchor.filter(|_| kind == AnchorKind::Pretrained)
}

/// `out = base - anchor` for one block.
fn displacement<T: Real>(base: Slice<'_>, anchor: Option<Slice<'_>>, range: Range<usize>, out: &mut [T]) {
    T::load(base.sub(range.clone()), out);
    if let Some(anchor) = anchor {
        let mut scratch = [T::ZERO; BLOCK];
        for (out, anchor) in out.iter_mut().zip(load(anchor.sub(range), &mut scratch)) {
            *out = *out - *anchor;
        }
    }
}

/// Resets the entries of a chunk that are not selected.
fn reset<T: Magnitude>(mut job: Job<'_>) {
    let [mut values, mut anchors, mut scores, mut scratch] = [[T::ZERO; BLOCK]; 4];
    for range in ranges(0..job.weight.len(), BLOCK) {
        let (values, scores) = (&mut values[..range.len()], &mut scores[..range.len()]);
        let base = job.master.as_ref().unwrap_or(&job.weight).as_slice();
        T::load(base.sub(range.clone()), values);
        let anchors = match job.anchor {
            Some(anchor) => load(anchor.sub(range.clone()), &mut anchors),
            None => &anchors[..range.len()],
        };
        for ((score, value), anchor) in scores.iter_mut().zip(&*values).zip(anchors) {
            *score = *value - *anchor;
        }
        job.picker.block(scores, |i, kept| values[i] = if kept { values[i] } else { anchors[i] });
        if let Some(master) = &mut job.master {
            write(master, range.clone(), &mut scratch, |out| out.copy_from_slice(values));
        }
        write(&mut job.weight, range, &mut scratch, |out| out.copy_from_slice(values));
    }
}

#[cfg(test)]
mod tests;
