//! Does every trainable tensor get a gradient, and is it right?
//!
//! candle cuts graphs silently: several of its fused layers have no backward pass, and whatever lies before them is not
//! trained, without any error. Run an audit once before training. Optimizers of this crate repeat its first part, the
//! search for missing gradients, at their first step.

mod error;
mod finite;
mod missing;
mod report;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use tpgm_core::Buffer;

pub use self::error::{Error, Result};
use self::finite::FiniteDifferences;
pub use self::finite::WrongGradient;
use self::missing::missing_gradients;
pub(crate) use self::missing::require_none_missing;
pub use self::missing::{Cause, MissingGradient};
pub use self::report::AuditReport;
use crate::memory::to_buffer;
use crate::params::{Param, Params};

impl Params {
    /// Runs `loss` and its backward pass once, and checks that every trainable tensor gets a finite gradient. Weights
    /// stay as they are. [`Audit`] has options.
    ///
    /// # Errors
    ///
    /// See [`Audit::run`].
    pub fn audit(&self, loss: impl FnMut() -> candle_core::Result<Tensor>) -> Result<AuditReport> {
        Audit::new(self).run(loss)
    }
}

/// An audit of gradients with options.
///
/// ```no_run
/// # use candle_core::{Result, Tensor};
/// # fn f(params: tpgm_candle::Params, loss: impl Fn() -> Result<Tensor>) -> tpgm_candle::Result<()> {
/// use tpgm_candle::Audit;
/// let report = Audit::new(&params).allow(["pooler.*"]).finite_differences(8, 1e-2).run(loss)?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Audit {
    params: Params,
    allow: Vec<String>,
    finite: Option<FiniteDifferences>,
}

impl Audit {
    /// An audit without options.
    pub fn new(params: &Params) -> Self {
        Self { params: params.clone(), allow: vec![], finite: None }
    }

    /// Tensors that match one of `patterns` need no gradient: the model does not use them.
    #[must_use]
    pub fn allow<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.allow.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Also compares gradients with central differences of the loss: for each tensor along the `entries` largest
    /// entries of its gradient, and along as many random ones, each moved by up to `eps` (1e-2 suits f32, 1e-4 f64).
    /// This takes eight evaluations of the loss per tensor, so use a small batch. `entries` of 0 is taken as 1.
    ///
    /// Differences of a loss say something only if it is the same every time: no dropout, one batch.
    #[must_use]
    pub fn finite_differences(mut self, entries: usize, eps: f64) -> Self {
        self.finite = Some(FiniteDifferences { entries: entries.max(1), eps });
        self
    }

    /// Runs the audit. `loss` returns one number and is called once, or more often to find out why gradients are
    /// missing and for finite differences. Weights are moved for that, in place, and put back, and so are buffers.
    ///
    /// # Errors
    ///
    /// - [`Error::NoGradient`], with what the tensors have in common;
    /// - [`crate::Error::Core`] with `NonFiniteGradient`, [`Error::NonFiniteLoss`], [`Error::LossShape`];
    /// - [`Error::WrongGradients`] or [`Error::RandomLoss`] from finite differences;
    /// - [`Error::UnmatchedPattern`](crate::params::Error::UnmatchedPattern) for an allowed pattern, or the errors of [`Params::set`];
    /// - what `loss` returns.
    pub fn run(&self, mut loss: impl FnMut() -> candle_core::Result<Tensor>) -> Result<AuditReport> {
        // Batch norm moves its running statistics whenever it is called.
        let buffers: Vec<(Var, Tensor)> = self
            .params
            .buffers()
            .values()
            .map(|buffer| Ok((Var::from_tensor(buffer)?, buffer.copy()?)))
            .collect::<Result<_>>()?;
        let report = self.examine(&mut loss);
        for (buffer, value) in &buffers {
            buffer.set(value)?;
        }
        report
    }

    fn examine(&self, loss: &mut dyn FnMut() -> candle_core::Result<Tensor>) -> Result<AuditReport> {
        self.params.set()?;
        let params = self.params.all();
        let tensor = loss()?;
        let value = loss_value(&tensor)?;
        let grads = tensor.backward()?;
        drop(tensor);
        if let Err(error) = missing_gradients(&params, &grads, &self.allow) {
            return Err(missing::explain(error, &params, value, loss));
        }
        let present = host_gradients(&params, &grads)?;
        let mut report = AuditReport::new(value, &params, &present)?;
        if let Some(finite) = &self.finite {
            report.inconclusive = finite.check(&present, value, loss)?;
            report.checked = present.len() - report.inconclusive.len();
        }
        Ok(report)
    }
}

/// The gradients that exist, on the host, with their parameters.
fn host_gradients<'a>(params: &'a [Param], grads: &GradStore) -> Result<Vec<(&'a Param, Buffer)>> {
    let present = params.iter().filter_map(|param| Some((param, grads.get(param.var())?)));
    present.map(|(param, grad)| Ok((param, to_buffer(param.name(), grad)?))).collect()
}

/// Runs `loss` with other values in some variables, which get their own back whatever happens.
fn loss_with(
    changes: &[(&Param, Tensor)],
    loss: &mut dyn FnMut() -> candle_core::Result<Tensor>,
) -> Result<f64> {
    let saved: Vec<Tensor> =
        changes.iter().map(|(param, _)| param.var().copy()).collect::<candle_core::Result<_>>()?;
    let mut run = || {
        for (param, value) in changes {
            param.var().set(value)?;
        }
        loss_value(&loss()?)
    };
    let result = run();
    for ((param, _), value) in changes.iter().zip(&saved) {
        param.var().set(value)?;
    }
    result
}

/// The value of a loss, which must be one finite number.
pub(crate) fn loss_value(loss: &Tensor) -> Result<f64> {
    if loss.elem_count() != 1 {
        return Err(Error::LossShape { shape: loss.dims().to_vec() });
    }
    let value = loss.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?[0];
    if value.is_finite() { Ok(value) } else { Err(Error::NonFiniteLoss { value }) }
}
