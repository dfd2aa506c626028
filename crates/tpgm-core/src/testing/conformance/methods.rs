//! Every rule and every constraint, with settings under which it acts on the suite's numbers.

use crate::constraint::{
    Constraint, Coupling, Digrap, DigrapTest, FixedRadius, FixedScale, Ftp, FtpMemory, L2Sp, Pull,
    PullWeights, RadiusAdam, Spd, Tpgm,
};
use crate::norm::Norm;
use crate::rule::{AdamW, Decay, Rule, Sgd};

pub(super) fn rules() -> Vec<Rule> {
    let adamw = AdamW { lr: 0.01, ..AdamW::default() };
    let sgd = Sgd { lr: 0.02, ..Sgd::default() };
    vec![
        AdamW { weight_decay: 0.1, ..adamw }.into(),
        AdamW { weight_decay: 0.1, decay: Decay::Coupled, amsgrad: true, beta2: 0.9, ..adamw }.into(),
        Sgd { momentum: 0.0, ..sgd }.into(),
        Sgd { weight_decay: 0.05, nesterov: true, ..sgd }.into(),
        Sgd { weight_decay: 0.05, dampening: 0.3, decay: Decay::Decoupled, ..sgd }.into(),
    ]
}

pub(super) fn constraints() -> Vec<Constraint> {
    let fast = RadiusAdam { lr: 0.05, ..RadiusAdam::default() };
    vec![
        Constraint::None,
        FixedRadius { radius: 0.3, norm: Norm::Mars }.into(),
        FixedRadius { radius: 0.1, norm: Norm::L2 }.into(),
        FixedScale { radius: 0.03 }.into(),
        Tpgm { norm: Norm::Mars, adam: fast }.into(),
        Tpgm { norm: Norm::L2, adam: fast }.into(),
        Ftp::default().into(),
        Ftp { k: 0.5, adam: fast, ..Ftp::default() }.into(),
        Ftp { memory: FtpMemory::Low, ..Ftp::default() }.into(),
        Spd { strength: 1.0 }.into(),
        Spd { strength: 0.4 }.into(),
        Digrap { adam: fast, test: DigrapTest::Conflict }.into(),
        Digrap { adam: fast, test: DigrapTest::Agreement }.into(),
        L2Sp { alpha: 0.5, coupling: Coupling::Coupled }.into(),
        L2Sp { alpha: 0.5, coupling: Coupling::Decoupled }.into(),
        Pull { anchor_l2: 0.5, zero_l1: 0.1, ..Pull::default() }.into(),
        Pull { anchor_l1: 0.1, weights: PullWeights::Fisher, ..Pull::default() }.into(),
    ]
}

/// Every kind of importance.
pub(super) fn weights() -> [PullWeights; 4] {
    let running = PullWeights::Running { decay: 0.7 };
    [PullWeights::One, PullWeights::Fisher, running, PullWeights::Gate { threshold: 0.8 }]
}

/// Every rule under every constraint.
pub(super) fn all() -> Vec<(Rule, Constraint)> {
    rules().into_iter().flat_map(|rule| constraints().into_iter().map(move |c| (rule, c))).collect()
}
