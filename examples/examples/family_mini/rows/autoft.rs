//! A loss of nine terms whose weights are searched by the accuracy in a shifted domain that the table has not.

use anyhow::{Context, Result};
use candle_core::Tensor;
use tpgm_candle::nn::cross_entropy;
use tpgm_candle::nn::losses::{contrastive, entropy, entropy_of_mistakes, multi_margin, same_text_targets};
use tpgm_candle::search::{Record, Space, Study};
use tpgm_candle::{Pull, PullScale};
use tpgm_examples::metrics::share_of_right;

use crate::lab::{Course, Lab, Net, Outcome, Spent, Trained, in_parts};
use crate::method::Setting;
use crate::world::Batch;

/// The middle of the searched learning rates; the others of the table are near.
const RATE: f64 = 5e-4;

/// As published: weights between 1e-4 and 10. That of the cross-entropy is 1, as in the published trials; the learning rate, unlike
/// the published one, has an effect, so its range is narrower.
fn space() -> Space {
    let weights = ["entropy", "mistakes", "margin", "pairs", "zero_l1", "zero_l2", "anchor_l1", "anchor_l2"];
    let space = weights.iter().fold(Space::default(), |space, name| space.log(*name, 1e-4, 10.0));
    space.log("lr", RATE / 10.0, RATE * 10.0).uniform("weight decay", 0.0, 1.0).integer("seed", 0, 10)
}

pub(super) fn run(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    let best = search(lab)?;
    let (net, spent) = train(lab, &best, setting.seed, lab.scale.steps)?;
    let values: Vec<_> = best.values.iter().map(|(name, value)| format!("{name} {value:.2e}")).collect();
    let notes = vec![format!("trial {} of {}: {}", best.trial, lab.scale.trials, values.join(", "))];
    lab.judge(setting, spent, notes, |images| in_parts(images, |images| net.logits(images)))
}

/// The best trial. They are in a journal, so that an interrupted search goes on, and other seeds find it done.
fn search(lab: &Lab<'_>) -> Result<Record> {
    if let Some(folder) = lab.journal.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut study = Study::open(&lab.journal, space(), lab.seed)?;
    while (study.records().len() as u64) < lab.scale.trials {
        let trial = study.ask()?;
        let record = Record { trial: trial.number(), values: trial.values().clone(), loss: None };
        match train(lab, &record, record.values["seed"] as u64, lab.scale.inner_steps) {
            Ok((net, _)) => {
                let shifted = &lab.world.shifted;
                let scores = in_parts(&shifted.images, |images| net.logits(images))?;
                study.tell(&trial, -share_of_right(&scores, &shifted.labels)?)?;
            }
            Err(error) if is_derailed(&error) => study.fail(&trial)?,
            Err(error) => return Err(error),
        }
    }
    study.best().cloned().context("every trial of AutoFT derailed")
}

/// A loss or gradient that is not finite: a bad trial, not a fault.
fn is_derailed(error: &anyhow::Error) -> bool {
    error.to_string().contains("finite")
}

pub(crate) fn train(lab: &Lab<'_>, record: &Record, seed: u64, steps: u64) -> Result<(Net, Spent)> {
    let weight = |name: &str| record.values[name];
    let net = lab.net(Trained::All, seed)?;
    // Squares are without a half there.
    let pull = Pull {
        anchor_l1: weight("anchor_l1"),
        anchor_l2: 2.0 * weight("anchor_l2"),
        zero_l1: weight("zero_l1"),
        zero_l2: 2.0 * weight("zero_l2"),
        scale: PullScale::SetMean,
        ..Pull::default()
    };
    let (lr, weight_decay) = (weight("lr"), weight("weight decay"));
    let course = Course { lr, seed, steps, weight_decay, constraint: pull.into() };
    let spent = lab.train(&net.params, course, |optimizer, batch| {
        optimizer.backward_step(&loss(lab, &net, batch, &weight)?)?;
        Ok(())
    })?;
    Ok((net, spent))
}

/// The five terms of predictions; those of weights are the pull.
fn loss(
    lab: &Lab<'_>,
    net: &Net,
    batch: &Batch,
    weight: &impl Fn(&str) -> f64,
) -> candle_core::Result<Tensor> {
    let (seen, labels) = (net.pair.images(&batch.images)?, &batch.labels);
    let logits = net.classify(&seen)?;
    let texts = net.pair.texts(&lab.world.names)?.index_select(labels, 0)?;
    let same = same_text_targets(labels, seen.dtype(), 0.0)?;
    let pairs = contrastive(&seen, &texts, &net.pair.scale()?, 0.0)?.against(&same)?;
    let mut loss = cross_entropy(&logits, labels)?;
    for (name, term) in [
        ("entropy", entropy(&logits)?),
        ("mistakes", entropy_of_mistakes(&logits, labels)?),
        ("margin", multi_margin(&logits, labels, 1.0)?),
        ("pairs", pairs),
    ] {
        loss = (loss + (term * weight(name))?)?;
    }
    Ok(loss)
}
