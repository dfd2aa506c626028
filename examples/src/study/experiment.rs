//! Which settings are run, and which outcome counts.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::lab::{Row, Wanted};
use super::{Head, Lab, Method, Outcome, Recipe, Setting, Task};
use crate::search::{self, Point, SearchArgs};
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
    let tuned = lab.recipe.tuned();
    let mut settings = Vec::new();
    for method in &lab.recipe.methods {
        // What is made of a fine-tuned model has its learning rate.
        let of = if lab.recipe.in_row(*method) { tuned } else { *method };
        let strengths: Vec<_> = strengths(*method).into_iter().map(Some).collect();
        let strengths = if strengths.is_empty() { vec![None] } else { strengths };
        let setting = |strength| Setting { method: *method, lr: lab.recipe.rate(of), strength, seed };
        settings.extend(strengths.into_iter().map(setting));
    }
    let probes = &lab.recipe.probe_rates;
    let Some(all) = run(lab, at_once, jobs(lab.recipe, &settings, probes), probes)? else { return Ok(None) };
    let chosen = best(&lab.recipe.methods, &all).into_iter().map(|outcome| vec![outcome]).collect();
    Ok(Some(Outcomes { all, chosen }))
}

/// How a sweep finds its settings.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// As asked for on the command line.
    pub args: &'a SearchArgs,
    /// The folder for journals.
    pub journals: &'a Path,
}

/// The settings of the recipe with the first seed, or as many that a search asks for, then the best on held-out samples with the
/// other seeds. A linear probe has the learning rates of the recipe in any case. `None` if stopped.
///
/// # Errors
///
/// The first error of a run, or journals that cannot be used.
pub fn sweep<T: Task>(
    lab: &Lab<'_, T>,
    at_once: usize,
    seed: u64,
    seeds: u64,
    search: Search<'_>,
) -> Result<Option<Outcomes>> {
    let recipe = lab.recipe;
    let probes = &recipe.probe_rates;
    // Of other methods, which those of the recipe are made from.
    let mut others: Vec<Outcome> = Vec::new();
    let run_points = |points: Vec<(Method, Point)>| {
        let setting = |(method, (lr, strength))| Setting { method, lr, strength, seed };
        let settings: Vec<_> = points.into_iter().map(setting).collect();
        let Some(outcomes) = run(lab, at_once, jobs(lab.recipe, &settings, probes), probes)? else {
            return Ok(None);
        };
        let found = settings.iter().map(|setting| found(&outcomes, setting)).collect::<Result<_>>()?;
        for outcome in outcomes {
            if !recipe.methods.contains(&outcome.setting.method) && find(&others, &outcome.setting).is_none()
            {
                others.push(outcome);
            }
        }
        Ok(Some(found))
    };
    let methods = recipe.methods.iter().map(|method| (*method, method.name(), recipe.axes(*method)));
    let choice = |outcome: &Outcome| outcome.scores.choice;
    let tried = search::sweep(search.args, search.journals, seed, methods.collect(), run_points, choice)?;
    let Some(tried) = tried else { return Ok(None) };
    let mut chosen: Vec<_> = tried.iter().map(|tried| vec![tried.best().clone()]).collect();
    let all = tried.into_iter().flat_map(|tried| tried.outcomes).chain(others).collect();

    // Other seeds take the probe that was chosen.
    let probe = chosen.iter().map(|outcomes| outcomes[0].setting);
    let probe = probe.filter(|setting| setting.method == Method::LinearProbe && setting.lr > 0.0);
    let probe: Vec<f64> = probe.map(|setting| setting.lr).collect();
    let probes = if probe.is_empty() { probes } else { &probe };
    let best: Vec<_> = chosen.iter().map(|outcomes| outcomes[0].setting).collect();
    let other = |seed| best.iter().map(move |setting| Setting { seed, ..*setting }).collect::<Vec<_>>();
    let wanted = (seed + 1..seed + seeds).flat_map(other).collect::<Vec<_>>();
    let Some(others) = run(lab, at_once, jobs(lab.recipe, &wanted, probes), probes)? else { return Ok(None) };
    for setting in wanted {
        let outcome = found(&others, &setting)?;
        let of = chosen.iter_mut().find(|of| Setting { seed, ..setting } == of[0].setting);
        of.into_iter().for_each(|of| of.push(outcome.clone()));
    }
    Ok(Some(Outcomes { all, chosen }))
}

/// The outcome of a setting.
fn find<'a>(outcomes: &'a [Outcome], setting: &Setting) -> Option<&'a Outcome> {
    outcomes.iter().find(|outcome| outcome.setting == *setting)
}

