//! Constraints: what bounds the displacement from the anchor.
//!
//! | constraint | what it does after the rule has proposed a step | learns | source |
//! |---|---|---|---|
//! | [`Constraint::None`] | nothing | - | - |
//! | [`FixedRadius`] | pulls the displacement back to a given radius | - | arXiv 2002.08253 |
//! | [`FixedScale`] | the same per element, for the scales of normalization layers | - | arXiv 2002.08253 |
//! | [`Tpgm`] | pulls it back to a radius learned on held-out data | radius | arXiv 2303.10720 |
//! | [`Ftp`] | pulls it back to a radius learned from the training gradient | radius | arXiv 2310.19182 |
//! | [`Spd`] | decays it when the gradient points home and the step goes out | - | arXiv 2411.01713 |
//! | [`Digrap`] | removes the outward part of the gradient | strength | arXiv 2502.15895 |
//! | [`L2Sp`] | adds a pull towards the anchor | - | arXiv 1802.01483 |
//! | [`Pull`] | adds pulls towards the anchor and zero, by importance | importance | arXiv 2401.10220, 2503.04229 |

mod pull;

use crate::error::{Error, Result};
use crate::norm::Norm;
use crate::rule::{above_zero, at_least_zero, check, unit_interval};

pub use self::pull::{Pull, PullScale, PullWeights};

/// The lowest value of a learned radius, also the epsilon of the ratio (TPGM and FTP reference code).
pub const RADIUS_FLOOR: f64 = 1e-8;

/// The small Adam that learns one scalar per tensor (a radius, or DiGraP's strength).
///
/// Its step is at most about `lr`, whatever the scale of the tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct RadiusAdam {
    /// Learning rate of the scalar. Default 1e-2 (`proj_lr` of TPGM, fixed in FTP's code).
    pub lr: f64,
    /// Decay of its first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of its second moment. Default 0.999.
    pub beta2: f64,
    /// Added to the root of its second moment. Default 1e-8.
    pub eps: f64,
}

impl Default for RadiusAdam {
    fn default() -> Self {
        Self { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

impl RadiusAdam {
    fn validate(&self) -> Result<()> {
        at_least_zero("RadiusAdam::lr", self.lr)?;
        unit_interval("RadiusAdam::beta1", self.beta1)?;
        unit_interval("RadiusAdam::beta2", self.beta2)?;
        at_least_zero("RadiusAdam::eps", self.eps)
    }
}

/// Projection on a ball of given radius after every step (arXiv 2002.08253): `W <- W0 + D / max(1, norm / radius)`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct FixedRadius {
    /// The radius, above 0, in the units of the norm. Default 8 (the authors search 1.6 to 33 for MARS).
    pub radius: f64,
    /// With [`Norm::Mars`] every row is limited on its own, with [`Norm::L2`] the whole tensor.
    pub norm: Norm,
}

impl Default for FixedRadius {
    fn default() -> Self {
        Self { radius: 8.0, norm: Norm::Mars }
    }
}

/// The per-element rule for scales of normalization layers (arXiv 2002.08253, the authors' code for BatchNorm).
///
/// With `s = sqrt(var + 1e-6)` of the current and `s0` of the anchor's running variance, the effective scale
/// `t = W / s - W0 / s0` is limited to `[-radius, radius]` and `W = (t + W0 / s0) * s`. Layers without running
/// statistics (LayerNorm, GroupNorm) give no variances; then `s = s0 = 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct FixedScale {
    /// The bound of every element, above 0. Default 8.
    pub radius: f64,
}

impl Default for FixedScale {
    fn default() -> Self {
        Self { radius: 8.0 }
    }
}

/// Trainable Projected Gradient Method (CVPR 2023, arXiv 2303.10720): one radius per tensor, learned on held-out data.
///
/// The step projects with the current radii; the radii are learned by projection updates, see
/// [`Projector`](crate::Projector).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Tpgm {
    /// MARS in the paper's DomainNet runs (default), L2 in its ImageNet runs.
    pub norm: Norm,
    /// Adam of the radii; `lr` is the paper's `proj_lr`.
    pub adam: RadiusAdam,
}

