//! Who must get a gradient by the first step.

use tpgm_core::ParamSet;

use super::error::Result;
use crate::audit::require_none_missing;
use crate::engine::Operands;

/// Whether the first step makes sure that every trainable tensor has a gradient.
///
/// candle cuts gradients silently where a layer has no backward; a model then trains in part, and nothing says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AuditPolicy {
    /// Every tensor must have one (tensors without elements excepted).
    #[default]
    EveryTensor,
    /// Every tensor must have one, except those that match one of these patterns (`*` and `?`): parameters that the
    /// loss really does not use.
    Except(Vec<String>),
    /// Nothing is checked.
    Off,
}

/// An [`AuditPolicy`] for the tensors of a set.
pub(super) struct GradientAudit {
    required: Vec<bool>,
}

impl GradientAudit {
    /// # Errors
    ///
    /// A pattern that matches nothing.
    pub(super) fn new(policy: &AuditPolicy, set: &ParamSet) -> Result<Self> {
        let mut required: Vec<bool> = match policy {
            AuditPolicy::Off => vec![false; set.len()],
            _ => set.tensors().iter().map(|spec| spec.numel() > 0).collect(),
        };
        if let AuditPolicy::Except(patterns) = policy {
            set.select(patterns)?.into_iter().for_each(|i| required[i] = false);
        }
        Ok(Self { required })
    }

    /// `got` says of each tensor whether it has a gradient.
    pub(super) fn check(&self, operands: &Operands, got: impl Iterator<Item = bool>) -> Result<()> {
        let required = self.required.iter().zip(operands.vars()).zip(got);
        let missing = required.filter(|((required, _), got)| **required && !got);
        Ok(require_none_missing(missing.map(|((_, (name, _)), _)| name), operands.len())?)
    }
}
