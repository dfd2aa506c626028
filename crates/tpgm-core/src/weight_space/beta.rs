//! A mixture of Beta distributions, to cluster interpolation coefficients.

use crate::blocks::{at_least, check_count};
use crate::error::Result;
use crate::rule::{above_zero, check};

use super::special::ln_beta;

/// Ten times the rounding unit of f64, added to counts and variances so that neither is 0 (the authors' code).
const TINY: f64 = 10.0 * f64::EPSILON;

/// Added to a variance once more where it divides (the authors' code).
const VARIANCE_FLOOR: f64 = 1e-10;

/// Rounds of k-means; one-dimensional data need far fewer.
const KMEANS_ROUNDS: usize = 100;

/// Fits a mixture of Beta distributions to numbers in `(0, 1)` by expectation maximization, as DaWin (arXiv 2410.03782)
/// does to merge a few times instead of once per sample.
///
/// The M-step matches moments: with a component's mean `m` and variance `v`, capped at `m * (1 - m) / 4`,
/// `a = m * (m * (1 - m) / (v + 1e-10) - 1)` and `b = (1 - m) * (m * (1 - m) / (v + 1e-10) - 1)`. As in the authors' code, a round is
/// an E-step and an M-step, and the likelihood that ends a start is that of the E-step; so the parameters are one M-step further.
/// Every start is k-means; the first one from quantiles, the others from samples drawn with `seed`: the authors take scikit-learn's,
/// whose random numbers are its own; [`BetaMixture::fit_from`] starts where it is told. The start that ends with the greatest
/// likelihood wins. Equal data and options give equal bits.
///
/// ```
/// use tpgm_core::weight_space::BetaMixture;
/// let lambda: Vec<f64> = (0..60).map(|i| [0.2, 0.5, 0.9][i % 3] + 0.001 * (i / 3) as f64).collect();
/// let clusters = BetaMixture::default().fit(&lambda)?;
/// assert_eq!(clusters.assignment[..3], [0, 1, 2]);
/// assert!((clusters.means[0] - 0.2095).abs() < 1e-6);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct BetaMixture {
    /// Number of components, at least 1. Default 3 (the paper).
    pub components: usize,
    /// Number of starts, at least 1. Default 3.
    pub restarts: usize,
    /// Most iterations of one start, at least 1. Default 1000.
    pub max_iterations: usize,
    /// A start ends when the mean log-likelihood changes by less, above 0. Default 1e-4.
    pub tolerance: f64,
    /// Seed of the starts after the first. Default 0.
    pub seed: u64,
}

impl Default for BetaMixture {
    fn default() -> Self {
        Self { components: 3, restarts: 3, max_iterations: 1000, tolerance: 1e-4, seed: 0 }
    }
}

/// A fitted [`BetaMixture`]. Components are sorted by mean.
#[derive(Debug, Clone, PartialEq)]
pub struct BetaClusters {
    /// Mean `a / (a + b)` of each component: the coefficient for the samples of its cluster.
    pub means: Vec<f64>,
    /// The parameters `(a, b)` of each component.
    pub parameters: Vec<(f64, f64)>,
    /// The share of each component; they add up to 1.
    pub weights: Vec<f64>,
    /// The most probable component of each sample.
    pub assignment: Vec<usize>,
    /// Mean log-likelihood of the samples, by the last E-step: before the M-step that the parameters come from.
    pub log_likelihood: f64,
    /// Iterations of the winning start; the most allowed if it did not converge.
    pub iterations: usize,
}

impl BetaClusters {
    /// How probable each component is for each sample: `[samples, components]`, row by row; rows add up to 1.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) for a sample that is not strictly between 0 and 1.
    pub fn probabilities(&self, samples: &[f64]) -> Result<Vec<f64>> {
        samples.iter().try_for_each(|&x| {
            check("sample of the Beta mixture", x, "strictly between 0 and 1", |x| x > 0.0 && x < 1.0)
        })?;
        let component = |(&(a, b), &weight): (&(f64, f64), &f64)| Component { a, b, weight };
        let mixture: Vec<_> = self.parameters.iter().zip(&self.weights).map(component).collect();
        let mut probabilities = vec![0.0; samples.len() * mixture.len()];
        expect(&Data::new(samples), &mixture, &mut probabilities);
        Ok(probabilities)
    }
}

