//! Shapes and numbers.

use crate::element::{Buffer, DType};
use crate::params::{ParamSet, TensorSpec};

/// Elements per piece in the suite: small, so that small tensors are cut.
pub(super) const CHUNK: usize = 32;

/// Shapes that are hard to cut.
pub(super) fn shapes() -> Vec<Vec<usize>> {
    vec![
        vec![],  // a scalar
        vec![0], // nothing
        vec![1],
        vec![3],
        vec![123],          // one row of several pieces
        vec![4, CHUNK - 1], // rows just below, at and above a piece
        vec![3, CHUNK],
        vec![2, CHUNK + 1],
        vec![5, 0],       // rows without elements
        vec![7, 3, 1, 2], // short rows, many to a piece
        vec![1, 1500],    // longer than a block of the CPU kernels
    ]
}

/// A set of all awkward shapes.
pub(super) fn specs(dtype: DType) -> Vec<TensorSpec> {
    let spec = |(i, shape)| TensorSpec { name: format!("block{i}.weight"), shape, dtype };
    shapes().into_iter().enumerate().map(spec).collect()
}

/// A set of all awkward shapes, without groups.
pub(super) fn set(dtype: DType) -> ParamSet {
    build(specs(dtype))
}

pub(super) fn build(specs: Vec<TensorSpec>) -> ParamSet {
    ParamSet::builder().tensors(specs).build().expect("names differ and there are no groups")
}

/// Evenly distributed numbers in `(-scale, scale)` from a hash: the same on every machine.
pub(super) fn uniform(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    let hash = |i: usize| {
        let mut x =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 31;
        x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 29;
        x.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 11
    };
    (0..len).map(|i| scale * (2.0 * (hash(i) as f64 + 0.5) / (1u64 << 53) as f64 - 1.0)).collect()
}

/// The same numbers rounded to `dtype`.
pub(super) fn rounded(dtype: DType, values: &[f64]) -> Vec<f64> {
    Buffer::from_f64(dtype, values).to_f64()
}

/// Anchors, weights near them, and gradients of several steps that turn around now and then, so that every constraint has
/// something to do. All values are exact in their types.
pub(super) struct Problem {
    pub(super) anchors: Vec<Option<Vec<f64>>>,
    pub(super) weights: Vec<Vec<f64>>,
    pub(super) grads: Vec<Vec<Option<Vec<f64>>>>,
}

impl Problem {
    pub(super) fn new(specs: &[TensorSpec], anchor_dtype: DType, steps: usize, seed: u64) -> Self {
        let mut problem =
            Problem { anchors: Vec::new(), weights: Vec::new(), grads: vec![Vec::new(); steps] };
        for (t, spec) in specs.iter().enumerate() {
            let (n, seed) = (spec.numel(), seed + 1000 * t as u64);
            let anchor = rounded(anchor_dtype, &uniform(seed, n, 0.5));
            let offset = uniform(seed + 1, n, 0.05);
            let weight: Vec<f64> = anchor.iter().zip(&offset).map(|(a, d)| a + d).collect();
            problem.weights.push(rounded(spec.dtype, &weight));
            problem.anchors.push(Some(anchor));
            let direction = uniform(seed + 2, n, 1.0);
            for (step, grads) in problem.grads.iter_mut().enumerate() {
                let sign = if (step + t) % 3 == 2 { -1.0 } else { 1.0 };
                let noise = uniform(seed + 3 + step as u64, n, 0.3);
                let grad: Vec<f64> = direction.iter().zip(&noise).map(|(d, e)| sign * d + e).collect();
                grads.push(Some(rounded(spec.dtype, &grad)));
            }
        }
        problem
    }
}
