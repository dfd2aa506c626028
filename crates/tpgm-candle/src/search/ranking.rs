//! How promising given values are: densities of good and bad trials.

use candle_core::cpu::erf::erfc_f64;

use super::Range;
use super::error::{Error, Result};

/// Trials that count as good: this share, rounded up, and no more than [`MOST_GOOD`].
const GOOD: f64 = 0.1;
/// The most trials that count as good.
const MOST_GOOD: usize = 25;
/// The newest trials, which all have the full weight.
const NEWEST: usize = 25;

/// One normal distribution of a [`Density`], cut to the range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component {
    /// Its mean, a logarithm for [`Range::Log`].
    pub mean: f64,
    /// Its standard deviation before it is cut.
    pub deviation: f64,
    /// Its share; all shares add up to 1.
    pub weight: f64,
}

/// Where the values of some trials lie: a mixture of a normal distribution around each, as wide as the gap to the next, and a
/// wide one around the middle of the range (Parzen estimator; Bergstra et al., NeurIPS 2011, with the constants of Optuna 3.5).
#[derive(Debug, Clone, PartialEq)]
pub struct Density {
    range: Range,
    components: Vec<Component>,
}

impl Density {
    /// From values in the order in which they were tried. The newest 25 have the full weight, older ones less.
    fn new(range: Range, values: &[f64]) -> Self {
        let (low, high) = range.inner();
        let (n, room) = (values.len(), high - low);
        let mut means: Vec<f64> = values.iter().map(|value| range.inner_value(*value)).collect();
        means.push((low + high) / 2.0);
        let mut order: Vec<usize> = (0..=n).collect();
        order.sort_by(|a, b| means[*a].total_cmp(&means[*b]));
        let least = room / (n + 2).min(100) as f64;
        let mut deviations = vec![room; n + 1];
        for (rank, &at) in order.iter().enumerate().filter(|(_, at)| **at < n) {
            let below = rank.checked_sub(1).map(|rank| means[at] - means[order[rank]]);
            let above = order.get(rank + 1).map(|next| means[*next] - means[at]);
            // The first and the last have one neighbor: the ends of the range are none.
            deviations[at] = below.into_iter().chain(above).fold(0.0, f64::max).clamp(least, room);
        }
        let ramp = n.saturating_sub(NEWEST);
        let oldest = 1.0 / n.max(1) as f64;
        let weight = |trial: usize| match trial {
            _ if trial >= ramp => 1.0,
            _ => oldest + (1.0 - oldest) * trial as f64 / (ramp - 1).max(1) as f64,
        };
        let weights: Vec<f64> = (0..n).map(weight).chain([1.0]).collect();
        let all: f64 = weights.iter().sum();
        let parts = means.into_iter().zip(deviations).zip(weights);
        let component = |((mean, deviation), weight)| Component { mean, deviation, weight: weight / all };
        Self { range, components: parts.map(component).collect() }
    }

    /// The distributions: one per trial, in their order, and last the wide one.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The logarithm of the density at a value: of its logarithm for [`Range::Log`]; of its probability for [`Range::Integer`].
    pub fn log_density(&self, value: f64) -> f64 {
        let (low, high) = self.range.inner();
        let x = self.range.inner_value(value);
        let sum: f64 = self
            .components
            .iter()
            .map(|component| {
                let Component { mean, deviation, weight } = *component;
                let at = |x: f64| (x - mean) / deviation;
                let here = match self.range {
                    Range::Integer { .. } => mass(at(x - 0.5), at(x + 0.5)),
                    _ => (-at(x) * at(x) / 2.0).exp() / (deviation * std::f64::consts::TAU.sqrt()),
                };
                weight * here / mass(at(low), at(high))
            })
            .sum();
        sum.ln()
    }
}

/// The standard normal distribution's mass between two numbers.
fn mass(from: f64, to: f64) -> f64 {
    let below = |x: f64| erfc_f64(-x * std::f64::consts::FRAC_1_SQRT_2) / 2.0;
    // In the tail of both, where it does not cancel.
    if from > 0.0 { below(-from) - below(-to) } else { below(to) - below(from) }
}

/// How promising values of one parameter are by the trials there were: for a choice among given settings, where
/// [`Study::ask`](super::Study::ask) would make its own.
///
/// The best tenth of the trials, rounded up, but at most 25, are good, the others bad; the score of a value is the logarithm of
/// the density of the good over that of the bad. It is the acquisition of Optuna's sampler (tree-structured Parzen estimator,
/// version 3.5), number by number.
///
/// ```
/// use tpgm_candle::search::{Range, Ranking};
///
/// let lr = Range::Log { low: 1e-5, high: 1e-1 };
/// let trials: Vec<(f64, f64)> = (0..20).map(|i| 1e-5 * 1.58f64.powi(i)).map(|lr| (lr, (lr.log10() + 3.0).abs())).collect();
/// let ranking = Ranking::new(lr, &trials)?;
/// assert!(ranking.score(1e-3) > ranking.score(1e-5));
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    good: Density,
    bad: Density,
}

impl Ranking {
    /// From values and losses, in the order in which they were tried. Of equal losses the earlier counts as better, as there.
    ///
    /// # Errors
    ///
    /// [`Error::Range`] for a range without room, [`Error::Outside`] for a value that it has not, [`Error::Loss`] for a loss that
    /// is not finite.
    pub fn new(range: Range, trials: &[(f64, f64)]) -> Result<Self> {
        range.check("ranking")?;
        for (trial, &(value, loss)) in trials.iter().enumerate() {
            if !range.contains(value) {
                return Err(Error::Outside { trial: trial as u64, value, range });
            }
            if !loss.is_finite() {
                return Err(Error::Loss { trial: trial as u64, loss });
            }
        }
        let mut order: Vec<usize> = (0..trials.len()).collect();
        order.sort_by(|a, b| trials[*a].1.total_cmp(&trials[*b].1));
        let good = ((GOOD * trials.len() as f64).ceil() as usize).min(MOST_GOOD);
        let (good, bad) = order.split_at_mut(good);
        let density = |which: &mut [usize]| {
            which.sort_unstable();
            Density::new(range, &which.iter().map(|i| trials[*i].0).collect::<Vec<_>>())
        };
        Ok(Self { good: density(good), bad: density(bad) })
    }

    /// Where good trials are.
    pub fn good(&self) -> &Density {
        &self.good
    }

    /// Where the others are.
    pub fn bad(&self) -> &Density {
        &self.bad
    }

    /// The larger, the more promising. For values in the range.
    pub fn score(&self, value: f64) -> f64 {
        self.good.log_density(value) - self.bad.log_density(value)
    }
}
