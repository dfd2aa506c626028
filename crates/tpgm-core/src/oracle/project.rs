//! Projection on a ball around the anchor, and the gradient of its radius.

use super::measure::{blocks, displacement, dot, largest, norms, round_to, smallest};
use super::state::Variances;
use crate::constraint::{RADIUS_FLOOR, RadiusAdam};
use crate::element::DType;
use crate::norm::Norm;

/// The argument of TPGM's ratio, `radius / (norm + 1e-8)`, **evaluated in the compute type** of `dtype`.
///
/// In f64 a radius equal to its norm gives slightly less than 1. In f32 the sum rounds to `norm` from about 0.25 on and
/// the quotient is exactly 1, so that the radius gradient vanishes. Both are right for their type.
pub fn ratio_argument(radius: f64, norm: f64, dtype: DType) -> f64 {
    match dtype.compute() {
        DType::F64 => radius / (norm + RADIUS_FLOOR),
        _ => f64::from(radius as f32 / (norm as f32 + RADIUS_FLOOR as f32)),
    }
}

/// TPGM's ratio of every block: `clamp01(radius / (n + 1e-8))`.
pub fn ratios(radius: f64, norms: &[f64], dtype: DType) -> Vec<f64> {
    norms.iter().map(|&n| ratio_argument(radius, n, dtype).clamp(0.0, 1.0)).collect()
}

/// TPGM's first radius: half the smallest norm.
pub fn initial_radius(norms: &[f64]) -> f64 {
    smallest(norms) / 2.0
}

/// TPGM's clip: from below to 1e-8, then from above to the largest norm, which is 0 for a tensor without displacement.
pub fn clip_radius(radius: f64, norms: &[f64], dtype: DType) -> f64 {
    radius.max(round_to(RADIUS_FLOOR, dtype)).min(largest(norms))
}

/// `W~_r = ratio_r * D_r + W0_r` for every block `r`; without an anchor `W0 = 0`.
pub fn project(
    displacement: &[f64],
    anchor: Option<&[f64]>,
    shape: &[usize],
    norm: Norm,
    ratios: &[f64],
) -> Vec<f64> {
    let scaled: Vec<f64> = blocks(displacement, shape, norm)
        .into_iter()
        .zip(ratios)
        .flat_map(|(block, ratio)| block.iter().map(move |d| d * ratio))
        .collect();
    add_anchor(scaled, anchor)
}

pub(super) fn add_anchor(displacement: Vec<f64>, anchor: Option<&[f64]>) -> Vec<f64> {
    match anchor {
        None => displacement,
        Some(anchor) => displacement.iter().zip(anchor).map(|(d, a)| d + a).collect(),
    }
}

/// TPGM's radius gradient: the sum of `<dL/dW~_r, D_r> / (n_r + 1e-8)` over the blocks that the ratio limits,
/// `0 < radius / (n_r + 1e-8) < 1` with both ends excluded.
pub fn radius_gradient(
    grad: &[f64],
    displacement: &[f64],
    shape: &[usize],
    norm: Norm,
    norms: &[f64],
    radius: f64,
    dtype: DType,
) -> f64 {
    let grads = blocks(grad, shape, norm);
    let displacements = blocks(displacement, shape, norm);
    let mut sum = 0.0;
    for ((g, d), &n) in grads.iter().zip(&displacements).zip(norms) {
        let argument = ratio_argument(radius, n, dtype);
        if 0.0 < argument && argument < 1.0 {
            sum += dot(g, d) / (n + RADIUS_FLOOR);
        }
    }
    sum
}

/// One Adam step of a learned scalar with step number `t` in the bias correction; returns `(x, m, v)`, not clipped:
/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `x -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`.
pub fn radius_adam(adam: &RadiusAdam, x: f64, m: f64, v: f64, grad: f64, t: u64) -> (f64, f64, f64) {
    let t = t as f64;
    let m = adam.beta1 * m + (1.0 - adam.beta1) * grad;
    let v = adam.beta2 * v + (1.0 - adam.beta2) * grad * grad;
    let mean = m / (1.0 - adam.beta1.powf(t));
    let root = (v / (1.0 - adam.beta2.powf(t))).sqrt();
    (x - adam.lr * mean / (root + adam.eps), m, v)
}

/// Projection on a given radius: `W0 + D / max(1, n / radius)`, per row (MARS) or per tensor (L2).
pub fn fixed_radius(
    weight: &[f64],
    anchor: Option<&[f64]>,
    shape: &[usize],
    norm: Norm,
    radius: f64,
) -> Vec<f64> {
    let d = displacement(weight, anchor);
    let ratios: Vec<f64> = norms(&d, shape, norm).iter().map(|n| 1.0 / (n / radius).max(1.0)).collect();
    project(&d, anchor, shape, norm, &ratios)
}

/// The per-element rule for normalization scales: with `s = sqrt(var + 1e-6)`, `s0 = sqrt(var0 + 1e-6)` (1 without
/// variances), `t = W / s - W0 / s0` is divided by `max(1, |t| / radius)` and `W = (t + W0 / s0) * s`.
pub fn fixed_scale(
    weight: &[f64],
    anchor: Option<&[f64]>,
    variances: Option<&Variances>,
    radius: f64,
) -> Vec<f64> {
    let std = |variance: Option<&f64>| variance.map_or(1.0, |v| (v + 1e-6).sqrt());
    (0..weight.len())
        .map(|i| {
            let s = std(variances.and_then(|v| v.current.get(i)));
            let s0 = std(variances.and_then(|v| v.anchor.get(i)));
            let home = anchor.and_then(|a| a.get(i)).map_or(0.0, |a| a / s0);
            let t = weight[i] / s - home;
            (t / (t.abs() / radius).max(1.0) + home) * s
        })
        .collect()
}
