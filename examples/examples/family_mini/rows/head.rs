//! Methods with a trained head, which starts as the zero-shot head.

use anyhow::Result;
use candle_core::DType;
use tpgm_candle::core::{RadiusAdam, Tpgm};
use tpgm_candle::nn::cross_entropy;
use tpgm_candle::nn::losses::{
    Divergence, Mixup, RandomTexts, cross_entropy_soft_smoothed, distillation, energy_gap, one_hot,
};
use tpgm_candle::nn::random::SplitMix64;
use tpgm_candle::teacher::Teacher;
use tpgm_candle::{Constraint, L2Sp, Norm, Projection, Pull};
use tpgm_examples::mini::data::{END, START, WORDS};

use crate::lab::{Course, Lab, Net, Outcome, Spent, Trained, bytes_of_all, in_parts};
use crate::method::{Method, Setting};

/// BANG's mixture and smoothing; the authors' values were not found, so these are ours.
const MIXUP: Mixup = Mixup { alpha: 0.2 };
const SMOOTHING: f64 = 0.1;
/// Temperature of distillation.
const TEMPERATURE: f64 = 2.0;
/// Random texts per step of Lipsum-FT, which takes 80.
const TEXTS: usize = 20;

pub(super) fn run(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let alpha = setting.amount();
    let (net, spent) = match setting.method {
        Method::Tpgm => tpgm(lab, setting)?,
        Method::LinearProbe => probe(lab, setting)?,
        Method::Distillation => distilled(lab, setting)?,
        Method::Lipsum => lipsum(lab, setting)?,
        Method::L1Sp => fine_tuned(lab, setting, Pull { anchor_l1: alpha, ..Pull::default() }.into())?,
        Method::L2Sp => fine_tuned(lab, setting, L2Sp { alpha, ..L2Sp::default() }.into())?,
        other => anyhow::bail!("{} is not a method with a trained head alone", other.name()),
    };
    judge(lab, setting, &net, spent)
}

/// Predicts by the trained head.
pub(super) fn judge(lab: &Lab<'_>, setting: &Setting, net: &Net, spent: Spent) -> Result<Outcome> {
    lab.judge(setting, spent, Vec::new(), |images| in_parts(images, |images| net.logits(images)))
}

fn probe(lab: &Lab<'_>, setting: &Setting) -> Result<(Net, Spent)> {
    let net = lab.net(Trained::Head, setting.seed)?;
    let features = in_parts(&lab.world.train.images, |images| net.pair.images(images))?;
    let spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        let logits = net.classify(&features.index_select(&batch.positions, 0)?)?;
        optimizer.backward_step(&cross_entropy(&logits, &batch.labels)?)?;
        Ok(())
    })?;
    Ok((net, spent))
}

/// The cross-entropy under a constraint.
pub(super) fn fine_tuned(lab: &Lab<'_>, setting: &Setting, constraint: Constraint) -> Result<(Net, Spent)> {
    let net = lab.net(Trained::Image, setting.seed)?;
    let course = Course { constraint, ..lab.course(setting) };
    let spent = lab.train(&net.params, course, |optimizer, batch| {
        optimizer.backward_step(&cross_entropy(&net.logits(&batch.images)?, &batch.labels)?)?;
        Ok(())
    })?;
    Ok((net, spent))
}

fn tpgm(lab: &Lab<'_>, setting: &Setting) -> Result<(Net, Spent)> {
    let net = lab.net(Trained::Image, setting.seed)?;
    let adam = RadiusAdam { lr: setting.amount(), ..RadiusAdam::default() };
    let course = Course { constraint: Tpgm { norm: Norm::Mars, adam }.into(), ..lab.course(setting) };
    let mut radii = lab.radii(setting.seed)?;
    let mut spent = lab.train(&net.params, course, |optimizer, batch| {
        optimizer.set_projection(Projection::Defer); // the update projects
        optimizer.backward_step(&cross_entropy(&net.logits(&batch.images)?, &batch.labels)?)?;
        let held_out = radii()?;
        optimizer.tpgm()?.update(|| cross_entropy(&net.logits(&held_out.images)?, &held_out.labels))?;
        Ok(())
    })?;
    spent.kept += bytes_of_all(&net.params); // an update remembers the weights
    Ok((net, spent))
}

/// Feature Protection's comparison with distillation.
fn distilled(lab: &Lab<'_>, setting: &Setting) -> Result<(Net, Spent)> {
    let net = lab.net(Trained::Image, setting.seed)?;
    let mut teacher = Teacher::frozen(&net.params)?;
    let mut spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        let wanted = teacher.with(|| net.logits(&batch.images))?;
        let logits = net.logits(&batch.images)?;
        let kept = distillation(&logits, &wanted, TEMPERATURE, Divergence::ForwardKl)?;
        let loss = (cross_entropy(&logits, &batch.labels)? + (kept * setting.amount())?)?;
        optimizer.backward_step(&loss)?;
        Ok(())
    })?;
    spent.kept += bytes_of_all(&net.params);
    Ok((net, spent))
}

fn lipsum(lab: &Lab<'_>, setting: &Setting) -> Result<(Net, Spent)> {
    let net = lab.net(Trained::Image, setting.seed)?;
    let mut teacher = Teacher::frozen(&net.params)?;
    let texts =
        RandomTexts { count: TEXTS, vocabulary: WORDS, start: START, end: END, ..RandomTexts::default() };
    let mut random = SplitMix64::named(setting.seed, "random texts");
    let scale = f64::from(net.pair.scale()?.to_scalar::<f32>()?);
    let mut spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        let anchor = teacher.with(|| net.pair.images(&batch.images))?;
        let read = net.pair.texts(&texts.draw(&mut random, anchor.device())?)?;
        let seen = net.pair.images(&batch.images)?;
        let task = cross_entropy(&net.classify(&seen)?, &batch.labels)?;
        let loss = (task + (energy_gap(&seen, &anchor, &read, scale)? * setting.amount())?)?;
        optimizer.backward_step(&loss)?;
        Ok(())
    })?;
    spent.kept += bytes_of_all(&net.params);
    Ok((net, spent))
}

/// The first half of BANG; the second is WiSE-FT.
pub(super) fn bang(lab: &Lab<'_>, setting: &Setting) -> Result<(Net, Spent)> {
    let net = lab.net(Trained::Image, setting.seed)?;
    let (classes, mut random) = (lab.world.classes(), SplitMix64::named(setting.seed, "mixup"));
    let spent = lab.train(&net.params, lab.course(setting), |optimizer, batch| {
        let targets = one_hot(&batch.labels, classes, DType::F32)?;
        let mixed = MIXUP.mix(&batch.images, &targets, &mut random)?;
        let logits = net.logits(&mixed.images)?;
        optimizer.backward_step(&cross_entropy_soft_smoothed(&logits, &mixed.targets, SMOOTHING)?)?;
        Ok(())
    })?;
    Ok((net, spent))
}
