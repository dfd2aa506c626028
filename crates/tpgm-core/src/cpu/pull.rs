//! How far a displacement is pulled back, given its norm.

use crate::constraint::{Constraint, RADIUS_FLOOR, RadiusAdam};
use crate::element::{DType, Real};
use crate::scalars::TensorScalars;

/// What a constraint multiplies a displacement by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pull {
    /// Nothing is pulled back.
    Keep,
    /// `1 / max(1, norm / radius)`.
    Fixed { radius: f64 },
    /// `clamp01(radius / (norm + 1e-8))`: TPGM's ratio, and FTP's, whose norm contains the 1e-8.
    Learned { radius: f64 },
    /// `1 - strength * clamp01((norm - before) / norm)`.
    Selective { strength: f64, before: f64 },
}

impl Pull {
    /// The factor for a norm, in compute type.
    #[inline(always)]
    pub(super) fn ratio<C: Real>(self, norm: f64) -> C {
        match self {
            Pull::Keep => C::ONE,
            Pull::Fixed { radius } => {
                if norm <= radius {
                    C::ONE
                } else {
                    C::from_f64(radius / norm)
                }
            }
            Pull::Learned { radius } => share::<C>(radius, norm).max(C::ZERO).min(C::ONE),
            Pull::Selective { strength, before } => {
                if norm <= before {
                    C::ONE
                } else {
                    C::from_f64(1.0 - strength * ((norm - before) / norm).min(1.0))
                }
            }
        }
    }
}

/// `radius / (norm + 1e-8)`, evaluated in compute type: in f32 a norm of 0.25 or more swallows the 1e-8, and a radius
/// equal to its norm then counts as saturated, as in the reference code.
#[inline(always)]
pub(super) fn share<C: Real>(radius: f64, norm: f64) -> C {
    C::from_f64(radius) / (C::from_f64(norm) + C::from_f64(RADIUS_FLOOR))
}

/// Rounds a radius to a value of the compute type.
pub(super) fn round(dtype: DType, x: f64) -> f64 {
    match dtype.compute() {
        DType::F64 => x,
        _ => f64::from(x as f32),
    }
}

/// One Adam step on the learned scalar, with `t` in the bias correction. Not clipped.
pub(super) fn adam(scalars: &mut TensorScalars, adam: &RadiusAdam, grad: f64, t: f64) {
    scalars.radius_grad = grad;
    scalars.radius_m = adam.beta1 * scalars.radius_m + (1.0 - adam.beta1) * grad;
    scalars.radius_v = adam.beta2 * scalars.radius_v + (1.0 - adam.beta2) * grad * grad;
    let m = scalars.radius_m / (1.0 - adam.beta1.powf(t));
    let v = scalars.radius_v / (1.0 - adam.beta2.powf(t));
    scalars.radius_unclipped = scalars.radius - adam.lr * m / (v.sqrt() + adam.eps);
    scalars.radius = scalars.radius_unclipped;
}

/// Norms of the units of one tensor, summed up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NormRange {
    pub(super) min: f64,
    pub(super) max: f64,
}

impl NormRange {
    pub(super) const EMPTY: Self = Self { min: f64::INFINITY, max: 0.0 };

    /// Takes one more norm in. NaN makes the maximum NaN.
    #[inline(always)]
    pub(super) fn add(&mut self, norm: f64) {
        self.min = self.min.min(norm);
        self.max = if norm > self.max || norm.is_nan() { norm } else { self.max };
    }

    pub(super) fn join(self, other: Self) -> Self {
        let mut joined = self;
        if other.min <= other.max || other.max.is_nan() {
            joined.add(other.min);
            joined.add(other.max);
        }
        joined
    }
}

/// TPGM: sets the radius at the first traversal, then clips it to `[1e-8, largest norm]` (the upper bound last, so it is
/// 0 without displacement).
pub(super) fn clip_tpgm(scalars: &mut TensorScalars, dtype: DType, norms: NormRange) {
    if scalars.initialized == 0.0 {
        scalars.radius = round(dtype, norms.min) / 2.0;
        scalars.initialized = 1.0;
    }
    scalars.radius = round(dtype, scalars.radius.max(RADIUS_FLOOR).min(round(dtype, norms.max)));
}

/// True for constraints whose radius is learned on held-out data.
pub(super) fn is_tpgm(constraint: &Constraint) -> bool {
    matches!(constraint, Constraint::Tpgm(_))
}