impl BetaMixture {
    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`](crate::Error::InvalidOption).
    pub fn validate(&self) -> Result<()> {
        let at_least_one = |option, value: usize| check(option, value as f64, "at least 1", |x| x >= 1.0);
        at_least_one("BetaMixture::components", self.components)?;
        at_least_one("BetaMixture::restarts", self.restarts)?;
        at_least_one("BetaMixture::max_iterations", self.max_iterations)?;
        above_zero("BetaMixture::tolerance", self.tolerance)
    }

    /// Fits the mixture to `samples`, each strictly between 0 and 1.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) for an option or a sample outside its range, [`Error::TooFew`](crate::Error::TooFew) with fewer samples than
    /// components.
    pub fn fit(&self, samples: &[f64]) -> Result<BetaClusters> {
        self.check(samples)?;
        let data = Data::new(samples);
        let start = |centers| self.run(&data, &kmeans(samples, centers));
        let mut random = SplitMix(self.seed);
        let mut best = start(quantiles(&data.sorted, self.components));
        for _ in 1..self.restarts {
            let run = start((0..self.components).map(|_| data.sorted[random.below(samples.len())]).collect());
            if run.log_likelihood > best.log_likelihood {
                best = run;
            }
        }
        Ok(best.clusters(&data))
    }

    /// Fits the mixture from one given start: `assignment` says which component, below `components`, each sample belongs to at
    /// first. `restarts` and `seed` do not matter. Of equal assignments the result has the same bits as [`BetaMixture::fit`] has
    /// when k-means ends there.
    ///
    /// # Errors
    ///
    /// As [`BetaMixture::fit`]; [`Error::CountMismatch`](crate::Error::CountMismatch) for another number of assignments than samples, and
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) for a component that is not there.
    pub fn fit_from(&self, samples: &[f64], assignment: &[usize]) -> Result<BetaClusters> {
        self.check(samples)?;
        check_count("assignments", samples.len(), assignment.len())?;
        for &k in assignment {
            check("assignment of a sample", k as f64, "below BetaMixture::components", |_| {
                k < self.components
            })?;
        }
        let data = Data::new(samples);
        Ok(self.run(&data, assignment).clusters(&data))
    }

    fn check(&self, samples: &[f64]) -> Result<()> {
        self.validate()?;
        at_least("samples of the Beta mixture", self.components, samples.len())?;
        samples.iter().try_for_each(|&x| {
            check("sample of the Beta mixture", x, "strictly between 0 and 1", |x| x > 0.0 && x < 1.0)
        })
    }

    /// One start from the given assignment.
    fn run(&self, data: &Data<'_>, assignment: &[usize]) -> Run {
        // As published, every sample belongs to every component a little.
        let mut responsibilities = vec![TINY; data.samples.len() * self.components];
        for (row, &k) in responsibilities.chunks_exact_mut(self.components).zip(assignment) {
            row[k] += 1.0;
        }
        let mut mixture = vec![Component::WIDE; self.components];
        maximize(data, &responsibilities, &mut mixture);
        let mut log_likelihood = f64::NEG_INFINITY;
        let mut iterations = 0;
        while iterations < self.max_iterations {
            iterations += 1;
            let previous = log_likelihood;
            log_likelihood = expect(data, &mixture, &mut responsibilities);
            maximize(data, &responsibilities, &mut mixture);
            if (log_likelihood - previous).abs() < self.tolerance {
                break;
            }
        }
        Run { mixture, log_likelihood, iterations }
    }
}

struct Run {
    mixture: Vec<Component>,
    log_likelihood: f64,
    iterations: usize,
}

impl Run {
    fn clusters(mut self, data: &Data<'_>) -> BetaClusters {
        self.mixture.sort_by(|x, y| x.mean().total_cmp(&y.mean()));
        let mut responsibilities = vec![0.0; data.samples.len() * self.mixture.len()];
        expect(data, &self.mixture, &mut responsibilities);
        let most_probable = |row: &[f64]| {
            let greater = |best, k: usize| if row[k] > row[best] { k } else { best };
            (1..row.len()).fold(0, greater)
        };
        BetaClusters {
            means: self.mixture.iter().map(Component::mean).collect(),
            parameters: self.mixture.iter().map(|c| (c.a, c.b)).collect(),
            weights: self.mixture.iter().map(|c| c.weight).collect(),
            assignment: responsibilities.chunks_exact(self.mixture.len()).map(most_probable).collect(),
            log_likelihood: self.log_likelihood,
            iterations: self.iterations,
        }
    }
}

/// The samples, with what every iteration needs of them.
struct Data<'a> {
    samples: &'a [f64],
    sorted: Vec<f64>,
    /// `(ln x, ln(1 - x))`.
    logs: Vec<(f64, f64)>,
}

impl<'a> Data<'a> {
    fn new(samples: &'a [f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { samples, sorted, logs: samples.iter().map(|x| (x.ln(), (-x).ln_1p())).collect() }
    }
}

/// One Beta distribution and its share of the mixture.
#[derive(Debug, Clone, Copy)]
struct Component {
    a: f64,
    b: f64,
    weight: f64,
}

impl Component {
    /// The uniform distribution: where a component without samples starts.
    const WIDE: Component = Component { a: 1.0, b: 1.0, weight: 0.0 };

    fn mean(&self) -> f64 {
        self.a / (self.a + self.b)
    }
}

/// The M-step: components by weighted moments. `responsibilities` is `[samples, components]`.
fn maximize(data: &Data<'_>, responsibilities: &[f64], mixture: &mut [Component]) {
    let components = mixture.len();
    let total = data.samples.len() as f64 + components as f64 * TINY;
    for (k, component) in mixture.iter_mut().enumerate() {
        let weights = || responsibilities.iter().skip(k).step_by(components);
        let mass = weights().sum::<f64>();
        component.weight = (mass + TINY) / total;
        if mass <= TINY {
            // Nobody's: it keeps its shape.
            continue;
        }
        let mean = weights().zip(data.samples).map(|(w, x)| w * x).sum::<f64>() / mass;
        let squares = weights().zip(data.samples).map(|(w, x)| w * (x - mean) * (x - mean));
        let spread = mean * (1.0 - mean);
        let variance = (squares.sum::<f64>() / mass).min(spread / 4.0) + TINY;
        let concentration = spread / (variance + VARIANCE_FLOOR) - 1.0;
        // Next to 0 and 1 the spread itself vanishes; stay a distribution.
        if concentration > 0.0 {
            component.a = mean * concentration;
            component.b = (1.0 - mean) * concentration;
        }
    }
}

/// The E-step: overwrites the responsibilities and returns the mean log-likelihood.
fn expect(data: &Data<'_>, mixture: &[Component], responsibilities: &mut [f64]) -> f64 {
    let constants: Vec<f64> = mixture.iter().map(|c| c.weight.ln() - ln_beta(c.a, c.b)).collect();
    let mut total = 0.0;
    for ((ln_x, ln_rest), row) in data.logs.iter().zip(responsibilities.chunks_exact_mut(mixture.len())) {
        for ((log, component), constant) in row.iter_mut().zip(mixture).zip(&constants) {
            *log = constant + (component.a - 1.0) * ln_x + (component.b - 1.0) * ln_rest;
        }
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|log| (log - top).exp()).sum();
        let log_sum = top + sum.ln();
        row.iter_mut().for_each(|log| *log = (*log - log_sum).exp());
        total += log_sum;
    }
    total / data.samples.len() as f64
}

/// The middles of `count` equally filled parts of sorted data.
fn quantiles(sorted: &[f64], count: usize) -> Vec<f64> {
    (0..count).map(|k| sorted[(2 * k + 1) * sorted.len() / (2 * count)]).collect()
}

/// Lloyd's algorithm from the given centers; returns the center of each sample. A center without samples stays.
fn kmeans(samples: &[f64], mut centers: Vec<f64>) -> Vec<usize> {
    let components = centers.len();
    let nearest = |centers: &[f64], x: f64| {
        let closer = |best: usize, k: usize| {
            if (centers[k] - x).abs() < (centers[best] - x).abs() { k } else { best }
        };
        (1..centers.len()).fold(0, closer)
    };
    let mut labels: Vec<usize> = Vec::new();
    for _ in 0..KMEANS_ROUNDS {
        let new: Vec<usize> = samples.iter().map(|&x| nearest(&centers, x)).collect();
        if new == labels {
            break;
        }
        labels = new;
        let mut sums = vec![(0.0, 0.0); components];
        for (&label, x) in labels.iter().zip(samples) {
            sums[label].0 += x;
            sums[label].1 += 1.0;
        }
        for (center, (sum, count)) in centers.iter_mut().zip(sums) {
            if count > 0.0 {
                *center = sum / count;
            }
        }
    }
    labels
}

/// A small generator for starts (splitmix64 by Steele, Lea and Flood).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`, which is at least 1.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::noise;
    use crate::error::Error;
    use proptest::prelude::*;

