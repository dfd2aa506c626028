//! Rules, constraints and numbers shared by integration tests.
#![allow(dead_code, clippy::unwrap_used)]

use tpgm_core::{
    AdamW, Buffer, Constraint, Coupling, Cpu, DType, Decay, Digrap, DigrapTest, FixedRadius, FixedScale, Ftp,
    FtpMemory, L2Sp, Norm, ParamSet, RadiusAdam, Rule, Sgd, Spd, TensorIo, Tpgm,
};

/// Rules that differ in what they keep and in how decay enters.
pub(crate) fn rules() -> Vec<Rule> {
    let adamw = AdamW::default().lr(0.01);
    let sgd = Sgd::default().lr(0.02);
    vec![
        AdamW { weight_decay: 0.1, ..adamw }.into(),
        AdamW { weight_decay: 0.1, decay: Decay::Coupled, amsgrad: true, ..adamw }.into(),
        Sgd { momentum: 0.0, ..sgd }.into(),
        Sgd { weight_decay: 0.05, nesterov: true, ..sgd }.into(),
    ]
}

/// Every constraint, in every variant that takes another path.
pub(crate) fn constraints() -> Vec<Constraint> {
    vec![
        Constraint::None,
        FixedRadius { radius: 0.3, norm: Norm::Mars }.into(),
        FixedRadius { radius: 0.1, norm: Norm::L2 }.into(),
        FixedScale { radius: 0.03 }.into(),
        tpgm(Norm::Mars).into(),
        tpgm(Norm::L2).into(),
        Ftp::default().into(),
        Ftp { memory: FtpMemory::Low, ..Ftp::default() }.into(),
        Spd::default().into(),
        Digrap { test: DigrapTest::Conflict, ..Digrap::default() }.into(),
        Digrap { test: DigrapTest::Agreement, ..Digrap::default() }.into(),
        L2Sp { alpha: 0.5, coupling: Coupling::Coupled }.into(),
        L2Sp { alpha: 0.5, coupling: Coupling::Decoupled }.into(),
    ]
}

/// Every rule under every constraint.
pub(crate) fn methods() -> impl Iterator<Item = (Rule, Constraint)> {
    rules().into_iter().flat_map(|rule| constraints().into_iter().map(move |constraint| (rule, constraint)))
}

/// TPGM with a radius that moves fast.
pub(crate) fn tpgm(norm: Norm) -> Tpgm {
    Tpgm { norm, adam: RadiusAdam { lr: 0.05, ..RadiusAdam::default() } }
}

/// Numbers in `(-scale, scale)` from a hash: the same on every machine.
pub(crate) fn uniform(seed: u64, len: usize, scale: f64) -> Vec<f64> {
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

/// A set of tensors `t0`, `t1`, ... without groups.
pub(crate) fn set(shapes: &[Vec<usize>], dtype: DType) -> ParamSet {
    let tensors = shapes.iter().enumerate();
    tensors
        .fold(ParamSet::builder(), |set, (i, shape)| set.tensor(format!("t{i}"), shape.clone(), dtype))
        .build()
        .unwrap()
}

/// Weights near anchors, and the gradients of a few steps that sometimes turn around.
#[derive(Clone)]
pub(crate) struct Problem {
    pub(crate) weights: Vec<Buffer>,
    pub(crate) anchors: Vec<Buffer>,
    pub(crate) grads: Vec<Vec<Buffer>>,
}

impl Problem {
    pub(crate) fn new(set: &ParamSet, steps: usize, seed: u64) -> Self {
        let mut problem = Self { weights: vec![], anchors: vec![], grads: vec![vec![]; steps] };
        for (t, spec) in set.tensors().iter().enumerate() {
            let (n, seed) = (spec.numel(), seed.wrapping_add(1000 * t as u64));
            let anchor = uniform(seed, n, 0.5);
            let weight =
                anchor.iter().zip(uniform(seed + 1, n, 0.05)).map(|(a, d)| a + d).collect::<Vec<_>>();
            problem.weights.push(Buffer::from_f64(spec.dtype, &weight));
            problem.anchors.push(Buffer::from_f64(spec.dtype, &anchor));
            let direction = uniform(seed + 2, n, 1.0);
            for (step, grads) in problem.grads.iter_mut().enumerate() {
                let sign = if (step + t) % 3 == 2 { -1.0 } else { 1.0 };
                let noise = uniform(seed + 3 + step as u64, n, 0.3);
                let grad: Vec<f64> = direction.iter().zip(noise).map(|(d, e)| sign * d + e).collect();
                grads.push(Buffer::from_f64(spec.dtype, &grad));
            }
        }
        problem
    }

    /// The operands of a call, with the gradients of `step`.
    pub(crate) fn io(&mut self, step: usize) -> Vec<TensorIo<'_, Cpu>> {
        let grads = &self.grads[step];
        let operands = self.weights.iter_mut().zip(grads).zip(&self.anchors);
        operands
            .map(|((w, g), a)| TensorIo::new(w.as_mut()).grad(g.as_slice()).anchor(a.as_slice()))
            .collect()
    }
}
