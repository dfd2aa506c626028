//! Exponential moving average of weights.

use crate::backend::{Backend, Blend};
use crate::constraint::Constraint;
use crate::element::Buffer;
use crate::error::{Error, Result};
use crate::params::ParamSet;
use crate::plan::Plan;
use crate::rule::{AdamW, check};

/// An exponential moving average of the weights of a set, kept in f32 (f64 for f64 tensors).
///
/// ```
/// use tpgm_core::{Cpu, DType, Ema, ParamSet, Slice};
/// let set = ParamSet::builder().tensor("w", [2], DType::F32).build()?;
/// let mut ema = Ema::new(Cpu::new(), &set, &[Slice::F32(&[1.0, 2.0])])?;
/// ema.update(&[Slice::F32(&[3.0, 2.0])], 0.5)?;
/// assert_eq!(ema.averages()[0].to_f64(), [2.0, 2.0]);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub struct Ema<B: Backend> {
    backend: B,
    set: ParamSet,
    plan: Plan,
    averages: Vec<B::Buffer>,
    workspace: B::Workspace,
}

impl<B: Backend> Ema<B> {
    /// Starts the average at `weights`, one per tensor in set order.
    ///
    /// # Errors
    ///
    /// Wrong number or length of weights, or no memory on the device.
    pub fn new(backend: B, set: &ParamSet, weights: &[B::Ref<'_>]) -> Result<Self> {
        let settings = set.settings(&AdamW::default().into(), &Constraint::None)?;
        let plan = Plan::new(set.tensors(), &settings, backend.chunk());
        let workspace = backend.workspace(&plan)?;
        let averages = set
            .tensors()
            .iter()
            .map(|spec| backend.zeros(spec.dtype.compute(), spec.numel()))
            .collect::<Result<Vec<_>>>()?;
        let mut ema = Self { backend, set: set.clone(), plan, averages, workspace };
        ema.update(weights, 0.0)?;
        Ok(ema)
    }

    /// `average = decay * average + (1 - decay) * weight`, `decay` in `[0, 1]`.
    ///
    /// Reads 8 and writes 4 bytes per f32 parameter.
    ///
    /// # Errors
    ///
    /// Wrong number or length of weights, or `decay` outside its range.
    pub fn update(&mut self, weights: &[B::Ref<'_>], decay: f64) -> Result<()> {
        check("decay of the moving average", decay, "in [0, 1]", |x| (0.0..=1.0).contains(&x))?;
        if weights.len() != self.set.len() {
            return Err(Error::CountMismatch {
                what: "weights",
                expected: self.set.len(),
                got: weights.len(),
            });
        }
        for (spec, weight) in self.set.tensors().iter().zip(weights) {
            let (_, got) = B::describe(*weight);
            if got != spec.numel() {
                let (tensor, expected) = (spec.name.clone(), spec.numel());
                return Err(Error::LengthMismatch { tensor, what: "weight", expected, got });
            }
        }
        let mut averages: Vec<_> = self.averages.iter_mut().map(B::as_mut).collect();
        let shares = Blend { keep: decay, take: 1.0 - decay };
        self.backend.blend(&self.plan, &mut self.workspace, &mut averages, weights, shares)
    }

    /// The averages, one per tensor in set order.
    pub fn averages(&self) -> &[B::Buffer] {
        &self.averages
    }

    /// Copies the averages out.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn state(&self) -> Result<Vec<Buffer>> {
        self.averages.iter().map(|average| self.backend.download(average)).collect()
    }

    /// Puts averages back that [`Ema::state`] copied out.
    ///
    /// # Errors
    ///
    /// Wrong number, length or type; the average is then unchanged.
    pub fn load_state(&mut self, state: &[Buffer]) -> Result<()> {
        if state.len() != self.set.len() {
            return Err(Error::CountMismatch {
                what: "averages",
                expected: self.set.len(),
                got: state.len(),
            });
        }
        let mut loaded = Vec::with_capacity(state.len());
        for (spec, saved) in self.set.tensors().iter().zip(state) {
            let (expected, got) = ((spec.dtype.compute(), spec.numel()), (saved.dtype(), saved.len()));
            if expected.0 != got.0 {
                let (expected, got) = (expected.0, got.0);
                return Err(Error::DTypeMismatch {
                    tensor: spec.name.clone(),
                    what: "average",
                    expected,
                    got,
                });
            }
            if expected.1 != got.1 {
                let (expected, got) = (expected.1, got.1);
                return Err(Error::LengthMismatch {
                    tensor: spec.name.clone(),
                    what: "average",
                    expected,
                    got,
                });
            }
            loaded.push(self.backend.upload(saved)?);
        }
        self.averages = loaded;
        Ok(())
    }
}
