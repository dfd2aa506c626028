//! Which settings are run, and which outcome counts.

use anyhow::Result;
use tpgm_examples::workers;

use crate::lab::{Lab, Outcome, Setting};
use crate::method::Method;

/// Learning rates of the backbone that are tried.
const RATES: [f64; 2] = [3e-4, 1e-3];

/// Its learning rate without a sweep.
const RATE: f64 = 1e-3;

/// Everything that was run.
pub(crate) struct Outcomes {
    /// All outcomes of the first seed.
    pub(crate) all: Vec<Outcome>,
    /// For each method the chosen setting, once per seed.
    pub(crate) chosen: Vec<Vec<Outcome>>,
}

/// Something to run on one thread.
enum Task {
    Train(Setting),
    ProbeAndAfter { seed: u64, lrs: Vec<f64>, shares: Vec<f64>, updates: Vec<f64> },
}

/// Every method once. `None` if stopped.
///
/// # Errors
///
/// The first error of a run.
pub(crate) fn once(lab: &Lab<'_>, threads: usize, seed: u64) -> Result<Option<Outcomes>> {
    let shares = Method::WiseFt.strengths().to_vec();
    // No more updates of radii than steps of training: a quick run stays quick.
    let most = lab.scale.steps as f64;
    let updates: Vec<_> = Method::TpgmPostHoc.strength().iter().map(|updates| updates.min(most)).collect();
    let mut tasks = vec![Task::ProbeAndAfter { seed, lrs: vec![RATE], shares, updates }];
    for method in trained() {
        tasks.push(Task::Train(Setting { method, lr: RATE, strength: method.strength(), seed }));
    }
    let Some(all) = run(lab, threads, tasks)? else { return Ok(None) };
    let chosen = best(&all).into_iter().map(|outcome| vec![outcome]).collect();
    Ok(Some(Outcomes { all, chosen }))
}

/// Every setting with the first seed, then the best on held-out real images with the other seeds. `None` if stopped.
///
/// # Errors
///
/// The first error of a run.
pub(crate) fn sweep(lab: &Lab<'_>, threads: usize, seed: u64, seeds: u64) -> Result<Option<Outcomes>> {
    let strengths = |method: Method| method.strengths().to_vec();
    let mut tasks = vec![Task::ProbeAndAfter {
        seed,
        lrs: RATES.to_vec(),
        shares: strengths(Method::WiseFt),
        updates: strengths(Method::TpgmPostHoc),
    }];
    for method in trained() {
        for lr in RATES {
            let none = method.strengths().is_empty().then_some(None);
            let strengths = method.strengths().iter().map(|strength| Some(*strength)).chain(none);
            tasks.extend(strengths.map(|strength| Task::Train(Setting { method, lr, strength, seed })));
        }
    }
    let Some(all) = run(lab, threads, tasks)? else { return Ok(None) };
    let mut chosen: Vec<_> = best(&all).into_iter().map(|outcome| vec![outcome]).collect();

    let mut tasks = Vec::new();
    for seed in seed + 1..seed + seeds {
        for setting in chosen.iter().map(|outcomes| outcomes[0].setting) {
            let (lrs, strength) = (vec![setting.lr], setting.strength.into_iter().collect());
            let (lrs, shares, updates) = match setting.method {
                Method::LinearProbe => (vec![], vec![], vec![]),
                Method::LpFt => (lrs, vec![], vec![]),
                Method::WiseFt => (lrs, strength, vec![]),
                Method::TpgmPostHoc => (lrs, vec![], strength),
                _ => {
                    tasks.push(Task::Train(Setting { seed, ..setting }));
                    continue;
                }
            };
            tasks.push(Task::ProbeAndAfter { seed, lrs, shares, updates });
        }
    }
    let Some(others) = run(lab, threads, merged(tasks))? else { return Ok(None) };
    for outcomes in &mut chosen {
        let setting = outcomes[0].setting;
        let same = |outcome: &&Outcome| Setting { seed: setting.seed, ..outcome.setting } == setting;
        outcomes.extend(others.iter().filter(same).cloned());
    }
    Ok(Some(Outcomes { all, chosen }))
}

