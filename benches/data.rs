//! Synthetic weights, gradients and anchors: a hash of (tensor, role, index), so every machine and run has the same.

use rayon::prelude::*;
use tpgm_core::TensorSpec;

/// Half the width of the uniform distribution of the anchors.
pub const ANCHOR_SCALE: f32 = 5e-2;
/// The same of the displacement of the weights from their anchors: fine-tuning under way.
pub const DISPLACEMENT_SCALE: f32 = 1e-3;
/// The same of the gradients.
pub const GRADIENT_SCALE: f32 = 1e-3;

const CHUNK: usize = 1 << 16;

/// What a value is used as. Different roles of one tensor have independent values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Anchor = 1,
    Displacement = 2,
    Gradient = 3,
}

/// Weights, gradients and anchors of a list of tensors, all f32.
#[derive(Debug, Clone)]
pub struct Data {
    /// One vector per tensor: anchor plus displacement.
    pub weights: Vec<Vec<f32>>,
    /// One vector per tensor.
    pub grads: Vec<Vec<f32>>,
    /// One vector per tensor: the pre-trained values.
    pub anchors: Vec<Vec<f32>>,
    start: Vec<Vec<f32>>,
}

impl Data {
    /// Makes the data of `tensors`.
    pub fn new(tensors: &[TensorSpec]) -> Self {
        let values = |role, scale| -> Vec<Vec<f32>> {
            tensors.iter().map(|spec| uniform(seed(&spec.name, role), scale, spec.numel())).collect()
        };
        let anchors = values(Role::Anchor, ANCHOR_SCALE);
        let mut start = values(Role::Displacement, DISPLACEMENT_SCALE);
        for (weight, anchor) in start.iter_mut().zip(&anchors) {
            each_chunk(weight, anchor, |w, a| *w += a);
        }
        Self { weights: start.clone(), grads: values(Role::Gradient, GRADIENT_SCALE), anchors, start }
    }

    /// Puts the weights back to their first values.
    pub fn restore_weights(&mut self) {
        for (weight, start) in self.weights.iter_mut().zip(&self.start) {
            each_chunk(weight, start, |w, s| *w = s);
        }
    }

    /// Changes the sign of every gradient.
    ///
    /// Called every few steps, it lets the data-dependent branches of SPD and DiGraP be taken: they look at the sign of
    /// `<g, W - W0>`, which a constant gradient never changes.
    pub fn flip_gradients(&mut self) {
        for grad in &mut self.grads {
            grad.par_chunks_mut(CHUNK).for_each(|chunk| chunk.iter_mut().for_each(|g| *g = -*g));
        }
    }
}

fn each_chunk(dst: &mut [f32], src: &[f32], f: impl Fn(&mut f32, f32) + Sync) {
    dst.par_chunks_mut(CHUNK)
        .zip(src.par_chunks(CHUNK))
        .for_each(|(dst, src)| dst.iter_mut().zip(src).for_each(|(d, &s)| f(d, s)));
}

/// FNV-1a over the name, then the role.
fn seed(name: &str, role: Role) -> u64 {
    name.bytes().chain([role as u8]).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// `len` values, uniform in `[-scale, scale)`: value `i` is output `i` of the SplitMix64 generator started at `seed`,
/// cut to 24 bits, so chunks can be made in any order.
fn uniform(seed: u64, scale: f32, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (i, value) in values.iter_mut().enumerate() {
            let index = (chunk * CHUNK + i) as u64;
            let bits = split_mix(seed, index) >> 40;
            *value = scale * (bits as f32 / (1u64 << 23) as f32 - 1.0);
        }
    });
    values
}

fn split_mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpgm_core::DType;

    // The first outputs of SplitMix64 started at 1234567, as listed with the published generators that seed from it.
    #[test]
    fn the_generator_is_split_mix() {
        let outputs = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for (i, expected) in outputs.into_iter().enumerate() {
            assert_eq!(split_mix(1_234_567, i as u64), expected);
        }
    }

    #[test]
    fn values_fill_their_range_and_do_not_depend_on_the_length() {
        let n = 3 * CHUNK + 5;
        let values = uniform(7, 2.0, n);
        assert!(values.iter().all(|x| (-2.0..2.0).contains(x)));
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let square = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
        // Standard deviations of the two estimates: 2 / sqrt(3 n) and about 1.2 / sqrt(n).
        assert!(mean.abs() < 0.015, "{mean}");
        assert!((square - 4.0 / 3.0).abs() < 0.015, "{square}");
        assert_eq!(uniform(7, 2.0, CHUNK + 1), values[..CHUNK + 1]);
    }

    #[test]
    fn roles_and_tensors_differ_and_changes_can_be_undone() {
        let spec = |name: &str| TensorSpec { name: name.into(), shape: vec![8, 16], dtype: DType::F32 };
        let mut data = Data::new(&[spec("a"), spec("b")]);
        assert_ne!(data.anchors[0], data.anchors[1]);
        let moved = data.weights[0].iter().zip(&data.anchors[0]).filter(|(w, a)| w != a).count();
        assert!(moved > 120, "{moved} of 128 weights differ from their anchors");
        let (weights, grads) = (data.weights.clone(), data.grads.clone());
        data.weights[1].fill(9.0);
        data.restore_weights();
        assert_eq!(data.weights, weights);
        data.flip_gradients();
        assert_eq!(data.grads[1][3], -grads[1][3]);
        data.flip_gradients();
        assert_eq!(data.grads, grads);
    }
}
