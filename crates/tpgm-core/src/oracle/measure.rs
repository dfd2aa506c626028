//! Displacements, norms, dots.

use crate::element::DType;
use crate::norm::{Norm, rows_of};

/// `D = W - W0`; without an anchor `W0 = 0`.
pub fn displacement(weight: &[f64], anchor: Option<&[f64]>) -> Vec<f64> {
    match anchor {
        None => weight.to_vec(),
        Some(anchor) => weight.iter().zip(anchor).map(|(w, a)| w - a).collect(),
    }
}

/// Cuts a tensor into the pieces that `norm` measures: its rows with MARS, the whole tensor with L2.
pub fn blocks<'a>(values: &'a [f64], shape: &[usize], norm: Norm) -> Vec<&'a [f64]> {
    match norm {
        Norm::L2 => vec![values],
        Norm::Mars => {
            let (rows, len) = rows_of(shape);
            (0..rows).map(|r| values.get(r * len..(r + 1) * len).unwrap_or(&[])).collect()
        }
    }
}

/// The norm of every block: `[sqrt(sum D^2)]` with L2, `sum |D_r|` per row with MARS. No epsilon.
pub fn norms(displacement: &[f64], shape: &[usize], norm: Norm) -> Vec<f64> {
    blocks(displacement, shape, norm)
        .iter()
        .map(|block| match norm {
            Norm::L2 => l2(block),
            Norm::Mars => block.iter().map(|x| x.abs()).sum(),
        })
        .collect()
}

/// `sum a * b`.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// `sqrt(sum x^2)`.
pub fn l2(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// The largest norm; 0 of a tensor without rows.
pub fn largest(norms: &[f64]) -> f64 {
    norms.iter().copied().fold(0.0, f64::max)
}

/// The smallest norm; 0 of a tensor without rows.
pub fn smallest(norms: &[f64]) -> f64 {
    norms.iter().copied().reduce(f64::min).unwrap_or(0.0)
}

/// Rounds to the compute type of `dtype`: to an f32 value unless it is f64.
pub fn round_to(x: f64, dtype: DType) -> f64 {
    match dtype.compute() {
        DType::F64 => x,
        _ => f64::from(x as f32),
    }
}

/// Weights as a tensor of type `dtype` holds them between two operations: rounded to its compute type.
pub fn held(weights: Vec<f64>, dtype: DType) -> Vec<f64> {
    weights.iter().map(|&w| round_to(w, dtype)).collect()
}

/// `sqrt(sum over all tensors of ||g||^2)`; tensors without a gradient count nothing.
pub fn global_norm(grads: &[Option<Vec<f64>>]) -> f64 {
    grads.iter().flatten().map(|g| dot(g, g)).sum::<f64>().sqrt()
}

/// What every gradient is multiplied by so that their global norm is at most `max_norm`:
/// `min(1, max_norm / (norm + 1e-6))`, as `torch.nn.utils.clip_grad_norm_`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}
