//! An optimizer that trains a few entries of each tensor.

use crate::backend::{StepReport, TensorIo, Variance};
use crate::blocks::{check_count, check_dtype, check_len};
use crate::constraint::Constraint;
use crate::cpu::Cpu;
use crate::element::{Buffer, Element, Slice, SliceMut};
use crate::engine::EngineOptions;
use crate::error::Result;
use crate::optimizer::Optimizer;
use crate::params::{ParamSet, TensorSpec};
use crate::rule::Rule;
use crate::scalars::TensorScalars;
use crate::state::StateDict;
use crate::step::StepOptions;

use super::mask::{SaftMask, Trained};

/// A rule, and a constraint if wanted, over the entries that a [`SaftMask`] selects.
///
/// The selected entries of each tensor are gathered into a compact 1-D tensor of the same name and groups, the step is
/// taken there by an [`Optimizer`], and the result is scattered back. So all state (moments, masters, displacements) is
/// of the size of the selection, and entries that are not selected never change a bit: no decay, no momentum. Tensors
/// that are trained whole are stepped in place.
///
/// A constraint sees the compact tensor, which is one row: its norm is taken over all selected entries. Gradient norms,
/// too, are those of the selected entries; others are not looked at, not even for infinities.
///
/// ```
/// use tpgm_core::sparse::{SaftMask, SaftOptimizer, Trained};
/// use tpgm_core::{Constraint, Cpu, DType, ParamSet, Sgd, StepOptions, TensorIo};
/// let set = ParamSet::builder().tensor("w", [4], DType::F32).build()?;
/// let mask = SaftMask::new(&set, vec![Trained::Entries(vec![1, 3])])?;
/// let mut optimizer = SaftOptimizer::new(Cpu::new(), &set, mask, Sgd::default().lr(0.5), Constraint::None)?;
/// let (mut weight, grad) = ([1.0f32; 4], [1.0f32, 2.0, 3.0, 4.0]);
/// optimizer.step(&mut [TensorIo::new(&mut weight).grad(&grad)], &StepOptions::default())?;
/// assert_eq!(weight, [1.0, 0.0, 1.0, -1.0]);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub struct SaftOptimizer {
    backend: Cpu,
    set: ParamSet,
    mask: SaftMask,
    rule: Rule,
    constraint: Constraint,
    options: EngineOptions,
    inner: Optimizer<Cpu>,
}

/// The operands of one tensor, gathered.
struct Compact {
    weight: Buffer,
    grad: Option<Buffer>,
    anchor: Option<Buffer>,
    variance: Option<Variance<Buffer>>,
}

impl SaftOptimizer {
    /// Binds a rule and a constraint to the selected entries of a set. State starts at zero.
    ///
    /// # Errors
    ///
    /// An option outside its range, or a mask that does not fit the set.
    pub fn new(
        backend: Cpu,
        set: &ParamSet,
        mask: SaftMask,
        rule: impl Into<Rule>,
        constraint: impl Into<Constraint>,
    ) -> Result<Self> {
        Self::with_options(backend, set, mask, rule, constraint, EngineOptions::default())
    }

    /// As [`SaftOptimizer::new`], with choices about memory.
    ///
    /// # Errors
    ///
    /// As [`SaftOptimizer::new`].
    pub fn with_options(
        backend: Cpu,
        set: &ParamSet,
        mask: SaftMask,
        rule: impl Into<Rule>,
        constraint: impl Into<Constraint>,
        options: EngineOptions,
    ) -> Result<Self> {
        // A mask does not know its set: check it against this one.
        let mask = SaftMask::new(set, mask.tensors().to_vec())?;
        let (rule, constraint) = (rule.into(), constraint.into());
        let inner = inner(&backend, set, &mask, rule, constraint, options)?;
        Ok(Self { backend, set: set.clone(), mask, rule, constraint, options, inner })
    }

