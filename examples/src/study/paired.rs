//! Differences between methods on the same samples.

use super::bootstrap::{Interval, Set, difference};
use super::{Method, Outcome};
use crate::table::Table;

/// Columns of a table: names, and positions of the test sets whose mean each is.
pub(super) fn measures(domains: usize, groups: &[(String, Vec<usize>)]) -> Vec<(String, Vec<usize>)> {
    let mut measures = vec![("ID".to_owned(), vec![0])];
    if domains > 1 {
        measures.extend(groups.iter().cloned());
        measures.push(("OOD".to_owned(), (1..domains).collect()));
    }
    measures
}

/// Differences in points of each method's chosen setting to that of `base`, over the seeds that both have, with an interval
/// for other samples. `None` where outcomes do not say which samples they got right.
pub(super) fn table(
    chosen: &[Vec<Outcome>],
    base: Method,
    measures: &[(String, Vec<usize>)],
    units: &[Vec<u64>],
) -> Option<Table> {
    let of_base =
        chosen.iter().find(|outcomes| outcomes.iter().any(|outcome| outcome.setting.method == base))?;
    let mut table = Table::new(["method".to_owned(), "seeds".to_owned()]);
    table.header.extend(measures.iter().map(|(name, _)| name.clone()));
    for outcomes in chosen {
        let method = outcomes.first()?.setting.method;
        let pairs: Vec<_> = outcomes
            .iter()
            .filter_map(|outcome| {
                let same = |other: &&Outcome| other.setting.seed == outcome.setting.seed;
                Some((outcome, of_base.iter().find(same)?))
            })
            .filter(|(outcome, base)| fits(outcome, base))
            .collect();
        if method == base || pairs.is_empty() {
            continue;
        }
        let mut row = vec![method.name().to_owned(), pairs.len().to_string()];
        for (_, domains) in measures {
            let sets: Vec<_> = domains.iter().map(|domain| set(&pairs, *domain, units)).collect();
            row.push(difference(&sets.iter().collect::<Vec<_>>()).map_or(String::new(), shown));
        }
        table.rows.push(row);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// Whether two outcomes were judged on the same samples.
fn fits(a: &Outcome, b: &Outcome) -> bool {
    let sizes = |outcome: &Outcome| {
        outcome.scores.right.iter().map(|marks| marks.as_slice().len()).collect::<Vec<_>>()
    };
    !a.scores.right.is_empty() && sizes(a) == sizes(b)
}

/// Differences on a test set, in the mean over seeds.
fn set(pairs: &[(&Outcome, &Outcome)], domain: usize, units: &[Vec<u64>]) -> Set {
    let marks = |outcome: &Outcome| outcome.scores.right[domain].as_slice().to_vec();
    let mut differences = vec![0.0; marks(pairs[0].0).len()];
    for (outcome, base) in pairs {
        for ((sum, right), base) in differences.iter_mut().zip(marks(outcome)).zip(marks(base)) {
            *sum += (f64::from(right) - f64::from(base)) / pairs.len() as f64;
        }
    }
    let own = units.get(domain).filter(|units| units.len() == differences.len()).cloned();
    Set { units: own.unwrap_or_else(|| (0..differences.len() as u64).collect()), differences }
}

/// `+1.3 [-0.2, 2.9]`
fn shown(Interval { mean, low, high }: Interval) -> String {
    format!("{:+.1} [{:.1}, {:.1}]", 100.0 * mean, 100.0 * low, 100.0 * high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{Marks, Scores, Setting};
    use crate::timing::StepTimes;

    fn outcome(method: Method, seed: u64, right: &[&[bool]]) -> Outcome {
        let right = right.iter().map(|right| Marks::new(right.to_vec())).collect();
        Outcome {
            setting: Setting { method, lr: 1e-3, strength: None, seed },
            scores: Scores { right, ..Scores::default() },
            seconds: 1.0,
            times: StepTimes::default(),
            derailed: None,
        }
    }

    #[test]
    fn differences_are_those_of_the_same_samples_and_seeds() {
        let (yes, no) = (&[true, true][..], &[false, true][..]);
        let chosen = [
            vec![
                outcome(Method::FineTuning, 0, &[yes, no, no]),
                outcome(Method::FineTuning, 1, &[yes, no, yes]),
            ],
            vec![outcome(Method::Ftp, 0, &[no, yes, yes]), outcome(Method::Ftp, 2, &[no, no, no])],
            vec![outcome(Method::Spd, 0, &[])],
        ];
        let measures = measures(3, &[("lines".to_owned(), vec![2])]);
        let table = table(&chosen, Method::FineTuning, &measures, &[]).unwrap();
        assert_eq!(table.header, ["method", "seeds", "ID", "lines", "OOD"]);
        // One seed is shared; of two samples one is another.
        assert_eq!(table.rows.len(), 1);
        assert_eq!(table.rows[0][..2], ["FTP", "1"]);
        let means: Vec<_> = table.rows[0][2..].iter().map(|cell| cell.split(' ').next().unwrap()).collect();
        assert_eq!(means, ["-50.0", "+50.0", "+50.0"]);
        assert!(super::table(&chosen, Method::LpFt, &measures, &[]).is_none());
    }
}
