//! The arithmetic of FTP, SPD, DiGraP, L2-SP and pulls.

use super::measure::{blocks, dot, l2, largest, norms};
use crate::constraint::{DigrapTest, Pull, PullWeights, RADIUS_FLOOR};
use crate::norm::Norm;

/// FTP's norms: the L1 norm of every row of `c`, plus 1e-8.
pub fn ftp_norms(c: &[f64], shape: &[usize]) -> Vec<f64> {
    norms(c, shape, Norm::Mars).iter().map(|n| n + RADIUS_FLOOR).collect()
}

/// FTP's radius gradient: `sum_r <g_r, c_prev_r> / n_prev_r` with the displacement before projection and the norms of
/// the previous step. Rows count whether or not they were limited.
pub fn ftp_radius_gradient(grad: &[f64], c_prev: &[f64], n_prev: &[f64], shape: &[usize]) -> f64 {
    let grads = blocks(grad, shape, Norm::Mars);
    let displacements = blocks(c_prev, shape, Norm::Mars);
    grads.iter().zip(&displacements).zip(n_prev).map(|((g, c), n)| dot(g, c) / n).sum()
}

/// The same without the previous displacement: `sum_r <g_r, W_r - W0_r> / min(radius_prev, n_prev_r)`.
pub fn ftp_radius_gradient_low(
    grad: &[f64],
    displacement: &[f64],
    radius_prev: f64,
    n_prev: &[f64],
    shape: &[usize],
) -> f64 {
    let limits: Vec<f64> = n_prev.iter().map(|n| n.min(radius_prev)).collect();
    ftp_radius_gradient(grad, displacement, &limits, shape)
}

/// FTP's annealing: a positive radius gradient (which shrinks the radius) is multiplied by `k`.
pub fn anneal(radius_grad: f64, k: f64) -> f64 {
    if radius_grad > 0.0 { k * radius_grad } else { radius_grad }
}

/// FTP's clip to `[floor, max_r n_r]`, where `n` contains its 1e-8; a floor above the largest norm wins.
pub fn ftp_clip(radius: f64, norms: &[f64], floor: f64) -> f64 {
    radius.min(largest(norms)).max(floor)
}

/// SPD's test value `-<g, W - W0>` over the whole tensor: decay is considered only below zero.
pub fn spd_alignment(grad: &[f64], displacement: &[f64]) -> f64 {
    -dot(grad, displacement)
}

/// SPD's ratio `clamp01((||D'|| - ||D||) / ||D'||)` of the displacements after and before the rule's step, L2 over the
/// whole tensor; 0 where `D' = 0`. The new displacement is `D' - strength * ratio * D'`.
pub fn spd_ratio(before: &[f64], after: &[f64]) -> f64 {
    let (old, new) = (l2(before), l2(after));
    if new == 0.0 { 0.0 } else { ((new - old) / new).clamp(0.0, 1.0) }
}

/// DiGraP's projection of the gradient on the displacement, `p = (<g, D> / ||D||^2) * D` (Eq. 3); 0 where
/// `||D||^2 < 1e-30`.
pub fn digrap_component(grad: &[f64], displacement: &[f64]) -> Vec<f64> {
    let square = dot(displacement, displacement);
    let factor = if square < 1e-30 { 0.0 } else { dot(grad, displacement) / square };
    displacement.iter().map(|d| factor * d).collect()
}

/// DiGraP's gradient of its strength ω (Eq. 8): `q = <g, p_prev> / (||g|| * ||p_prev|| + 1e-8)`.
///
/// The step was `-lr * (g - ω p)`, so `dL/dω = lr * <g_next, p>`. The step size is left out and the paper's undefined
/// "Normalization" is read as the cosine: a constant factor does not matter to Adam.
pub fn digrap_gradient(grad: &[f64], p_prev: &[f64]) -> f64 {
    dot(grad, p_prev) / (l2(grad) * l2(p_prev) + 1e-8)
}

/// Whether DiGraP projects, given `<g, D>`.
pub fn digrap_acts(test: DigrapTest, dot: f64) -> bool {
    match test {
        DigrapTest::Conflict => dot <= 0.0,
        DigrapTest::Agreement => dot > 0.0,
    }
}

/// L2-SP's pull `alpha * (W - W0)`, the gradient of `alpha / 2 * ||W - W0||^2`.
pub fn l2sp_pull(displacement: &[f64], alpha: f64) -> Vec<f64> {
    displacement.iter().map(|d| alpha * d).collect()
}

/// The gradient of a [`Pull`]: `strength / n * F * (anchor_l2 * D + anchor_l1 * sign(D) + zero_l2 * W + zero_l1 * sign(W))`, with
/// `sign(0) = 0`. `n` is what the sum is divided by; without an importance `F = 1`.
pub fn pull(
    pull: &Pull,
    weight: &[f64],
    displacement: &[f64],
    importance: Option<&[f64]>,
    n: f64,
) -> Vec<f64> {
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    (0..weight.len())
        .map(|i| {
            let (w, d) = (weight[i], displacement[i]);
            let to_anchor = pull.anchor_l2 * d + pull.anchor_l1 * sign(d);
            let to_zero = pull.zero_l2 * w + pull.zero_l1 * sign(w);
            pull.strength / n * importance.map_or(1.0, |f| f[i]) * (to_anchor + to_zero)
        })
        .collect()
}

/// The Fisher weights of a tensor, `g^2 / mean(g^2)`; zeros of a gradient that is all zero.
pub fn fisher(grad: &[f64]) -> Vec<f64> {
    let mean = dot(grad, grad) / grad.len() as f64;
    grad.iter().map(|g| if mean == 0.0 { 0.0 } else { g * g / mean }).collect()
}

/// The importance after `grad`, given the one before it; `first` if none was given before.
pub fn importance(weights: PullWeights, before: &[f64], grad: &[f64], first: bool) -> Vec<f64> {
    let fisher = fisher(grad);
    let now = before.iter().zip(&fisher);
    match weights {
        PullWeights::One => Vec::new(),
        PullWeights::Fisher => fisher,
        PullWeights::Running { .. } if first => fisher,
        PullWeights::Running { decay } => now.map(|(f, new)| decay * f + (1.0 - decay) * new).collect(),
        PullWeights::Gate { threshold } => {
            now.map(|(&f, &new)| if new >= threshold { 1.0 } else { f }).collect()
        }
    }
}