/// How [`Ftp`] computes its radius gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum FtpMemory {
    /// Keeps the displacement of the previous step (4 bytes per parameter), as published.
    #[default]
    Exact,
    /// Keeps nothing of parameter size: `<g, c_prev> / n` is replaced by `<g, W - W0> / min(radius, n)`, equal in exact
    /// arithmetic. **An approximation**: `W - W0` loses its digits when the radius is small, so the radius starts and
    /// stays at or above one radius step (`adam.lr`) instead of 1e-8, and the first step is not thrown away.
    Low,
}

/// Fast Trainable Projection (NeurIPS 2023, arXiv 2310.19182): the radius is learned inside the step, from the training
/// gradient. Always MARS norms.
///
/// The first step of a tensor returns it to its anchor (radius 1e-8) while the moments keep the step, as published.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Ftp {
    /// Annealing factor in `[0, 1]` of radius gradients that shrink the radius. 1 (default) is the strongest constraint,
    /// 0 lets the radius only grow.
    pub k: f64,
    /// Adam of the radii. The published code fixes these to the defaults.
    pub adam: RadiusAdam,
    /// Exact or low-memory.
    pub memory: FtpMemory,
}

impl Default for Ftp {
    fn default() -> Self {
        Self { k: 1.0, adam: RadiusAdam::default(), memory: FtpMemory::Exact }
    }
}

/// Selective Projection Decay (NeurIPS 2024, arXiv 2411.01713).
///
/// When the gradient points back to the anchor (`<g, W - W0> > 0`) and the rule still moves outward, the displacement
/// is multiplied by `1 - strength * growth / norm`. Not scaled by the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Spd {
    /// λ (`weight_decay` in the authors' code), at least 0. 1 (default) projects on the previous radius; more overshoots.
    pub strength: f64,
}

impl Default for Spd {
    fn default() -> Self {
        Self { strength: 1.0 }
    }
}

/// Which sign of `<g, W - W0>` makes [`Digrap`] act. Sources disagree, see [`Digrap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum DigrapTest {
    /// Project when `<g, W - W0> <= 0`: the descent step leads away from the anchor.
    #[default]
    Conflict,
    /// Project when `<g, W - W0> > 0`.
    Agreement,
}

/// Directional Gradient Projection (ICLR 2025, arXiv 2502.15895): a learned share ω in `[0, 1]` of the gradient's
/// component along the displacement is removed before the rule sees it.
///
/// No code was published. Two points are readings of the paper, not facts: the sign of the test ([`DigrapTest`], by the
/// caption of its Fig. 1), and the undefined "Normalization" of Eq. 8, taken as the cosine (a constant factor would not
/// matter to Adam).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Digrap {
    /// Adam of ω; `lr` is the paper's μ.
    pub adam: RadiusAdam,
    /// When to project.
    pub test: DigrapTest,
}

/// How the pull of [`L2Sp`] and [`Pull`] enters the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Coupling {
    /// `alpha * (W - W0)` is added to the gradient: part of the loss, rescaled by momentum and preconditioner.
    #[default]
    Coupled,
    /// `lr * alpha * (W - W0)` is part of the update.
    Decoupled,
}

/// L2-SP (ICML 2018, arXiv 1802.01483): the penalty `alpha / 2 * ||W - W0||^2`, with the ½.
///
/// The paper's β for new layers is the same on tensors with a zero anchor; its default leaves biases and normalization
/// scales free: mark them `excluded`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct L2Sp {
    /// Strength, at least 0. Default 0.1 (the paper's backbone).
    pub alpha: f64,
    /// Through the gradient (default, as published) or beside it.
    pub coupling: Coupling,
}

impl Default for L2Sp {
    fn default() -> Self {
        Self { alpha: 0.1, coupling: Coupling::Coupled }
    }
}

/// What bounds the displacement. Any constraint goes with any [`Rule`](crate::Rule).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Constraint {
    /// The plain rule.
    #[default]
    None,
    /// A given radius.
    FixedRadius(FixedRadius),
    /// A given bound per element of a normalization scale.
    FixedScale(FixedScale),
    /// A radius learned on held-out data.
    Tpgm(Tpgm),
    /// A radius learned inside the step.
    Ftp(Ftp),
    /// Selective decay.
    Spd(Spd),
    /// Directional gradient projection.
    Digrap(Digrap),
    /// A penalty.
    L2Sp(L2Sp),
    /// Penalties towards the anchor and zero, weighted by importance if wanted.
    Pull(Pull),
}

