//! All methods, and what training with one leaves on a rank.

use std::collections::BTreeMap;
use std::ops::Range;

use tpgm_candle::core::{Coupling, Decay, DigrapTest, FtpMemory};
use tpgm_candle::{
    AdamW, Constraint, Digrap, FixedRadius, FixedScale, Ftp, Group, L2Sp, Norm, OptimizerBuilder, Projection,
    Pull, PullScale, PullWeights, RobustOptimizer, Rule, Sgd, Spd, StateDict, TpgmConfig,
};

use super::Net;

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

pub(crate) fn constraints() -> Vec<Constraint> {
    let pull = Pull { anchor_l2: 0.4, zero_l1: 0.02, ..Pull::default() };
    vec![
        Constraint::None,
        FixedRadius { radius: 0.05, norm: Norm::Mars }.into(),
        FixedRadius { radius: 0.02, norm: Norm::L2 }.into(),
        FixedScale { radius: 0.01 }.into(),
        TpgmConfig::default().into(),
        TpgmConfig { norm: Norm::L2, ..TpgmConfig::default() }.into(),
        Ftp::default().into(),
        Ftp { memory: FtpMemory::Low, ..Ftp::default() }.into(),
        Spd::default().into(),
        Digrap { test: DigrapTest::Conflict, ..Digrap::default() }.into(),
        Digrap { test: DigrapTest::Agreement, ..Digrap::default() }.into(),
        L2Sp { alpha: 0.5, coupling: Coupling::Coupled }.into(),
        L2Sp { alpha: 0.5, coupling: Coupling::Decoupled }.into(),
        Pull { scale: PullScale::SetMean, ..pull }.into(),
        Pull { scale: PullScale::TensorMean, weights: PullWeights::Fisher, ..pull }.into(),
    ]
}

/// What a rank has in the end. State and scalars are those of its own tensors.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) bits: Vec<Vec<u64>>,
    pub(crate) norms: Vec<Option<u64>>,
    pub(crate) state: StateDict,
    pub(crate) scalars: BTreeMap<String, Vec<u64>>,
    pub(crate) rows: BTreeMap<String, Vec<f64>>,
}

impl Outcome {
    pub(crate) fn of(bits: Vec<Vec<u64>>, norms: Vec<Option<u64>>, optimizer: &RobustOptimizer) -> Self {
        let scalars = optimizer.scalars().unwrap().into_iter();
        let held = optimizer.set().tensors().iter().filter(|spec| optimizer.holds(&spec.name).unwrap());
        Self {
            bits,
            norms,
            state: optimizer.state().unwrap(),
            scalars: scalars.map(|(name, s)| (name, s.to_array().map(f64::to_bits).to_vec())).collect(),
            rows: held.map(|spec| (spec.name.clone(), optimizer.norms(&spec.name).unwrap())).collect(),
        }
    }
}

/// Five steps; under TPGM with an update of the radii after every second one, and a projection at the end. `group` gives the
/// optimizer its ranks.
pub(crate) fn train(
    net: &Net,
    (rule, constraint): (Rule, Constraint),
    group: &dyn Fn(OptimizerBuilder) -> OptimizerBuilder,
    rows: Range<usize>,
) -> Outcome {
    let learned = matches!(constraint, Constraint::Tpgm(_));
    let weighed = matches!(constraint, Constraint::Pull(pull) if pull.weights != PullWeights::One);
    let params = net.params.clone().group(Group::new("b.*").lr(0.02).weight_decay(0.01));
    let builder = RobustOptimizer::builder(&params).rule(rule).constraint(constraint);
    let mut optimizer = group(builder.max_grad_norm(0.2)).build().unwrap();
    let (mut bits, mut norms) = (Vec::new(), Vec::new());
    for step in 0..5 {
        let update = learned && step % 2 == 1;
        optimizer.set_projection(if update { Projection::Defer } else { Projection::Apply });
        optimizer.set_learning_rate(0.01 / (step + 1) as f64);
        if weighed && step == 1 {
            optimizer.backward_importance(&net.loss(31, rows.clone()).unwrap()).unwrap();
        }
        let info = optimizer.backward_step(&net.loss(11 + step, rows.clone()).unwrap()).unwrap();
        norms.push(info.grad_norm.map(f64::to_bits));
        if update {
            optimizer.tpgm().unwrap().update_n(2, |i| net.loss(21 + i as u64, rows.clone())).unwrap();
        }
        bits.push(net.bits());
    }
    if learned {
        optimizer.tpgm().unwrap().project().unwrap();
        bits.push(net.bits());
    }
    Outcome::of(bits, norms, &optimizer)
}
