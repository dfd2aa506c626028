//! Statistics of repeated timings.

/// How long one round took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Seconds of the device's work; on the host, of the call.
    pub seconds: f64,
    /// Seconds that the host needed to queue it, where a device works by itself.
    pub host: Option<f64>,
}

/// Seconds of every round of one contestant, in order.
///
/// The machine is noisy and its speed drifts, so contestants are compared round by round ([`Samples::ratio_to`]) and
/// reported by their median.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the seconds of one round.
    pub fn push(&mut self, seconds: f64) {
        self.0.push(seconds);
    }

    /// Adds all rounds of another run of the same contestant.
    pub fn extend(&mut self, other: &Samples) {
        self.0.extend(&other.0);
    }

    /// Number of rounds.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without rounds.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Median; NaN without rounds.
    pub fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// Fastest round; NaN without rounds.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// Slowest round; NaN without rounds.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Distance between the quartiles: half of the rounds lie that close together. NaN without rounds.
    pub fn spread(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len().div_ceil(2);
        // Of an odd number, the middle one belongs to both halves (Tukey's hinges).
        median(sorted[sorted.len() - half..].to_vec()) - median(sorted[..half].to_vec())
    }

    /// Median over the rounds of this contestant's time divided by the other's in the same round.
    pub fn ratio_to(&self, other: &Samples) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => values[n / 2],
        _ => 0.5 * (values[n / 2 - 1] + values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_paired_ratios() {
        let samples = |values: &[f64]| Samples(values.to_vec());
        let a = samples(&[4.0, 1.0, 10.0]);
        assert_eq!((a.median(), a.min(), a.max()), (4.0, 1.0, 10.0));
        assert_eq!(samples(&[1.0, 4.0]).median(), 2.5);
        // Halves 1 2 3 and 3 7 9, then 1 2 and 4 9.
        assert_eq!(samples(&[9.0, 1.0, 3.0, 7.0, 2.0]).spread(), 5.0);
        assert_eq!(samples(&[9.0, 1.0, 4.0, 2.0]).spread(), 5.0);
        assert_eq!(samples(&[9.0]).spread(), 0.0);
        // Ratios per round are 1, 2, 2: their median is 2, although the ratio of the medians is 1.
        assert_eq!(a.ratio_to(&samples(&[4.0, 0.5, 5.0])), 2.0);
        assert!(Samples::default().median().is_nan());
        assert!(Samples::default().min().is_nan() && Samples::default().spread().is_nan());
    }
}