/// The methods that are a training run of their own.
fn trained() -> impl Iterator<Item = Method> {
    const AFTER: [Method; 4] = [Method::LinearProbe, Method::LpFt, Method::WiseFt, Method::TpgmPostHoc];
    Method::ALL.into_iter().filter(|method| !AFTER.contains(method))
}

/// For each method the outcome with the highest accuracy on held-out real images, the earlier one of equals.
fn best(outcomes: &[Outcome]) -> Vec<Outcome> {
    let of = |method| {
        let mut best: Option<&Outcome> = None;
        for outcome in outcomes.iter().filter(|outcome| outcome.setting.method == method) {
            if best.is_none_or(|best| outcome.choice > best.choice) {
                best = Some(outcome);
            }
        }
        best.cloned()
    };
    Method::ALL.into_iter().filter_map(of).collect()
}

/// Tasks of the same seed that begin with a linear probe become one, so that no run is made twice.
fn merged(tasks: Vec<Task>) -> Vec<Task> {
    let add = |list: &mut Vec<f64>, more: Vec<f64>| {
        let new: Vec<_> = more.into_iter().filter(|value| !list.contains(value)).collect();
        list.extend(new);
    };
    let mut result: Vec<Task> = Vec::new();
    for task in tasks {
        match task {
            Task::ProbeAndAfter { seed, lrs, shares, updates } => {
                let same = result.iter_mut().find_map(|earlier| match earlier {
                    Task::ProbeAndAfter { seed: of, lrs, shares, updates } if *of == seed => {
                        Some((lrs, shares, updates))
                    }
                    _ => None,
                });
                match same {
                    Some(earlier) => {
                        add(earlier.0, lrs);
                        add(earlier.1, shares);
                        add(earlier.2, updates);
                    }
                    // First: it takes longest.
                    None => result.insert(0, Task::ProbeAndAfter { seed, lrs, shares, updates }),
                }
            }
            other => result.push(other),
        }
    }
    result
}

/// Runs tasks on some threads. `None` if stopped.
fn run(lab: &Lab<'_>, threads: usize, tasks: Vec<Task>) -> Result<Option<Vec<Outcome>>> {
    let outcomes = workers::run(threads, tasks, |task| match task {
        Task::Train(setting) => Ok(lab.train(setting)?.map(|outcome| vec![outcome])),
        Task::ProbeAndAfter { seed, lrs, shares, updates } => {
            lab.probe_and_after(seed, &lrs, &shares, &updates)
        }
    })?;
    let outcomes: Option<Vec<_>> = outcomes.into_iter().collect();
    Ok(outcomes.map(|outcomes| outcomes.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(method: Method, strength: f64, choice: f64, ood: f64) -> Outcome {
        let setting = Setting { method, lr: 1e-3, strength: Some(strength), seed: 0 };
        Outcome { setting, choice, domains: vec![choice, ood, ood], seconds: 1.0 }
    }

    #[test]
    fn the_choice_is_made_on_held_out_real_images_and_the_first_of_equals_wins() {
        let outcomes = [
            outcome(Method::Ftp, 1.0, 0.8, 0.9),
            outcome(Method::Ftp, 0.5, 0.9, 0.1),
            outcome(Method::Ftp, 0.0, 0.9, 0.8),
            outcome(Method::Spd, 1.0, 0.5, 0.5),
        ];
        let best = best(&outcomes);
        let chosen: Vec<_> =
            best.iter().map(|outcome| (outcome.setting.method, outcome.setting.strength)).collect();
        assert_eq!(chosen, [(Method::Ftp, Some(0.5)), (Method::Spd, Some(1.0))]);
    }

    #[test]
    fn runs_from_the_same_probe_are_merged() {
        let task = |seed, lrs: &[f64], shares: &[f64]| Task::ProbeAndAfter {
            seed,
            lrs: lrs.to_vec(),
            shares: shares.to_vec(),
            updates: vec![],
        };
        let tasks = merged(vec![task(1, &[1e-3], &[]), task(1, &[1e-3, 3e-3], &[0.5]), task(2, &[], &[])]);
        assert_eq!(tasks.len(), 2);
        let Task::ProbeAndAfter { lrs, shares, .. } = &tasks[1] else { panic!("a probe") };
        assert_eq!((lrs.as_slice(), shares.as_slice()), ([1e-3, 3e-3].as_slice(), [0.5].as_slice()));
    }
}