    /// Takes one step. `io` has one entry per tensor, in set order, with whole tensors as for [`Optimizer::step`].
    ///
    /// Memory traffic is that of the selected entries (about a cache line each when they are few).
    ///
    /// # Errors
    ///
    /// As [`Optimizer::step`]; weights and state are then untouched.
    pub fn step(&mut self, io: &mut [TensorIo<'_, Cpu>], options: &StepOptions) -> Result<StepReport> {
        check_count("tensors", self.set.len(), io.len())?;
        for (spec, io) in self.set.tensors().iter().zip(io.iter()) {
            check(spec, io)?;
        }
        let tensors = io.iter().zip(self.mask.tensors());
        let mut compact: Vec<Option<Compact>> = tensors
            .map(|(io, trained)| match trained {
                Trained::Whole => None,
                Trained::Entries(indices) => Some(Compact::gather(io, indices)),
            })
            .collect();
        let mut inner_io: Vec<TensorIo<'_, Cpu>> = io
            .iter_mut()
            .zip(&mut compact)
            .map(|(io, compact)| match compact {
                Some(compact) => compact.io(),
                None => TensorIo {
                    weight: io.weight.reborrow(),
                    grad: io.grad,
                    anchor: io.anchor,
                    variance: io.variance,
                },
            })
            .collect();
        let report = self.inner.step(&mut inner_io, options)?;
        drop(inner_io);
        for ((io, compact), trained) in io.iter_mut().zip(compact).zip(self.mask.tensors()) {
            if let (Some(compact), Trained::Entries(indices)) = (compact, trained) {
                scatter(compact.weight.as_slice(), indices, io.weight.reborrow());
            }
        }
        Ok(report)
    }

    /// Which entries are trained.
    pub fn mask(&self) -> &SaftMask {
        &self.mask
    }

    /// Radii and telemetry of every compact tensor, in set order.
    ///
    /// # Errors
    ///
    /// As [`Optimizer::scalars`].
    pub fn scalars(&self) -> Result<Vec<TensorScalars>> {
        self.inner.scalars()
    }

    /// Copies all state out: that of [`Optimizer::state`] over the compact tensors, and the mask (slot `indices`, f64).
    ///
    /// # Errors
    ///
    /// As [`Optimizer::state`].
    pub fn state(&self) -> Result<StateDict> {
        let mut state = self.inner.state()?;
        self.mask.save(&self.set, &mut state);
        Ok(state)
    }

    /// Puts state back that [`SaftOptimizer::state`] copied out, the mask included.
    ///
    /// # Errors
    ///
    /// A missing, unexpected or misshapen slot, or indices that do not fit the set; the optimizer is then unchanged.
    pub fn load_state(&mut self, state: &StateDict) -> Result<()> {
        let mask = SaftMask::from_state(&self.set, state)?;
        let mut inner = inner(&self.backend, &self.set, &mask, self.rule, self.constraint, self.options)?;
        inner.load_state(&SaftMask::strip(&self.set, state))?;
        self.mask = mask;
        self.inner = inner;
        Ok(())
    }
}

/// The optimizer of the compact tensors.
fn inner(
    backend: &Cpu,
    set: &ParamSet,
    mask: &SaftMask,
    rule: Rule,
    constraint: Constraint,
    options: EngineOptions,
) -> Result<Optimizer<Cpu>> {
    let shapes = set.tensors().iter().zip(mask.tensors());
    let compact = set.with_shapes(shapes.map(|(spec, trained)| match trained {
        Trained::Whole => spec.shape.clone(),
        Trained::Entries(indices) => vec![indices.len()],
    }));
    Optimizer::with_options(backend.clone(), &compact, rule, constraint, options)
}

/// Checks what gathering relies on; the inner optimizer checks the rest.
fn check(spec: &TensorSpec, io: &TensorIo<'_, Cpu>) -> Result<()> {
    let (name, len) = (&spec.name, spec.numel());
    check_len(name, "weight", len, io.weight.len())?;
    check_dtype(name, "weight", spec.dtype, io.weight.dtype())?;
    let variance = io.variance.as_ref();
    let operands = [
        ("gradient", io.grad),
        ("anchor", io.anchor),
        ("variance", variance.map(|variance| variance.current)),
        ("anchor variance", variance.map(|variance| variance.anchor)),
    ];
    operands
        .into_iter()
        .try_for_each(|(what, slice)| slice.map_or(Ok(()), |slice| check_len(name, what, len, slice.len())))
}

impl Compact {
    fn gather(io: &TensorIo<'_, Cpu>, indices: &[u64]) -> Self {
        let pick = |slice| gather(slice, indices);
        Self {
            weight: pick(io.weight.as_slice()),
            grad: io.grad.map(pick),
            anchor: io.anchor.map(pick),
            variance: io
                .variance
                .as_ref()
                .map(|variance| Variance { current: pick(variance.current), anchor: pick(variance.anchor) }),
        }
    }

    fn io(&mut self) -> TensorIo<'_, Cpu> {
        TensorIo {
            weight: self.weight.as_mut(),
            grad: self.grad.as_ref().map(Buffer::as_slice),
            anchor: self.anchor.as_ref().map(Buffer::as_slice),
            variance: self.variance.as_ref().map(|variance| Variance {
                current: variance.current.as_slice(),
                anchor: variance.anchor.as_slice(),
            }),
        }
    }
}

/// The elements with these indices.
fn gather(src: Slice<'_>, indices: &[u64]) -> Buffer {
    fn pick<T: Element>(src: &[T], indices: &[u64]) -> Buffer {
        T::buffer(indices.iter().map(|&index| src[index as usize]).collect())
    }
    match src {
        Slice::F64(src) => pick(src, indices),
        Slice::F32(src) => pick(src, indices),
        Slice::F16(src) => pick(src, indices),
        Slice::BF16(src) => pick(src, indices),
    }
}

/// Puts elements back to their indices. Both have the same type.
fn scatter(src: Slice<'_>, indices: &[u64], dst: SliceMut<'_>) {
    fn put<T: Element>(src: &[T], indices: &[u64], dst: &mut [T]) {
        for (&index, x) in indices.iter().zip(src) {
            dst[index as usize] = *x;
        }
    }
    match (src, dst) {
        (Slice::F64(src), SliceMut::F64(dst)) => put(src, indices, dst),
        (Slice::F32(src), SliceMut::F32(dst)) => put(src, indices, dst),
        (Slice::F16(src), SliceMut::F16(dst)) => put(src, indices, dst),
        (Slice::BF16(src), SliceMut::BF16(dst)) => put(src, indices, dst),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
