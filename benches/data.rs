//! Synthetic weights, gradients and anchors: a hash of (tensor, role, index), so every machine and run has the same.

use rayon::prelude::*;
use tpgm_core::plan::Plan;
use tpgm_core::{
    AdamW, Backend, Blend, Buffer, Constraint, DType, ParamSet, Real, Result, TensorIo, TensorSpec,
};

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

/// What there is besides the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Gradients.
    pub grads: bool,
    /// Anchors.
    pub anchors: bool,
    /// A copy of the first weights, see [`Data::restore_weights`].
    pub start: bool,
}

impl Parts {
    /// Everything.
    pub const ALL: Parts = Parts { grads: true, anchors: true, start: true };

    /// Buffers per tensor, with the weights.
    pub const fn buffers(self) -> usize {
        1 + self.grads as usize + self.anchors as usize + self.start as usize
    }
}

/// Weights, gradients and anchors of a set, in memory of a backend. All of a tensor have its element type.
pub struct Data<B: Backend> {
    /// One buffer per tensor: anchor plus displacement.
    pub weights: Vec<B::Buffer>,
    /// One buffer per tensor, or none at all.
    pub grads: Vec<B::Buffer>,
    /// One buffer per tensor, or none at all: the pre-trained values.
    pub anchors: Vec<B::Buffer>,
    start: Vec<B::Buffer>,
    backend: B,
    plan: Plan,
    workspace: B::Workspace,
}

impl<B: Backend> Data<B> {
    /// Makes all data of `set`.
    ///
    /// # Errors
    ///
    /// No memory on the device.
    pub fn new(backend: B, set: &ParamSet) -> Result<Self> {
        Self::with(backend, set, Parts::ALL)
    }

    /// Makes the weights of `set` and some parts more.
    ///
    /// # Errors
    ///
    /// No memory on the device.
    pub fn with(backend: B, set: &ParamSet, parts: Parts) -> Result<Self> {
        let settings = set.settings(&AdamW::default().into(), &Constraint::None)?;
        let plan = Plan::new(set.tensors(), &settings, backend.chunk());
        let workspace = backend.workspace(&plan)?;
        let n = set.len();
        let mut data = Self {
            weights: Vec::with_capacity(n),
            grads: Vec::with_capacity(n),
            anchors: Vec::with_capacity(n),
            start: Vec::with_capacity(n),
            backend,
            plan,
            workspace,
        };
        for spec in set.tensors() {
            data.push(spec, parts)?;
        }
        Ok(data)
    }

    fn push(&mut self, spec: &TensorSpec, parts: Parts) -> Result<()> {
        let values = |role, scale| uniform(seed(&spec.name, role), scale, spec.numel());
        let anchor = values(Role::Anchor, ANCHOR_SCALE);
        let mut start = values(Role::Displacement, DISPLACEMENT_SCALE);
        start.par_iter_mut().zip(&anchor).for_each(|(w, a)| *w += a);
        let start = round(spec.dtype, start);
        self.weights.push(self.backend.upload(&start)?);
        if parts.start {
            self.start.push(self.backend.upload(&start)?);
        }
        if parts.anchors {
            self.anchors.push(self.backend.upload(&round(spec.dtype, anchor))?);
        }
        if parts.grads {
            let grad = values(Role::Gradient, GRADIENT_SCALE);
            self.grads.push(self.backend.upload(&round(spec.dtype, grad))?);
        }
        Ok(())
    }

    /// Puts the weights back to their first values.
    ///
    /// # Errors
    ///
    /// When the device fails.
    ///
    /// # Panics
    ///
    /// If the data was made without [`Parts::start`].
    pub fn restore_weights(&mut self) -> Result<()> {
        assert_eq!(self.start.len(), self.weights.len(), "the first weights were not kept");
        let mut weights: Vec<_> = self.weights.iter_mut().map(B::as_mut).collect();
        let start: Vec<_> = self.start.iter().map(B::as_ref).collect();
        let shares = Blend { keep: 0.0, take: 1.0 };
        self.backend.blend(&self.plan, &mut self.workspace, &mut weights, &start, shares)
    }

    /// Changes the sign of every gradient.
    ///
    /// Called every few steps, it lets the data-dependent branches of SPD and DiGraP be taken: they look at the sign of
    /// `<g, W - W0>`, which a constant gradient never changes.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn flip_gradients(&mut self) -> Result<()> {
        let mut grads: Vec<_> = self.grads.iter_mut().map(B::as_mut).collect();
        // Blending needs a source; with a share of zero any finite one does.
        let weights: Vec<_> = self.weights.iter().map(B::as_ref).collect();
        let shares = Blend { keep: -1.0, take: 0.0 };
        self.backend.blend(&self.plan, &mut self.workspace, &mut grads, &weights, shares)
    }

    /// The operands of a call.
    pub fn io(&mut self) -> Vec<TensorIo<'_, B>> {
        let mut io: Vec<TensorIo<'_, B>> =
            self.weights.iter_mut().map(|weight| TensorIo::new(B::as_mut(weight))).collect();
        for (io, grad) in io.iter_mut().zip(&self.grads) {
            io.grad = Some(B::as_ref(grad));
        }
        for (io, anchor) in io.iter_mut().zip(&self.anchors) {
            io.anchor = Some(B::as_ref(anchor));
        }
        io
    }
}

fn round(dtype: DType, values: Vec<f32>) -> Buffer {
    if dtype == DType::F32 {
        return Buffer::F32(values);
    }
    let mut rounded = Buffer::zeros(dtype, values.len());
    f32::store(&values, rounded.as_mut());
    rounded
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
    use tpgm_core::Cpu;

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
    fn parts_that_are_left_out_are_not_there() {
        let set = ParamSet::builder().tensor("a", [8, 16], DType::F32).build().unwrap();
        let few = Parts { grads: true, anchors: false, start: false };
        let (all, mut few) =
            (Data::new(Cpu::new(), &set).unwrap(), Data::with(Cpu::new(), &set, few).unwrap());
        assert_eq!((&few.weights, &few.grads), (&all.weights, &all.grads));
        let io = few.io();
        assert!(io[0].grad.is_some() && io[0].anchor.is_none());
        assert_eq!((few.anchors.len(), Parts::ALL.buffers()), (0, 4));
    }

    #[test]
    fn roles_and_tensors_differ_and_changes_can_be_undone() {
        for dtype in DType::ALL {
            let set =
                ParamSet::builder().tensor("a", [8, 16], dtype).tensor("b", [8, 16], dtype).build().unwrap();
            let mut data = Data::new(Cpu::new(), &set).unwrap();
            assert_ne!(data.anchors[0], data.anchors[1]);
            let (weights, grads) = (data.weights.clone(), data.grads.clone());
            let (w, a) = (weights[0].to_f64(), data.anchors[0].to_f64());
            assert_eq!(weights[0].dtype(), dtype);
            let moved = w.iter().zip(&a).filter(|(w, a)| w != a).count();
            assert!(moved > 110, "{moved} of 128 weights of {dtype} differ from their anchors");
            data.weights[1] = Buffer::zeros(dtype, 128);
            data.restore_weights().unwrap();
            assert_eq!(data.weights, weights);
            data.flip_gradients().unwrap();
            assert_eq!(data.grads[1].to_f64()[3], -grads[1].to_f64()[3]);
            data.flip_gradients().unwrap();
            assert_eq!(data.grads, grads);
        }
    }
}
