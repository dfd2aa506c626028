//! What optimizers and projectors have in common: a set bound to a backend, with its plan and state.

use crate::backend::{Backend, Job, Slot, Slots, TensorIo};
use crate::constraint::Constraint;
use crate::element::DType;
use crate::error::{Error, Result};
use crate::params::{AnchorKind, ParamSet, Settings};
use crate::plan::Plan;
use crate::rule::Rule;
use crate::scalars::TensorScalars;
use crate::state::{self, Masters, StateDict};

/// Choices that change memory and speed, not the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct EngineOptions {
    /// Whether half-precision weights get f32 masters. Default: they do.
    pub masters: Masters,
    /// Elements per piece of work, at least 1. `None` (default) and what is too large for it take the backend's own size
    /// ([`CHUNK`](crate::plan::CHUNK) on the CPU). Results may differ in the last bits between sizes.
    pub chunk: Option<usize>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { masters: Masters::Auto, chunk: None }
    }
}

impl EngineOptions {
    /// Sets what happens to half-precision weights.
    #[must_use]
    pub fn masters(mut self, masters: Masters) -> Self {
        self.masters = masters;
        self
    }

    /// Sets the elements per piece of work.
    #[must_use]
    pub fn chunk(mut self, chunk: usize) -> Self {
        self.chunk = Some(chunk);
        self
    }
}

pub(crate) struct Engine<B: Backend> {
    pub(crate) backend: B,
    pub(crate) set: ParamSet,
    pub(crate) settings: Vec<Settings>,
    pub(crate) plan: Plan,
    pub(crate) slots: Vec<Slots<B>>,
    pub(crate) scalars: B::Scalars,
    pub(crate) workspace: B::Workspace,
}

/// State as it was at some moment.
pub(crate) struct Snapshot<B: Backend> {
    slots: Vec<(usize, Slot, B::Buffer)>,
    scalars: Vec<TensorScalars>,
}

/// Checks number, lengths and types of the weights.
pub(crate) fn check_weights<B: Backend>(set: &ParamSet, io: &[TensorIo<'_, B>]) -> Result<()> {
    if io.len() != set.len() {
        return Err(Error::CountMismatch { what: "tensors", expected: set.len(), got: io.len() });
    }
    for (spec, io) in set.tensors().iter().zip(io) {
        let (dtype, got) = B::describe_mut(&io.weight);
        let (tensor, what) = (|| spec.name.clone(), "weight");
        if got != spec.numel() {
            return Err(Error::LengthMismatch { tensor: tensor(), what, expected: spec.numel(), got });
        }
        if dtype != spec.dtype {
            return Err(Error::DTypeMismatch { tensor: tensor(), what, expected: spec.dtype, got: dtype });
        }
    }
    Ok(())
}

/// Which operands a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Weights alone; everything else may be missing.
    Weights,
    /// Weights and anchors; gradients may be missing.
    Anchors,
    /// Also the gradient of every tensor that a projector constrains.
    Gradients,
}

impl<B: Backend> Engine<B> {
    pub(crate) fn new(
        backend: B,
        set: &ParamSet,
        rule: Option<&Rule>,
        settings: Vec<Settings>,
        options: EngineOptions,
    ) -> Result<Self> {
        let largest = backend.chunk();
        let chunk = options.chunk.map_or(largest, |chunk| chunk.min(largest));
        let plan = Plan::in_rounds(set.tensors(), &settings, chunk, |len| backend.rows_at_a_time(len));
        let slots = set
            .tensors()
            .iter()
            .zip(&settings)
            .map(|(spec, settings)| {
                Slots::new(&backend, state::layout(spec, settings, rule, options.masters))
            })
            .collect::<Result<Vec<_>>>()?;
        let scalars = backend.upload_scalars(&vec![TensorScalars::default(); set.len()])?;
        let workspace = backend.workspace(&plan)?;
        Ok(Self { backend, set: set.clone(), settings, plan, slots, scalars, workspace })
    }

