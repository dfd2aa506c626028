//! Interpolation of live weights, on any backend.

use crate::backend::{Backend, Blend, TensorIo};
use crate::constraint::Constraint;
use crate::engine::check_weights;
use crate::error::{Error, Result};
use crate::params::ParamSet;
use crate::plan::Plan;
use crate::rule::{AdamW, check};

/// [`WiseFt`](super::WiseFt) where the weights are: `W = (1 - alpha) * W0 + alpha * W` for a whole set in one pass, in place.
/// Without Fisher information.
///
/// ```
/// use tpgm_core::weight_space::Interpolator;
/// use tpgm_core::{Cpu, DType, ParamSet, TensorIo};
///
/// let set = ParamSet::builder().tensor("head.weight", [2], DType::F32).build()?;
/// let (anchor, mut weight) = ([1.0f32, 2.0], [3.0f32, -2.0]);
/// let mut interpolator = Interpolator::new(Cpu::new(), &set)?;
/// interpolator.interpolate(&mut [TensorIo::new(&mut weight).anchor(&anchor)], 0.25)?;
/// assert_eq!(weight, [1.5, 1.0]);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub struct Interpolator<B: Backend> {
    backend: B,
    set: ParamSet,
    plan: Plan,
    workspace: B::Workspace,
}

impl<B: Backend> Interpolator<B> {
    /// Binds a set to a backend. Groups do not matter: every tensor is interpolated.
    ///
    /// # Errors
    ///
    /// No memory on the device.
    pub fn new(backend: B, set: &ParamSet) -> Result<Self> {
        let settings = set.settings(&AdamW::default().into(), &Constraint::None)?;
        let plan = Plan::new(set.tensors(), &settings, backend.chunk());
        let workspace = backend.workspace(&plan)?;
        Ok(Self { backend, set: set.clone(), plan, workspace })
    }

    /// `W = (1 - alpha) * W0 + alpha * W`; `io` has one entry per tensor, in set order, each with its anchor; `alpha` is in
    /// `[0, 1]`. Reads 8 and writes 4 bytes per f32 parameter.
    ///
    /// # Errors
    ///
    /// Wrong number, length or type of operands, a missing anchor, `alpha` outside its range, or the device fails.
    pub fn interpolate(&mut self, io: &mut [TensorIo<'_, B>], alpha: f64) -> Result<()> {
        check("WiseFt::alpha", alpha, "in [0, 1]", |x| (0.0..=1.0).contains(&x))?;
        check_weights(&self.set, io)?;
        let mut anchors = Vec::with_capacity(io.len());
        for (spec, io) in self.set.tensors().iter().zip(io.iter()) {
            let tensor = || spec.name.clone();
            let anchor =
                io.anchor.ok_or_else(|| Error::MissingAnchor { tensor: tensor(), constraint: "WiSE-FT" })?;
            let (expected, got) = (spec.numel(), B::describe(anchor).1);
            if expected != got {
                return Err(Error::LengthMismatch { tensor: tensor(), what: "anchor", expected, got });
            }
            anchors.push(anchor);
        }
        let mut weights: Vec<_> = io.iter_mut().map(|io| B::reborrow(&mut io.weight)).collect();
        let shares = Blend { keep: alpha, take: 1.0 - alpha };
        self.backend.blend(&self.plan, &mut self.workspace, &mut weights, &anchors, shares)
    }
}