    /// Samples of Beta(i, j) with small integers: the i-th smallest of i + j - 1 uniform numbers.
    fn beta(seed: u64, i: usize, j: usize, count: usize) -> Vec<f64> {
        let uniform = noise(seed, count * (i + j - 1));
        let sample = |group: &[f64]| {
            let mut group = group.to_vec();
            group.sort_by(f64::total_cmp);
            (group[i - 1] + 1.0) / 2.0
        };
        uniform.chunks(i + j - 1).map(sample).collect()
    }

    #[test]
    fn one_component_is_the_fit_by_moments() {
        let samples = beta(1, 3, 6, 400);
        let fit = BetaMixture { components: 1, ..BetaMixture::default() }.fit(&samples).unwrap();
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n;
        let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let (a, b) = fit.parameters[0];
        assert!((fit.means[0] - mean).abs() < 1e-12);
        // The variance of Beta(a, b) is ab / ((a + b)^2 (a + b + 1)).
        assert!((a * b / ((a + b).powi(2) * (a + b + 1.0)) / (variance + 1e-10) - 1.0).abs() < 1e-10);
        assert!((a - 3.0).abs() < 0.6 && (b - 6.0).abs() < 1.2, "{a} {b}");
        assert_eq!((fit.weights.as_slice(), fit.iterations), (&[1.0][..], 2));
        // Mean log-likelihood of the density itself: B(a, b) by its integral, on a fine grid.
        let steps = 200_000;
        let density = |x: f64| x.powf(a - 1.0) * (1.0 - x).powf(b - 1.0);
        let integral: f64 = (0..steps).map(|i| density((f64::from(i) + 0.5) / f64::from(steps))).sum::<f64>()
            / f64::from(steps);
        let likelihood = samples.iter().map(|&x| (density(x) / integral).ln()).sum::<f64>() / n;
        assert!((fit.log_likelihood - likelihood).abs() < 1e-6, "{} {likelihood}", fit.log_likelihood);
    }