fn found(outcomes: &[Outcome], setting: &Setting) -> Result<Outcome> {
    find(outcomes, setting).cloned().with_context(|| format!("{setting:?} was not run"))
}

/// What is to be run for some settings: those that build on each other in one go.
fn jobs(recipe: &Recipe, settings: &[Setting], probes: &[f64]) -> Vec<Job> {
    let mut rows: Vec<(u64, Row)> = Vec::new();
    let mut others = Vec::new();
    for setting in settings {
        if !recipe.in_row(setting.method) {
            others.push(Job::Train(*setting));
            continue;
        }
        let at = rows.iter().position(|(seed, _)| *seed == setting.seed).unwrap_or_else(|| {
            rows.push((setting.seed, Row { probes: probes.to_vec(), settings: Vec::new() }));
            rows.len() - 1
        });
        if !matches!(setting.method, Method::LinearProbe | Method::ZeroShot) {
            rows[at].1.settings.push(*setting);
        }
    }
    // First: they take longest.
    rows.into_iter().map(|(seed, row)| Job::Row(seed, row)).chain(others).collect()
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
    use crate::precision::Precision;
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

    fn recipe(methods: Vec<Method>, rates: Vec<f64>) -> Recipe {
        Recipe {
            head: Head::New,
            steps: 1,
            batch: 1,
            radii_batch: 1,
            rule: |lr| tpgm_candle::AdamW::default().lr(lr).into(),
            warmup: 0,
            lr_every: 1,
            head_lr: Some(1e-2),
            probe_rates: Vec::new(),
            max_grad_norm: None,
            precision: Precision::F32,
            count_derailed: false,
            rate: rates[0],
            rates,
            own_rates: Vec::new(),
            strengths: Method::strengths,
            methods,
            save_every: 0,
            threads: 1,
        }
    }

    #[test]
    fn what_builds_on_each_other_is_one_job_for_each_seed() {
        let recipe = recipe(Method::ALL.to_vec(), vec![1e-3]);
        let setting = |method, lr, strength, seed| Setting { method, lr, strength, seed };
        let (ftp, probe) =
            (setting(Method::Ftp, 1e-3, Some(1.0), 1), setting(Method::LinearProbe, 0.0, None, 2));
        let row = [
            setting(Method::LpFt, 1e-3, None, 1),
            setting(Method::WiseFt, 3e-3, Some(0.5), 1),
            setting(Method::TpgmPostHoc, 1e-3, Some(200.0), 1),
        ];
        let jobs = jobs(&recipe, &[row[0], ftp, row[1], probe, row[2]], &[0.1]);
        let [Job::Row(1, first), Job::Row(2, second), Job::Train(alone)] = &jobs[..] else {
            panic!("two rows and a run")
        };
        assert_eq!((&first.settings[..], &first.probes[..]), (&row[..], &[0.1][..]));
        assert!(second.settings.is_empty() && *alone == ftp);
    }

    /// The outcomes that are committed lead to the settings of the tables beside them.
    #[test]
    fn committed_outcomes_have_the_choices_of_their_tables() {
        let nine =
            Method::ALL.into_iter().filter(|m| !matches!(m, Method::FixedRadius | Method::TpgmPostHoc));
        for (example, methods, rates) in [
            ("domainnet_mini", Method::ALL.to_vec(), vec![3e-4, 1e-3]),
            ("finetune_text", nine.collect(), vec![1e-4, 3e-5]),
        ] {
            let results =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example).join("results");
            let read = |name| std::fs::read_to_string(results.join(name)).unwrap();
            let outcomes: Vec<Outcome> = serde_json::from_str(&read("outcomes.json")).unwrap();
            let recipe = recipe(methods, rates);
            let axes = recipe.methods.iter().map(|method| (*method, method.name(), recipe.axes(*method)));
            let run = |points: Vec<(Method, Point)>| {
                let setting = |(method, (lr, strength))| Setting { method, lr, strength, seed: 0 };
                points.into_iter().map(|point| found(&outcomes, &setting(point)).map(Some)).collect()
            };
            let (args, nowhere) = (SearchArgs::default(), Path::new("nowhere"));
            let choice = |outcome: &Outcome| outcome.scores.choice;
            let tried = search::sweep(&args, nowhere, 0, axes.collect(), run, choice).unwrap().unwrap();
            assert_eq!(tried.iter().map(|tried| tried.outcomes.len()).sum::<usize>(), outcomes.len());
            let table = read("table.md");
            for tried in tried {
                let Outcome { setting, .. } = tried.best();
                let row = format!("| {} | {} |", setting.method.name(), super::super::report::words(setting));
                assert!(table.contains(&row), "{example}: {row}");
            }
        }
    }
}
