//! DaWin: interpolation coefficients for each sample, from unlabelled data (ICLR 2025, arXiv 2410.03782).
//!
//! The more confident of two models gets the larger share. From the logits of the zero-shot and the fine-tuned model on
//! a batch or a whole test set:
//!
//! 1. [`entropies`] of both, with a temperature each (0.9576 and 0.9733 for CLIP ViT-B/32, 0.96 and 1.0066 for B/16,
//!    1.0767 and 0.9545 for L/14 in the authors' code, zero-shot first);
//! 2. [`coefficients`] `lambda` of the fine-tuned model, one per sample;
//! 3. evaluate every sample at `(1 - lambda) * theta0 + lambda * theta1`, by [`WiseFt`](super::WiseFt) with
//!    `alpha = lambda`; or, to merge only a few times, cluster the coefficients with a
//!    [`BetaMixture`](super::BetaMixture) and evaluate each cluster at its mean.

use rayon::prelude::*;

use crate::blocks::{at_least, check_count, check_len};
use crate::element::Slice;
use crate::error::{Error, Result};
use crate::rule::{above_zero, at_least_zero, check};

/// Correction of the coefficients for a general difference in confidence between the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Offset {
    /// None: `b = 0`.
    #[default]
    Plain,
    /// `b = (std(H0) / mean(H0) + std(H1) / mean(H1)) / 2` with unbiased standard deviations, weighed down by
    /// `bw = (mean(H0) + mean(H1)) / mean(H0)`.
    Adjusted,
}

/// The entropy of each sample's prediction, in nats, in `[0, ln(classes)]`: `H = -sum(p * ln(p))`,
/// `p = softmax(logits / temperature)`.
///
/// `logits` is `[samples, classes]`, row by row, in any element type; the arithmetic is in f64. A logit of minus
/// infinity is a class that is ruled out.
///
/// # Errors
///
/// [`Error::InvalidOption`] for a temperature that is not above 0 or for no classes, [`Error::LengthMismatch`] if the
/// logits are no whole number of rows, [`Error::NonFiniteValue`] for a row with a NaN, plus infinity, or no class left.
///
/// ```
/// use tpgm_core::weight_space::dawin::entropies;
/// let h = entropies((&[0.0f32, 0.0, 50.0, -50.0]).into(), 2, 1.0)?;
/// assert_eq!(h[0], 2f64.ln());
/// assert!(h[1] < 1e-40);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub fn entropies(logits: Slice<'_>, classes: usize, temperature: f64) -> Result<Vec<f64>> {
    above_zero("temperature", temperature)?;
    check("classes", classes as f64, "at least 1", |classes| classes >= 1.0)?;
    let samples = logits.len() / classes;
    check_len("logits", "array [samples, classes]", samples * classes, logits.len())?;
    let entropies: Vec<f64> = (0..samples)
        .into_par_iter()
        .with_min_len(64)
        .map(|sample| entropy(logits.sub(sample * classes..(sample + 1) * classes), temperature))
        .collect();
    match entropies.iter().position(|h| !h.is_finite()) {
        Some(sample) => Err(Error::NonFiniteValue { tensor: format!("logits[{sample}]"), what: "entropy" }),
        None => Ok(entropies),
    }
}

/// With `z` the scaled logits less their maximum and `s = sum(exp(z))`: `H = ln(s) - sum(z * exp(z)) / s`.
fn entropy(logits: Slice<'_>, temperature: f64) -> f64 {
    let logits = logits.to_f64();
    // `max` would drop a NaN; the sums below keep it.
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut weighted) = (0.0, 0.0);
    for logit in logits {
        let z = (logit - top) / temperature;
        if z > f64::NEG_INFINITY || z.is_nan() {
            let p = z.exp();
            sum += p;
            weighted += z * p;
        }
    }
    // Rounding may leave a certain prediction slightly below 0.
    let entropy = sum.ln() - weighted / sum;
    if entropy < 0.0 { 0.0 } else { entropy }
}

/// The share `lambda` of the fine-tuned model for each sample: `(e1 + b / bw) / (e0 + e1 + b)`, `e = exp(-H)`, from the
/// entropies of both models on the same samples. [`Offset`] says what `b` and `bw` are; plain, it is
/// `e1 / (e0 + e1)`. In `(0, 1)` up to rounding.
///
/// The adjusted form depends on which samples are given together.
///
/// # Errors
///
/// [`Error::CountMismatch`], [`Error::InvalidOption`] for an entropy that is negative, infinite or NaN; for the adjusted
/// form also [`Error::TooFew`] with fewer than 2 samples, and [`Error::InvalidOption`] if the entropies of a model are
/// all 0.
///
/// ```
/// use tpgm_core::weight_space::dawin::{Offset, coefficients};
/// let lambda = coefficients(&[0.0, 3f64.ln()], &[0.0, 0.0], Offset::Plain)?;
/// assert!((lambda[0] - 0.5).abs() < 1e-15 && (lambda[1] - 0.75).abs() < 1e-15);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub fn coefficients(zero_shot: &[f64], fine_tuned: &[f64], offset: Offset) -> Result<Vec<f64>> {
    check_count("entropies of the fine-tuned model", zero_shot.len(), fine_tuned.len())?;
    for &entropy in zero_shot.iter().chain(fine_tuned) {
        at_least_zero("entropy", entropy)?;
    }
    let (offset, weighed) = match offset {
        Offset::Plain => (0.0, 0.0),
        Offset::Adjusted => {
            let (mean0, variation0) = mean_and_variation("mean zero-shot entropy", zero_shot)?;
            let (mean1, variation1) = mean_and_variation("mean fine-tuned entropy", fine_tuned)?;
            let offset = (variation0 + variation1) / 2.0;
            (offset, offset / ((mean0 + mean1) / mean0))
        }
    };
    let coefficient = |(h0, h1): (&f64, &f64)| {
        let (e0, e1) = ((-h0).exp(), (-h1).exp());
        (e1 + weighed) / (e0 + e1 + offset)
    };
    Ok(zero_shot.iter().zip(fine_tuned).map(coefficient).collect())
}

