//! Every rule under every constraint, for some steps and projection updates.

use candle_core::{DType, Device};
use tpgm_candle::core::{Coupling, Decay, FtpMemory, RadiusAdam};
use tpgm_candle::{
    AdamW, AuditPolicy, Constraint, Digrap, FixedRadius, Ftp, L2Sp, Norm, Projection, RobustOptimizer, Rule,
    Sgd, Spd, Tpgm, TpgmConfig,
};

use crate::{Model, agree, device};

fn rules() -> [Rule; 4] {
    let adamw = AdamW::default().lr(0.01).weight_decay(0.1);
    let sgd = Sgd::default().lr(0.02);
    [
        adamw.into(),
        AdamW { amsgrad: true, decay: Decay::Coupled, ..adamw }.into(),
        Sgd { momentum: 0.0, ..sgd }.into(),
        sgd.weight_decay(0.05).nesterov().into(),
    ]
}

fn constraints() -> [Constraint; 10] {
    let adam = RadiusAdam { lr: 0.05, ..RadiusAdam::default() };
    [
        Constraint::None,
        FixedRadius { radius: 0.3, norm: Norm::Mars }.into(),
        FixedRadius { radius: 0.1, norm: Norm::L2 }.into(),
        TpgmConfig { norm: Norm::Mars, adam }.into(),
        TpgmConfig { norm: Norm::L2, adam }.into(),
        Ftp { adam, ..Ftp::default() }.into(),
        Ftp { memory: FtpMemory::Low, ..Ftp::default() }.into(),
        Spd { strength: 0.4 }.into(),
        Digrap { adam, ..Digrap::default() }.into(),
        L2Sp { alpha: 0.5, coupling: Coupling::Decoupled }.into(),
    ]
}

/// Weights and radii after five steps, with a projection update after every second one where radii are learned.
fn train(model: &Model, rule: Rule, constraint: Constraint) -> (Vec<f64>, Vec<f64>) {
    let builder = RobustOptimizer::builder(&model.params).rule(rule).constraint(constraint);
    let mut optimizer = builder.max_grad_norm(20.0).build().unwrap();
    for step in 0..5 {
        let update = matches!(constraint, Constraint::Tpgm(_)) && step % 2 == 1;
        optimizer.set_projection(if update { Projection::Defer } else { Projection::Apply });
        optimizer.backward_step(&model.loss(step).unwrap()).unwrap();
        if update {
            optimizer.tpgm().unwrap().update_n(2, |i| model.loss(90 + i as u64)).unwrap();
        }
    }
    let scalars = optimizer.scalars().unwrap();
    (model.values(), scalars.iter().map(|(_, scalars)| scalars.radius).collect())
}

#[test]
fn trajectories_agree() {
    let Some(device) = device() else { return };
    // Half-precision weights are rounded from masters that differ in the last bits of f32: by one unit at times.
    for (dtype, limit) in [(DType::F64, 1e-9), (DType::F32, 2e-4), (DType::F16, 2e-3), (DType::BF16, 1.6e-2)]
    {
        for (rule, constraint) in rules().into_iter().flat_map(|r| constraints().map(|c| (r, c))) {
            let (here, there) = (Model::new(dtype, &Device::Cpu), Model::new(dtype, &device));
            let (expected, radii) = train(&here, rule, constraint);
            let (got, got_radii) = train(&there, rule, constraint);
            let what = format!("{dtype:?} {rule:?} {constraint:?}");
            agree(&what, &device, &got, &expected, limit);
            agree(&format!("{what}: radii"), &device, &got_radii, &radii, limit.max(1e-3));
            assert_ne!(expected, Model::new(dtype, &Device::Cpu).values());
        }
    }
}

#[test]
fn a_device_repeats_its_bits_and_resumes_them() {
    let Some(device) = device() else { return };
    let optimizer = |model: &Model| {
        let builder =
            RobustOptimizer::builder(&model.params).rule(AdamW::default()).constraint(Ftp::default());
        builder.accumulate(2).audit(AuditPolicy::Off).build().unwrap()
    };
    let bits = |model: &Model| model.values().into_iter().map(f64::to_bits).collect::<Vec<_>>();
    let (whole, parted) = (Model::new(DType::BF16, &device), Model::new(DType::BF16, &device));
    let (mut a, mut b) = (optimizer(&whole), optimizer(&parted));
    for step in 0..7 {
        a.backward_step(&whole.loss(step).unwrap()).unwrap();
        b.backward_step(&parted.loss(step).unwrap()).unwrap();
        // In the middle of an accumulation, too.
        let state = b.state().unwrap();
        b = optimizer(&parted);
        b.load_state(&state).unwrap();
        assert_eq!(bits(&whole), bits(&parted), "step {step}");
    }
}

#[test]
fn the_trainer_alone_agrees() {
    let Some(device) = device() else { return };
    let run = |model: &Model| {
        let mut tpgm = Tpgm::new(&model.params, TpgmConfig::default()).unwrap();
        let loss = |i: usize| model.loss(i as u64);
        tpgm.update_n(3, loss).unwrap();
        // A closure that fails leaves the weights as they were, to the bit.
        let before = model.values();
        tpgm.update_n(2, |i| if i == 1 { candle_core::bail!("no data") } else { loss(i) }).unwrap_err();
        assert_eq!(model.values(), before);
        before
    };
    let (here, there) = (Model::new(DType::F32, &Device::Cpu), Model::new(DType::F32, &device));
    agree("post hoc", &device, &run(&there), &run(&here), 1e-4);
}
