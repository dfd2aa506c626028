//! Which settings are run, and which outcome counts.

use std::collections::BTreeMap;

use anyhow::Result;

use super::lab::{Row, Wanted};
use super::{Head, Lab, Method, Outcome, Setting, Task};
use crate::workers;

/// Everything that was run.
pub struct Outcomes {
    /// All outcomes of the first seed.
    pub all: Vec<Outcome>,
    /// For each method the chosen setting, once per seed.
    pub chosen: Vec<Vec<Outcome>>,
}

/// Something to run on one thread.
enum Job {
    Train(Setting),
    Row(u64, Row),
}

/// Every method of the recipe once, `at_once` runs at the same time. `None` if stopped.
///
/// # Errors
///
/// The first error of a run.
pub fn once<T: Task>(lab: &Lab<'_, T>, at_once: usize, seed: u64) -> Result<Option<Outcomes>> {
    // No more updates of radii than steps of training: a quick run stays quick.
    let most = lab.recipe.steps as f64;
    let strengths = |method: Method| match method {
        Method::WiseFt => (lab.recipe.strengths)(method).to_vec(),
        Method::TpgmPostHoc => method.strength().iter().map(|updates| updates.min(most)).collect(),
        _ => method.strength().into_iter().collect(),
    };
    let jobs = jobs(lab, |method| vec![lab.recipe.rate(method)], strengths, seed);
    let Some(all) = run(lab, at_once, jobs, &lab.recipe.probe_rates)? else { return Ok(None) };
    let chosen = best(&lab.recipe.methods, &all).into_iter().map(|outcome| vec![outcome]).collect();
    Ok(Some(Outcomes { all, chosen }))
}

/// Every setting of the recipe with the first seed, then the best on held-out samples with the other seeds. `None` if
/// stopped.
///
/// # Errors
///
/// The first error of a run.
pub fn sweep<T: Task>(lab: &Lab<'_, T>, at_once: usize, seed: u64, seeds: u64) -> Result<Option<Outcomes>> {
    let strengths = |method: Method| (lab.recipe.strengths)(method).to_vec();
    let jobs = jobs(lab, |_| lab.recipe.rates.clone(), strengths, seed);
    let Some(all) = run(lab, at_once, jobs, &lab.recipe.probe_rates)? else { return Ok(None) };
    let mut chosen: Vec<_> =
        best(&lab.recipe.methods, &all).into_iter().map(|outcome| vec![outcome]).collect();

    // Other seeds take the probe that was chosen.
    let probe = chosen.iter().map(|outcomes| outcomes[0].setting);
    let probe = probe.filter(|setting| setting.method == Method::LinearProbe && setting.lr > 0.0);
    let probes: Vec<f64> = probe.map(|setting| setting.lr).collect();
    let probes = if probes.is_empty() { lab.recipe.probe_rates.clone() } else { probes };
    let mut jobs = Vec::new();
    for seed in seed + 1..seed + seeds {
        for setting in chosen.iter().map(|outcomes| outcomes[0].setting) {
            let (lrs, strength) = (vec![setting.lr], setting.strength.into_iter().collect());
            if !lab.recipe.in_row(setting.method) {
                jobs.push(Job::Train(Setting { seed, ..setting }));
                continue;
            }
            let (lrs, shares, updates) = match setting.method {
                Method::WiseFt => (lrs, strength, vec![]),
                Method::TpgmPostHoc => (lrs, vec![], strength),
                Method::LpFt | Method::FineTuning => (lrs, vec![], vec![]),
                _ => (vec![], vec![], vec![]),
            };
            jobs.push(Job::Row(seed, Row { probes: probes.clone(), lrs, shares, updates }));
        }
    }
    let Some(others) = run(lab, at_once, merged(jobs), &probes)? else { return Ok(None) };
    for outcomes in &mut chosen {
        let setting = outcomes[0].setting;
        let same = |outcome: &&Outcome| Setting { seed: setting.seed, ..outcome.setting } == setting;
        outcomes.extend(others.iter().filter(same).cloned());
    }
    Ok(Some(Outcomes { all, chosen }))
}

/// All methods of the recipe, with each learning rate and strength.
fn jobs<T: Task>(
    lab: &Lab<'_, T>,
    rates: impl Fn(Method) -> Vec<f64>,
    strengths: impl Fn(Method) -> Vec<f64>,
    seed: u64,
) -> Vec<Job> {
    let recipe = lab.recipe;
    let (row, others): (Vec<_>, Vec<_>) = recipe.methods.iter().partition(|method| recipe.in_row(**method));
    let mut jobs = Vec::new();
    // First: it takes longest.
    if !row.is_empty() {
        let wanted = |method| if row.contains(&method) { strengths(method) } else { Vec::new() };
        let (shares, updates) = (wanted(Method::WiseFt), wanted(Method::TpgmPostHoc));
        let tuned = match recipe.head {
            Head::New | Head::Probed => Method::LpFt,
            Head::InCheckpoint => Method::FineTuning,
        };
        let is_tuned = |method: &Method| !matches!(method, Method::LinearProbe | Method::ZeroShot);
        let lrs = if row.iter().any(is_tuned) { rates(tuned) } else { Vec::new() };
        jobs.push(Job::Row(seed, Row { probes: recipe.probe_rates.clone(), lrs, shares, updates }));
    }
    for method in others {
        for lr in rates(method) {
            let strengths = strengths(method);
            let none = strengths.is_empty().then_some(None);
            let strengths = strengths.into_iter().map(Some).chain(none);
            jobs.extend(strengths.map(|strength| Job::Train(Setting { method, lr, strength, seed })));
        }
    }
    jobs
}

