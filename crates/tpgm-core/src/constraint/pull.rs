//! The pull: penalties on the distance from the anchor and from zero, weighted by importance if wanted.

use super::Coupling;
use crate::error::Result;
use crate::rule::{above_zero, at_least_zero, unit_interval};

/// What the sum of a [`Pull`] is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum PullScale {
    /// Nothing: the sum over all elements.
    #[default]
    Sum,
    /// The number of elements of the tensor: tensors count alike.
    TensorMean,
    /// The number of elements of all tensors of the set, whatever their settings: elements count alike (AutoFT,
    /// arXiv 2401.10220).
    SetMean,
}

/// What each element of a [`Pull`] is weighted by: its importance `F`.
///
/// An importance is a slot of 4 bytes per parameter (8 for f64 tensors). It starts at 0, so nothing is pulled until it is
/// given: from gradients by [`Optimizer::update_importance`](crate::Optimizer::update_importance), or as values by
/// [`Optimizer::set_importance`](crate::Optimizer::set_importance).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum PullWeights {
    /// All elements alike; no slot.
    #[default]
    One,
    /// `F = g^2 / mean(g^2)` of the last gradients given, with the mean over the tensor (GIFT, arXiv 2503.04229). A tensor whose
    /// gradient is all zero gets zeros, where the published code divides 0 by 0.
    Fisher,
    /// The moving average of the same: `F = decay * F + (1 - decay) * g^2 / mean(g^2)`, from the first gradients on.
    Running {
        /// Share of the earlier importance that is kept, in `[0, 1)`.
        decay: f64,
    },
    /// A gate of 0 or 1, which opens (1) where `g^2 / mean(g^2)` reaches the threshold and stays open: what mattered for one of
    /// the earlier tasks is held (our reading of GRCL, arXiv 2309.15274).
    Gate {
        /// Above 0; 1 is the mean of the tensor.
        threshold: f64,
    },
}

impl PullWeights {
    /// Whether the pull keeps an importance.
    pub const fn is_kept(&self) -> bool {
        !matches!(self, PullWeights::One)
    }
}

/// A pull towards the anchor, towards zero, or both: the penalty
///
/// `strength / n * sum F * (anchor_l2 / 2 * D^2 + anchor_l1 * |D| + zero_l2 / 2 * W^2 + zero_l1 * |W|)`
///
/// with `D = W - W0`, the importance `F` ([`PullWeights`]) and `n` ([`PullScale`]). It enters as its gradient, where the slope of
/// `|x|` at 0 is 0. [`L2Sp`](crate::L2Sp) is the same with `anchor_l2` alone, to the bit.
///
/// Squares have their half, as in L2-SP. Where published code has none (`w * mean(D^2)` of AutoFT, `sum F * D^2` of GIFT), give
/// twice its weight. With `anchor_l1` or `zero_l1` and [`Coupling::Decoupled`] a weight closer than one step jumps over its goal.
///
/// Tensors with a zero anchor have `D = W`. An anchor is needed only if `anchor_l1` or `anchor_l2` is above 0.
///
/// ```
/// use tpgm_core::{Pull, PullScale, PullWeights};
/// let l1sp = Pull { anchor_l1: 1e-3, ..Pull::default() };
/// let gift = Pull { anchor_l2: 2.0, weights: PullWeights::Fisher, ..Pull::default() };
/// let autoft = Pull { anchor_l1: 0.424, zero_l2: 2.0 * 0.106, scale: PullScale::SetMean, ..Pull::default() };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Pull {
    /// Factor on all four, at least 0; [`Group::strength`](crate::Group::strength) sets it. Default 1.
    pub strength: f64,
    /// Of half the squared distance from the anchor, at least 0. Default 0.
    pub anchor_l2: f64,
    /// Of the absolute distance from the anchor, at least 0. Default 0.
    pub anchor_l1: f64,
    /// Of half the square, at least 0. Default 0.
    pub zero_l2: f64,
    /// Of the absolute value, at least 0. Default 0.
    pub zero_l1: f64,
    /// Sum or mean. Default: sum.
    pub scale: PullScale,
    /// Through the gradient (default) or beside it.
    pub coupling: Coupling,
    /// Importance of each element. Default: one.
    pub weights: PullWeights,
}

impl Default for Pull {
    fn default() -> Self {
        Self {
            strength: 1.0,
            anchor_l2: 0.0,
            anchor_l1: 0.0,
            zero_l2: 0.0,
            zero_l1: 0.0,
            scale: PullScale::Sum,
            coupling: Coupling::Coupled,
            weights: PullWeights::One,
        }
    }
}

impl Pull {
    /// Whether it looks at the anchor.
    pub(crate) const fn is_anchored(&self) -> bool {
        self.anchor_l1 > 0.0 || self.anchor_l2 > 0.0
    }

    /// Strength over what the sum is divided by, for a tensor of `numel` elements in a set of `all`.
    pub fn factor(&self, numel: usize, all: usize) -> f64 {
        match self.scale {
            PullScale::Sum => self.strength,
            PullScale::TensorMean => self.strength / numel.max(1) as f64,
            PullScale::SetMean => self.strength / all.max(1) as f64,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        at_least_zero("Pull::strength", self.strength)?;
        at_least_zero("Pull::anchor_l2", self.anchor_l2)?;
        at_least_zero("Pull::anchor_l1", self.anchor_l1)?;
        at_least_zero("Pull::zero_l2", self.zero_l2)?;
        at_least_zero("Pull::zero_l1", self.zero_l1)?;
        match self.weights {
            PullWeights::One | PullWeights::Fisher => Ok(()),
            PullWeights::Running { decay } => unit_interval("PullWeights::Running::decay", decay),
            PullWeights::Gate { threshold } => above_zero("PullWeights::Gate::threshold", threshold),
        }
    }
}