macro_rules! into_constraint {
    ($($name:ident),*) => {
        $(impl From<$name> for Constraint {
            fn from(constraint: $name) -> Self {
                Constraint::$name(constraint)
            }
        })*
    };
}
into_constraint!(FixedRadius, FixedScale, Tpgm, Ftp, Spd, Digrap, L2Sp, Pull);

impl Constraint {
    /// Name as used in messages and tables.
    pub const fn name(&self) -> &'static str {
        match self {
            Constraint::None => "none",
            Constraint::FixedRadius(_) => "fixed radius",
            Constraint::FixedScale(_) => "fixed scale",
            Constraint::Tpgm(_) => "TPGM",
            Constraint::Ftp(_) => "FTP",
            Constraint::Spd(_) => "SPD",
            Constraint::Digrap(_) => "DiGraP",
            Constraint::L2Sp(_) => "L2-SP",
            Constraint::Pull(_) => "pull",
        }
    }

    /// The norm whose value over the displacement this constraint looks at after the rule's step, if it does.
    pub const fn norm(&self) -> Option<Norm> {
        match self {
            Constraint::None
            | Constraint::FixedScale(_)
            | Constraint::Digrap(_)
            | Constraint::L2Sp(_)
            | Constraint::Pull(_) => None,
            Constraint::FixedRadius(c) => Some(c.norm),
            Constraint::Tpgm(c) => Some(c.norm),
            Constraint::Ftp(_) => Some(Norm::Mars),
            Constraint::Spd(_) => Some(Norm::L2),
        }
    }

    /// Whether it measures from the anchor.
    pub const fn is_anchored(&self) -> bool {
        match self {
            Constraint::None => false,
            Constraint::Pull(c) => c.is_anchored(),
            _ => true,
        }
    }

    /// What the elements of its pull are weighted by, if an importance is kept for that.
    pub(crate) fn importance(&self) -> Option<PullWeights> {
        match self {
            Constraint::Pull(c) if c.weights.is_kept() => Some(c.weights),
            _ => None,
        }
    }

    /// The same constraint with its one strength replaced: the radius of [`FixedRadius`] and [`FixedScale`], `k` of
    /// [`Ftp`], `strength` of [`Spd`] and [`Pull`], `alpha` of [`L2Sp`], the learning rate of the learned scalar of [`Tpgm`]
    /// and [`Digrap`]. `None` if it has none.
    pub(crate) fn with_strength(mut self, strength: f64) -> Option<Self> {
        match &mut self {
            Constraint::None => return None,
            Constraint::FixedRadius(c) => c.radius = strength,
            Constraint::FixedScale(c) => c.radius = strength,
            Constraint::Tpgm(c) => c.adam.lr = strength,
            Constraint::Ftp(c) => c.k = strength,
            Constraint::Spd(c) => c.strength = strength,
            Constraint::Digrap(c) => c.adam.lr = strength,
            Constraint::L2Sp(c) => c.alpha = strength,
            Constraint::Pull(c) => c.strength = strength,
        }
        Some(self)
    }

    /// The same constraint with its norm replaced; `None` if its norm cannot be chosen.
    pub(crate) fn with_norm(mut self, norm: Norm) -> Option<Self> {
        match &mut self {
            Constraint::FixedRadius(c) => c.norm = norm,
            Constraint::Tpgm(c) => c.norm = norm,
            _ => return None,
        }
        Some(self)
    }

    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] with the name and value of the first option outside its range.
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Constraint::None => Ok(()),
            Constraint::FixedRadius(c) => above_zero("FixedRadius::radius", c.radius),
            Constraint::FixedScale(c) => above_zero("FixedScale::radius", c.radius),
            Constraint::Tpgm(c) => c.adam.validate(),
            Constraint::Ftp(c) => {
                check("Ftp::k", c.k, "in [0, 1]", |k| (0.0..=1.0).contains(&k))?;
                c.adam.validate()?;
                match c.memory {
                    FtpMemory::Exact => Ok(()),
                    FtpMemory::Low => {
                        above_zero("Ftp::adam.lr (its radius floor with FtpMemory::Low)", c.adam.lr)
                    }
                }
            }
            Constraint::Spd(c) => at_least_zero("Spd::strength", c.strength),
            Constraint::Digrap(c) => c.adam.validate(),
            Constraint::L2Sp(c) => at_least_zero("L2Sp::alpha", c.alpha),
            Constraint::Pull(c) => c.validate(),
        }
    }
}