/// Mean, and unbiased standard deviation over mean.
fn mean_and_variation(name: &'static str, values: &[f64]) -> Result<(f64, f64)> {
    at_least("samples for the offset adjustment", 2, values.len())?;
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    above_zero(name, mean)?;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    Ok((mean, (squares / (count - 1.0)).sqrt() / mean))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::{noise, on_any_pool};
    use crate::element::{Buffer, DType};

    #[test]
    fn entropies_follow_the_definition() {
        let (classes, samples, temperature) = (5, 300, 0.7);
        let values: Vec<f64> = noise(3, classes * samples).iter().map(|x| 6.0 * x).collect();
        for dtype in DType::ALL {
            let logits = Buffer::from_f64(dtype, &values);
            let got = on_any_pool(|| entropies(logits.as_slice(), classes, temperature).unwrap());
            assert_eq!(got.len(), samples);
            for (row, got) in logits.to_f64().chunks(classes).zip(got) {
                let total: f64 = row.iter().map(|z| (z / temperature).exp()).sum();
                let p = row.iter().map(|z| (z / temperature).exp() / total);
                let expected: f64 = p.map(|p| -p * p.ln()).sum();
                assert!((got - expected).abs() < 1e-13, "{dtype}: {got} {expected}");
            }
        }
    }

    #[test]
    fn extreme_logits() {
        let h = |logits: &[f32]| entropies(logits.into(), logits.len(), 1.0);
        assert_eq!(h(&[7.0]).unwrap(), [0.0]);
        assert_eq!(h(&[3e38, -3e38]).unwrap(), [0.0]);
        assert_eq!(h(&[1.0, f32::NEG_INFINITY, 1.0]).unwrap(), [2f64.ln()], "two classes are left");
        assert!((h(&[1e4; 1000]).unwrap()[0] - 1000f64.ln()).abs() < 1e-12);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(matches!(h(&[bad, 0.0]), Err(Error::NonFiniteValue { .. })), "{bad}");
            assert!(matches!(h(&[0.0, bad]), Err(Error::NonFiniteValue { .. })), "{bad}");
        }
        assert!(h(&[f32::NEG_INFINITY; 2]).is_err());
        let error = entropies((&[0.0f32, 1.0, 0.0, f32::NAN]).into(), 2, 1.0).unwrap_err();
        assert!(error.to_string().contains("logits[1]"), "{error}");
        assert_eq!(entropies((&[0.0f32; 0]).into(), 3, 1.0).unwrap(), Vec::<f64>::new());
        assert!(matches!(entropies((&[0.0f32; 4]).into(), 3, 1.0), Err(Error::LengthMismatch { .. })));
        assert!(matches!(entropies((&[0.0f32; 4]).into(), 0, 1.0), Err(Error::InvalidOption { .. })));
        assert!(matches!(entropies((&[0.0f32; 4]).into(), 2, 0.0), Err(Error::InvalidOption { .. })));
    }

    #[test]
    fn hand_computed_coefficients() {
        let ln = f64::ln;
        let plain = coefficients(&[ln(2.0), ln(4.0)], &[ln(2.0), ln(1.0)], Offset::Plain).unwrap();
        assert!((plain[0] - 0.5).abs() < 1e-15 && (plain[1] - 0.8).abs() < 1e-15, "{plain:?}");
        // H0 = 1, 3: mean 2, std sqrt 2. H1 = 0.5, 1.5: mean 1, std sqrt(1/2). b = sqrt(1/2), bw = 3/2.
        let adjusted = coefficients(&[1.0, 3.0], &[0.5, 1.5], Offset::Adjusted).unwrap();
        let b = 0.5f64.sqrt();
        for (i, (h0, h1)) in [(1.0f64, 0.5f64), (3.0, 1.5)].into_iter().enumerate() {
            let (e0, e1) = ((-h0).exp(), (-h1).exp());
            let expected = (e1 + b / 1.5) / (e0 + e1 + b);
            assert!((adjusted[i] - expected).abs() < 1e-15, "{} {expected}", adjusted[i]);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let run = |h0: &[f64], h1: &[f64]| coefficients(h0, h1, Offset::Adjusted).unwrap_err();
        assert!(matches!(run(&[1.0], &[1.0, 2.0]), Error::CountMismatch { expected: 1, got: 2, .. }));
        assert!(matches!(run(&[1.0, -0.1], &[1.0, 2.0]), Error::InvalidOption { option: "entropy", .. }));
        assert!(matches!(run(&[1.0], &[1.0]), Error::TooFew { needed: 2, .. }));
        let error = run(&[0.0, 0.0], &[1.0, 1.0]);
        assert!(error.to_string().contains("mean zero-shot entropy"), "{error}");
    }
}