/// For each method the outcome with the highest accuracy on held-out samples, the earlier one of equals.
fn best(methods: &[Method], outcomes: &[Outcome]) -> Vec<Outcome> {
    let of = |method: &Method| {
        let mut best: Option<&Outcome> = None;
        for outcome in outcomes.iter().filter(|outcome| outcome.setting.method == *method) {
            if best.is_none_or(|best| outcome.scores.choice > best.scores.choice) {
                best = Some(outcome);
            }
        }
        best.cloned()
    };
    methods.iter().filter_map(of).collect()
}

/// Rows of the same seed become one, so that no run is made twice.
fn merged(jobs: Vec<Job>) -> Vec<Job> {
    let add = |list: &mut Vec<f64>, more: Vec<f64>| {
        let new: Vec<_> = more.into_iter().filter(|value| !list.contains(value)).collect();
        list.extend(new);
    };
    let mut result: Vec<Job> = Vec::new();
    for job in jobs {
        match job {
            Job::Row(seed, row) => {
                let same = result.iter_mut().find_map(|earlier| match earlier {
                    Job::Row(of, row) if *of == seed => Some(row),
                    _ => None,
                });
                match same {
                    Some(earlier) => {
                        add(&mut earlier.probes, row.probes);
                        add(&mut earlier.lrs, row.lrs);
                        add(&mut earlier.shares, row.shares);
                        add(&mut earlier.updates, row.updates);
                    }
                    // First: it takes longest.
                    None => result.insert(0, Job::Row(seed, row)),
                }
            }
            other => result.push(other),
        }
    }
    result
}

/// Runs jobs, some of them at once. `None` if stopped.
fn run<T: Task>(
    lab: &Lab<'_, T>,
    at_once: usize,
    jobs: Vec<Job>,
    probe_rates: &[f64],
) -> Result<Option<Vec<Outcome>>> {
    // What starts from a linear probe waits for it.
    let mut probes = BTreeMap::new();
    if lab.recipe.head == Head::Probed {
        let mut wanted = BTreeMap::<u64, Vec<Setting>>::new();
        for job in &jobs {
            if let Job::Train(setting) = job {
                wanted.entry(setting.seed).or_default().push(*setting);
            }
        }
        let found =
            workers::run(at_once, lab.recipe.threads, wanted.into_iter().collect(), |(seed, settings)| {
                let wanted = if lab.all_known(&settings)? { Wanted::Outcome } else { Wanted::Weights };
                Ok((seed, lab.probe(seed, probe_rates, wanted)?))
            })?;
        for (seed, probe) in found {
            let Some((setting, _)) = probe else { return Ok(None) };
            probes.insert(seed, setting);
        }
    }
    let outcomes = workers::run(at_once, lab.recipe.threads, jobs, |job| match job {
        Job::Train(setting) => {
            Ok(lab.train(setting, probes.get(&setting.seed))?.map(|outcome| vec![outcome]))
        }
        Job::Row(seed, row) => lab.row(seed, &row),
    })?;
    let outcomes: Option<Vec<_>> = outcomes.into_iter().collect();
    Ok(outcomes.map(|outcomes| outcomes.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::Scores;
    use crate::timing::StepTimes;

    fn outcome(method: Method, strength: f64, choice: f64, ood: f64) -> Outcome {
        let setting = Setting { method, lr: 1e-3, strength: Some(strength), seed: 0 };
        let scores = Scores { choice, accuracy: vec![choice, ood, ood], ..Scores::default() };
        Outcome { setting, scores, seconds: 1.0, times: StepTimes::default(), derailed: None }
    }

    #[test]
    fn the_choice_is_made_on_held_out_samples_and_the_first_of_equals_wins() {
        let outcomes = [
            outcome(Method::Ftp, 1.0, 0.8, 0.9),
            outcome(Method::Ftp, 0.5, 0.9, 0.1),
            outcome(Method::Ftp, 0.0, 0.9, 0.8),
            outcome(Method::Spd, 1.0, 0.5, 0.5),
        ];
        let best = best(&Method::ALL, &outcomes);
        let chosen: Vec<_> =
            best.iter().map(|outcome| (outcome.setting.method, outcome.setting.strength)).collect();
        assert_eq!(chosen, [(Method::Ftp, Some(0.5)), (Method::Spd, Some(1.0))]);
    }

    #[test]
    fn rows_of_the_same_seed_are_merged() {
        let job = |seed, lrs: &[f64], shares: &[f64]| {
            Job::Row(seed, Row { lrs: lrs.to_vec(), shares: shares.to_vec(), ..Row::default() })
        };
        let jobs = merged(vec![job(1, &[1e-3], &[]), job(1, &[1e-3, 3e-3], &[0.5]), job(2, &[], &[])]);
        assert_eq!(jobs.len(), 2);
        let Job::Row(1, Row { lrs, shares, .. }) = &jobs[1] else { panic!("a probe") };
        assert_eq!((lrs.as_slice(), shares.as_slice()), ([1e-3, 3e-3].as_slice(), [0.5].as_slice()));
    }
}
