//! Where several states of the weights have gone.

use super::eigen::eigen;
use crate::blocks::{at_least, check_len};
use crate::error::Result;
use crate::rule::above_zero;

/// How long [`slow_gradient`] makes a principal direction of the states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum SlowDirection {
    /// As long as the mean way that the states have gone: `U / |U| * |h|`. What the paper describes.
    #[default]
    Normalized,
    /// `|U| / U * |h|`, element by element, as the published code has it. The smallest elements become the largest, and an
    /// element of 0 infinite.
    Reciprocal,
}

/// The gradient of slow weights that follow fast ones (FSTTA, ICML 2024, arXiv 2311.13209), all weights as one vector: with
/// `h = sum_n q^(N-n) (slow - state_n) / sum_n q^(N-n)`, and `U_j` the principal directions of the slow weights and the `N`
/// states, of variances `v_j`, it is `sum_j v_j / |v| U_j`, each `U_j` of the length that [`SlowDirection`] says, and turned so
/// that `<h, U_j>` is not below 0.
///
/// `q` is the decay. Directions without variance are left out. Zero where nothing has moved. No matrix is larger than the
/// number of states, plus one.
///
/// # Errors
///
/// [`Error::TooFew`](crate::Error::TooFew) without states, [`Error::LengthMismatch`](crate::Error::LengthMismatch) (of the
/// tensor `state`), [`Error::InvalidOption`](crate::Error::InvalidOption) for a decay that is not above 0.
pub fn slow_gradient(
    slow: &[f64],
    states: &[Vec<f64>],
    decay: f64,
    direction: SlowDirection,
) -> Result<Vec<f64>> {
    let (n, len) = (states.len(), slow.len());
    above_zero("decay of the slow gradient", decay)?;
    at_least("states", 1, n)?;
    states.iter().try_for_each(|state| check_len("state", "value", len, state.len()))?;
    let shares: Vec<f64> = (0..n).map(|i| decay.powi((n - 1 - i) as i32)).collect();
    let all: f64 = shares.iter().sum();
    let mut way = vec![0.0; len];
    for (share, state) in shares.iter().zip(states) {
        for ((way, slow), state) in way.iter_mut().zip(slow).zip(state) {
            *way += share / all * (slow - state);
        }
    }
    let points: Vec<&[f64]> = std::iter::once(slow).chain(states.iter().map(Vec::as_slice)).collect();
    let mean = |i: usize| points.iter().map(|point| point[i]).sum::<f64>() / points.len() as f64;
    let mean: Vec<f64> = (0..len).map(mean).collect();
    let centered: Vec<Vec<f64>> =
        points.iter().map(|point| point.iter().zip(&mean).map(|(x, mean)| x - mean).collect()).collect();
    let scale = 1.0 / (len as f64 - 1.0).max(1.0);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let covariance = centered.iter().flat_map(|a| centered.iter().map(move |b| dot(a, b) * scale));
    let (values, vectors) = eigen(covariance.collect(), points.len());
    let largest = values.iter().copied().fold(0.0, f64::max);
    let length = dot(&way, &way).sqrt();
    let total = dot(&values, &values).sqrt();
    let mut gradient = vec![0.0; len];
    // One direction at least has none: the points are centered. What is left of it is rounding.
    let pairs = values.iter().zip(vectors.chunks_exact(points.len()));
    for (value, vector) in pairs.filter(|(value, _)| **value > 1e-13 * largest) {
        let mut axis = vec![0.0; len];
        for (weight, row) in vector.iter().zip(&centered) {
            axis.iter_mut().zip(row).for_each(|(axis, x)| *axis += weight * x);
        }
        let norm = dot(&axis, &axis).sqrt();
        for x in &mut axis {
            *x = length * if direction == SlowDirection::Normalized { *x / norm } else { norm / *x };
        }
        let turn = if dot(&way, &axis) > 0.0 { 1.0 } else { -1.0 };
        gradient.iter_mut().zip(&axis).for_each(|(sum, x)| *sum += turn * value / total * x);
    }
    Ok(gradient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::noise;

    #[test]
    fn is_as_long_as_the_way_and_along_it() {
        let (slow, states) = (noise(1, 10), vec![noise(2, 10), noise(3, 10), noise(4, 10)]);
        let shares = [0.01 / 1.11, 0.1 / 1.11, 1.0 / 1.11];
        let way = |i: usize| shares.iter().zip(&states).map(|(q, state)| q * (slow[i] - state[i])).sum();
        let way: Vec<f64> = (0..10).map(way).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let gradient = slow_gradient(&slow, &states, 0.1, SlowDirection::Normalized).unwrap();
        assert!(dot(&gradient, &way) > 0.0);
        // Directions are orthogonal and as long as the way, and their shares have length 1.
        assert!((dot(&gradient, &gradient) / dot(&way, &way) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_moves_where_nothing_moved_and_mistakes_are_named() {
        let gradient =
            |states: &[Vec<f64>], decay| slow_gradient(&[1.0, 2.0], states, decay, SlowDirection::Reciprocal);
        assert_eq!(gradient(&[vec![1.0, 2.0]], 0.1).unwrap(), [0.0, 0.0]);
        for (result, expected) in [
            (gradient(&[], 0.1), "states: at least 1 needed"),
            (gradient(&[vec![1.0]], 0.1), "`state`"),
            (gradient(&[vec![1.0, 2.0]], 0.0), "decay of the slow gradient"),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