    #[test]
    fn separate_clusters_are_found_and_sorted() {
        // Beta(2, 30), Beta(30, 30), Beta(40, 3): means 1/16, 1/2, 40/43.
        let parts = [beta(1, 2, 30, 300), beta(2, 30, 30, 500), beta(3, 40, 3, 200)];
        let samples: Vec<f64> = parts.iter().flatten().copied().collect();
        let fit = BetaMixture::default().fit(&samples).unwrap();
        for (mean, expected) in fit.means.iter().zip([1.0 / 16.0, 0.5, 40.0 / 43.0]) {
            assert!((mean - expected).abs() < 0.02, "{:?}", fit.means);
        }
        for (weight, expected) in fit.weights.iter().zip([0.3, 0.5, 0.2]) {
            assert!((weight - expected).abs() < 0.02, "{:?}", fit.weights);
        }
        let truth = [[0; 300].as_slice(), &[1; 500], &[2; 200]].concat();
        let wrong = fit.assignment.iter().zip(&truth).filter(|(x, y)| x != y).count();
        assert!(wrong <= 10, "{wrong} of 1000");
        assert!(fit.iterations < 100);
    }

    #[test]
    fn the_variance_is_capped() {
        // Half at each end: variance nearly mean * (1 - mean), capped at a quarter of it, so a + b = 3 but for the 1e-10.
        let samples = [0.01, 0.99, 0.01, 0.99];
        let fit = BetaMixture { components: 1, ..BetaMixture::default() };
        let (a, b) = fit.fit(&samples).unwrap().parameters[0];
        let expected = (0.25 / (0.0625 + 1e-10) - 1.0) / 2.0;
        assert!((a - expected).abs() < 1e-12 && (b - expected).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn degenerate_data_give_finite_answers() {
        let tiny = f64::MIN_POSITIVE;
        let close = 1.0 - f64::EPSILON / 2.0;
        for samples in [
            vec![0.25; 10],
            vec![tiny; 5],
            vec![close; 5],
            vec![tiny, close, 0.5],
            vec![0.3, 0.3, 0.3, 0.7],
            vec![0.1, 0.2, 0.3],
        ] {
            let fit = BetaMixture::default().fit(&samples).unwrap();
            assert!(fit.log_likelihood.is_finite(), "{samples:?} {fit:?}");
            assert!(fit.means.iter().all(|m| (0.0..=1.0).contains(m)), "{samples:?} {fit:?}");
            assert!((fit.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{samples:?} {fit:?}");
            if samples == [0.25; 10] {
                assert!((fit.means[fit.assignment[0]] - 0.25).abs() < 1e-9, "{fit:?}");
            }
        }
    }

    #[test]
    fn more_starts_never_fit_worse_and_repeat() {
        let samples: Vec<f64> =
            (0..5).flat_map(|s| beta(s, 1 + 3 * s as usize, 14 - 3 * s as usize, 40)).collect();
        let with = |restarts, seed| {
            let mixture = BetaMixture { components: 5, restarts, seed, ..BetaMixture::default() };
            mixture.fit(&samples).unwrap()
        };
        assert_eq!(with(6, 3), with(6, 3));
        for seed in 0..5 {
            assert!(with(6, seed).log_likelihood >= with(1, seed).log_likelihood - 1e-12);
        }
        assert_eq!(with(1, 0), with(1, 1), "the first start needs no seed");
    }

    #[test]
    fn mistakes_are_named() {
        let fit = |mixture: BetaMixture, samples: &[f64]| mixture.fit(samples).unwrap_err();
        let default = BetaMixture::default();
        for bad in [0.0, 1.0, -0.1, f64::NAN] {
            let error = fit(default, &[0.5, 0.5, bad]);
            assert!(matches!(error, Error::InvalidOption { option: "sample of the Beta mixture", .. }));
        }
        assert!(matches!(fit(default, &[0.5, 0.5]), Error::TooFew { needed: 3, got: 2, .. }));
        let from = |assignment: &[usize]| default.fit_from(&[0.2, 0.5, 0.7], assignment).unwrap_err();
        assert!(matches!(from(&[0, 1]), Error::CountMismatch { expected: 3, got: 2, .. }));
        assert!(matches!(from(&[0, 3, 1]), Error::InvalidOption { option: "assignment of a sample", .. }));
        let none = BetaMixture { components: 0, ..default };
        assert!(matches!(fit(none, &[]), Error::InvalidOption { option: "BetaMixture::components", .. }));
    }

    proptest! {
        #[test]
        fn fits_are_proper(samples in proptest::collection::vec(0.0001..0.9999f64, 3..80)) {
            let fit = BetaMixture::default().fit(&samples).unwrap();
            prop_assert!(fit.log_likelihood.is_finite());
            prop_assert!(fit.means.windows(2).all(|w| w[0] <= w[1]));
            prop_assert!(fit.parameters.iter().all(|&(a, b)| a > 0.0 && b > 0.0 && (a + b).is_finite()));
            prop_assert!((fit.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(fit.assignment.iter().all(|&k| k < 3));
        }
    }
}
