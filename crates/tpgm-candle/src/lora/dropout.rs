//! Dropout of an adapter's input.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Result, Tensor};

use super::random::Random;

/// Sets elements to zero with probability `p` and scales the others by `1 / (1 - p)`. The masks depend on the seed, the
/// module's name, and how many were drawn before.
#[derive(Debug)]
pub(super) struct Dropout {
    p: f64,
    seed: u64,
    name: String,
    drawn: AtomicU64,
}

impl Dropout {
    pub(super) fn new(p: f64, seed: u64, name: &str) -> Self {
        Self { p, seed, name: format!("{name}.dropout"), drawn: AtomicU64::new(0) }
    }

    pub(super) fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        if self.p == 0.0 {
            return Ok(xs.clone());
        }
        let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut random = Random::new(self.seed.wrapping_add(drawn), &self.name);
        let kept = (1.0 / (1.0 - self.p)) as f32;
        let mask: Vec<f32> =
            (0..xs.elem_count()).map(|_| if random.uniform() < self.p { 0.0 } else { kept }).collect();
        let mask = Tensor::from_vec(mask, xs.shape(), xs.device())?.to_dtype(xs.dtype())?;
        xs * mask
    }
}