    /// Checks the operands and hands out everything a pass works on.
    pub(crate) fn job<'j, 'io>(
        &'j mut self,
        io: &'j mut [TensorIo<'io, B>],
        needs: Needs,
    ) -> Result<(&'j B, Job<'j, 'io, B>)> {
        self.check(io, needs)?;
        let job = Job {
            set: &self.set,
            settings: &self.settings,
            plan: &self.plan,
            io,
            slots: &mut self.slots,
            scalars: &mut self.scalars,
            workspace: &mut self.workspace,
        };
        Ok((&self.backend, job))
    }

    fn check(&self, io: &[TensorIo<'_, B>], needs: Needs) -> Result<()> {
        check_weights(&self.set, io)?;
        for ((spec, settings), io) in self.set.tensors().iter().zip(&self.settings).zip(io) {
            let length = |what, (_, got): (DType, usize)| match spec.numel() {
                expected if expected == got => Ok(()),
                expected => Err(Error::LengthMismatch { tensor: spec.name.clone(), what, expected, got }),
            };
            io.grad.map_or(Ok(()), |grad| length("gradient", B::describe(grad)))?;
            let anchored = needs != Needs::Weights && settings.constraint.is_anchored();
            if anchored && settings.anchor == AnchorKind::Pretrained {
                let (tensor, constraint) = (&spec.name, settings.constraint.name());
                let anchor =
                    io.anchor.ok_or_else(|| Error::MissingAnchor { tensor: tensor.clone(), constraint })?;
                length("anchor", B::describe(anchor))?;
            }
            if let Some(variance) = &io.variance {
                length("variance", B::describe(variance.current))?;
                length("anchor variance", B::describe(variance.anchor))?;
            }
            let learned = matches!(settings.constraint, Constraint::Tpgm(_));
            if needs == Needs::Gradients && learned && io.grad.is_none() {
                return Err(Error::MissingGradient { tensor: spec.name.clone() });
            }
        }
        Ok(())
    }

    pub(crate) fn scalars(&self) -> Result<Vec<TensorScalars>> {
        self.backend.download_scalars(&self.scalars)
    }

    pub(crate) fn norms(&self, tensor: usize) -> Result<Vec<f64>> {
        let norms = self.backend.norms(&self.workspace)?;
        Ok(norms[self.plan.tensors[tensor].unit_range()].to_vec())
    }

    /// Copies of all that a pass changes beside weights: scalars, and every slot but what only other calls write.
    pub(crate) fn snapshot(&self) -> Result<Snapshot<B>> {
        let mut slots = Vec::new();
        for (tensor, own) in self.slots.iter().enumerate() {
            for slot in Slot::ALL {
                if matches!(slot, Slot::Remembered | Slot::Importance) {
                    continue;
                }
                if let Some(buffer) = own.get(slot) {
                    slots.push((tensor, slot, self.backend.duplicate(buffer)?));
                }
            }
        }
        Ok(Snapshot { slots, scalars: self.scalars()? })
    }

    /// Puts back what [`Engine::snapshot`] copied.
    pub(crate) fn put_back(&mut self, snapshot: Snapshot<B>) -> Result<()> {
        self.scalars = self.backend.upload_scalars(&snapshot.scalars)?;
        snapshot.slots.into_iter().for_each(|(tensor, slot, buffer)| self.slots[tensor].put(slot, buffer));
        Ok(())
    }

    pub(crate) fn state(&self) -> Result<StateDict> {
        state::save(&self.backend, &self.set, &self.slots, &self.scalars()?)
    }

    pub(crate) fn load_state(&mut self, state: &StateDict) -> Result<()> {
        let scalars = state::load(&self.backend, &self.set, &mut self.slots, state)?;
        self.scalars = self.backend.upload_scalars(&scalars)?;
        Ok(())
    }
}
