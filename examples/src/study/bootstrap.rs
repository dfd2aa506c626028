//! How sure a difference is that was measured on the same samples under both models.

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A test set: for each sample what it is a sample of, and its difference in `[-1, 1]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Set {
    pub(super) units: Vec<u64>,
    pub(super) differences: Vec<f64>,
}

/// A difference with an interval that holds it in 95 of 100 repetitions with other things.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    pub(super) mean: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Draws with replacement.
const DRAWS: usize = 2000;

/// The mean over sets of their mean differences. The interval is that of the percentile bootstrap over units: a thing is
/// drawn with all its samples in all sets. `None` without samples.
pub(super) fn difference(sets: &[&Set]) -> Option<Interval> {
    if sets.is_empty() || sets.iter().any(|set| set.differences.is_empty()) {
        return None;
    }
    // Sums and counts of each unit in each set.
    let mut numbers = HashMap::new();
    let mut sums: Vec<Vec<(usize, f64, f64)>> = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        for (unit, difference) in set.units.iter().zip(&set.differences) {
            let at = *numbers.entry(*unit).or_insert_with(|| {
                sums.push(Vec::new());
                sums.len() - 1
            });
            match sums[at].iter_mut().find(|(of, ..)| *of == number) {
                Some((_, sum, count)) => (*sum, *count) = (*sum + difference, *count + 1.0),
                None => sums[at].push((number, *difference, 1.0)),
            }
        }
    }
    let mean = |drawn: &mut dyn Iterator<Item = usize>| {
        let mut totals = vec![(0.0, 0.0); sets.len()];
        for at in drawn {
            for (number, sum, count) in &sums[at] {
                totals[*number] = (totals[*number].0 + sum, totals[*number].1 + count);
            }
        }
        totals.iter().map(|(sum, count)| sum / count.max(1.0)).sum::<f64>() / sets.len() as f64
    };
    // Always the same draws: the same outcomes give the same interval.
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let count = sums.len() as u64;
    let mut means: Vec<f64> =
        (0..DRAWS).map(|_| mean(&mut (0..count).map(|_| (random.next_u64() % count) as usize))).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((DRAWS - 1) as f64 * share).round() as usize];
    Some(Interval { mean: mean(&mut (0..sums.len())), low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_normal_distribution_for_many_units() {
        // Differences of 1 and 0, half each: a standard error of 0.5 / sqrt(400).
        let differences: Vec<_> = (0..400).map(|n| f64::from(n % 2)).collect();
        let set = Set { units: (0..400).collect(), differences };
        let found = difference(&[&set]).unwrap();
        assert_eq!(found.mean, 0.5);
        assert!((found.low - 0.451).abs() < 0.004 && (found.high - 0.549).abs() < 0.004, "{found:?}");
        assert_eq!(difference(&[&set]), Some(found));
    }

    #[test]
    fn samples_of_one_thing_count_once() {
        let differences: Vec<_> = (0..400).map(|n| f64::from(n / 4 % 2)).collect();
        let set = Set { units: (0..400).map(|n| n / 4).collect(), differences };
        let found = difference(&[&set]).unwrap();
        // A hundred things: twice the width.
        assert!((found.high - found.low - 0.196).abs() < 0.016, "{found:?}");
        // The same things in a second set add nothing either.
        let both = difference(&[&set, &set]).unwrap();
        assert!((both.high - both.low - (found.high - found.low)).abs() < 1e-9);
    }

    #[test]
    fn sets_of_different_sizes_count_alike_and_none_gives_nothing() {
        let set = |units: Vec<u64>, value| Set { differences: vec![value; units.len()], units };
        let found = difference(&[&set(vec![1, 2, 3], 1.0), &set(vec![4], 0.0)]).unwrap();
        assert_eq!(found.mean, 0.5);
        assert_eq!(difference(&[&set(vec![], 0.0)]), None);
        assert_eq!(difference(&[]), None);
    }
}
