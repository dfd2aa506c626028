//! Options of one step.

use crate::error::Result;
use crate::rule::{above_zero, at_least_zero};

/// Whether a step of [`Tpgm`](crate::Tpgm) ends with a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Projection {
    /// Project with the current radii, in the same pass.
    #[default]
    Apply,
    /// Leave the weights where the rule put them: a projection update follows, and ends with the projection.
    Defer,
}

/// Whether a step makes sure that its gradients are finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Gradients {
    /// A gradient with an infinite or NaN element is an error, and the step changes nothing. Costs one more read of the
    /// gradients (4 bytes per f32 parameter), unless the constraint or clipping reads them beforehand anyway.
    #[default]
    Check,
    /// The caller knows that they are finite, for example because a loss scaler has just looked. What is not finite
    /// spreads into weights and state, as in PyTorch, except where clipping or the backend notices for free.
    Trust,
}

/// What changes from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct StepOptions {
    /// Learning rate of this step; `None` uses the rule's. Groups with their own `lr` are scaled along.
    pub lr: Option<f64>,
    /// Factor on every gradient before anything else: one over the loss scale, or over the number of accumulated
    /// batches. Default 1.
    pub grad_scale: f64,
    /// Clips the global L2 norm of all (scaled) gradients to this value: `g * min(1, max / (norm + 1e-6))`, as
    /// `torch.nn.utils.clip_grad_norm_`. Default off.
    pub max_grad_norm: Option<f64>,
    /// Whether TPGM projects.
    pub projection: Projection,
    /// Whether gradients are checked. Default: they are.
    pub gradients: Gradients,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self {
            lr: None,
            grad_scale: 1.0,
            max_grad_norm: None,
            projection: Projection::Apply,
            gradients: Gradients::Check,
        }
    }
}

impl StepOptions {
    /// A step with this learning rate.
    pub fn lr(lr: f64) -> Self {
        Self { lr: Some(lr), ..Self::default() }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.lr.map_or(Ok(()), |lr| at_least_zero("StepOptions::lr", lr))?;
        above_zero("StepOptions::grad_scale", self.grad_scale)?;
        self.max_grad_norm.map_or(Ok(()), |norm| above_zero("StepOptions::max_grad_norm", norm))
    }
}

/// What a step adds up over the gradient of a tensor, or of one piece of it, before it moves the tensor. Products that its constraint
/// does not ask for are 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepSums {
    /// `|g|^2`.
    pub square: f64,
    /// `<g, D>`, of the displacement now (SPD, DiGraP) or, over the row scales, of the one that FTP remembers.
    pub dot: f64,
    /// `|D|^2`.
    pub displacement: f64,
    /// `<g, D>` of the displacement before the previous step (DiGraP).
    pub previous: f64,
}

impl StepSums {
    /// Number of fields.
    pub const FIELDS: usize = 4;

    /// All fields in order.
    pub fn to_array(self) -> [f64; Self::FIELDS] {
        [self.square, self.dot, self.displacement, self.previous]
    }

    /// The reverse of [`StepSums::to_array`].
    pub fn from_array([square, dot, displacement, previous]: [f64; Self::FIELDS]) -> Self {
        Self { square, dot, displacement, previous }
    }

    /// Those of a whole tensor, from those of all of its pieces in order: the bits that a step finds by itself.
    pub fn total(pieces: impl IntoIterator<Item = Self>) -> Self {
        let add = |total: Self, piece: Self| Self {
            square: total.square + piece.square,
            dot: total.dot + piece.dot,
            displacement: total.displacement + piece.displacement,
            previous: total.previous + piece.previous,
        };
        pieces.into_iter().fold(Self::default(), add)
    }

    /// Whether all of them but the square are finite. Finite gradients can still overflow a product with what is remembered of
    /// earlier steps.
    pub fn products_are_finite(&self) -> bool {
        [self.dot, self.displacement, self.previous].iter().all(|sum| sum.is_finite())
    }
}
