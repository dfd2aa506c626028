//! What a learning rate does: accuracy along the rates, and how many runs derailed.

use std::collections::BTreeMap;

use super::{Method, Outcome, mean};
use crate::table::{Table, with_deviation};

/// A run has derailed if its loss stopped being finite, or if held-out samples are classified rightly less often than this
/// share of what the linear probe of the same seed achieves: training has then destroyed what was there.
const SHARE: f64 = 2.0 / 3.0;

/// Whether a run has derailed. `probe` is the linear probe's accuracy on held-out samples.
fn derailed(outcome: &Outcome, probe: Option<f64>) -> bool {
    outcome.derailed.is_some() || probe.is_some_and(|probe| outcome.scores.choice < SHARE * probe)
}

/// Methods x learning rates: means over all strengths and seeds that were run, and how many of these runs derailed.
pub(super) fn table(methods: &[Method], outcomes: &[&Outcome], measures: &[(String, Vec<usize>)]) -> Table {
    let mut probes = BTreeMap::<u64, f64>::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.setting.method == Method::LinearProbe) {
        let best = probes.entry(outcome.setting.seed).or_default();
        *best = best.max(outcome.scores.choice);
    }
    let mut table = Table::new(["method", "learning rate", "runs", "derailed", "held-out"]);
    table.header.extend(measures.iter().map(|(name, _)| name.clone()));
    for method in methods {
        let of_method: Vec<_> =
            outcomes.iter().filter(|outcome| outcome.setting.method == *method).copied().collect();
        let mut rates: Vec<f64> = of_method.iter().map(|outcome| outcome.setting.lr).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        for rate in rates {
            let runs: Vec<_> = of_method.iter().filter(|outcome| outcome.setting.lr == rate).collect();
            let lost =
                runs.iter().filter(|run| derailed(run, probes.get(&run.setting.seed).copied())).count();
            let percent = |of: &dyn Fn(&Outcome) -> f64| {
                with_deviation(&runs.iter().map(|run| 100.0 * of(run)).collect::<Vec<_>>(), 1)
            };
            let shown = if rate > 0.0 { rate.to_string() } else { String::new() };
            let mut row = vec![method.name().to_owned(), shown, runs.len().to_string(), lost.to_string()];
            row.push(percent(&|run| run.scores.choice));
            for (_, domains) in measures {
                let of = |run: &Outcome| {
                    mean(&domains.iter().map(|domain| run.scores.accuracy[*domain]).collect::<Vec<_>>())
                };
                row.push(percent(&of));
            }
            table.rows.push(row);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{Scores, Setting};
    use crate::timing::StepTimes;

    fn outcome(method: Method, lr: f64, seed: u64, choice: f64, ood: f64) -> Outcome {
        Outcome {
            setting: Setting { method, lr, strength: None, seed },
            scores: Scores { choice, accuracy: vec![choice, ood], ..Scores::default() },
            seconds: 1.0,
            times: StepTimes::default(),
            derailed: (choice == 0.0).then(|| "the loss is NaN".to_owned()),
        }
    }

    #[test]
    fn runs_that_fall_far_below_the_probe_have_derailed() {
        let outcomes = [
            outcome(Method::LinearProbe, 0.0, 0, 0.6, 0.5),
            outcome(Method::FineTuning, 1e-3, 0, 0.39, 0.1),
            outcome(Method::FineTuning, 1e-3, 1, 0.41, 0.3),
            outcome(Method::FineTuning, 1e-3, 2, 0.0, 0.0),
            outcome(Method::FineTuning, 1e-4, 0, 0.41, 0.3),
        ];
        let outcomes: Vec<_> = outcomes.iter().collect();
        let measures = [("ID".to_owned(), vec![0]), ("OOD".to_owned(), vec![1])];
        let csv = table(&[Method::LinearProbe, Method::FineTuning], &outcomes, &measures).csv();
        let lines: Vec<_> = csv.lines().collect();
        assert_eq!(lines[0], "method,learning rate,runs,derailed,held-out,ID,OOD");
        assert_eq!(lines[1], "linear probe,,1,0,60.0,60.0,50.0");
        assert_eq!(lines[2], "fine-tuning,0.0001,1,0,41.0,41.0,30.0");
        // Two of three: one fell, one is not finite. Seeds without a probe are judged by the latter alone.
        assert!(lines[3].starts_with("fine-tuning,0.001,3,2,26.7 ± 23.1,"), "{csv}");
    }
}
