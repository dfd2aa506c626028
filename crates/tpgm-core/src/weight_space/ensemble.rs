//! Predictions of several models, mixed.

use crate::blocks::{at_least, check_count, check_len};
use crate::element::Slice;
use crate::error::Result;
use crate::rule::check;

/// How far rows of probabilities and shares may be from adding up to 1: bf16 leaves two digits.
const SUM_TOLERANCE: f64 = 0.02;

/// The weighted mean of the probabilities that several predictors give: `p = sum_k weights_k * p_k`.
///
/// Each of `probabilities` is `[samples, classes]`, row by row, in any element type; the arithmetic is in f64. What is mixed are
/// probabilities, not logits: the mean of two softmaxes is not the softmax of the mean. With two heads over the same features this
/// is DRM at inference (arXiv 2411.19757; `beta` 0.5 of the head of class names, the rest of the head of concept descriptions);
/// with several models it is an output ensemble (arXiv 2403.17592).
///
/// # Errors
///
/// [`Error::TooFew`](crate::Error::TooFew) without predictors, [`Error::CountMismatch`](crate::Error::CountMismatch) for another number of weights,
/// [`Error::LengthMismatch`](crate::Error::LengthMismatch) for lengths that differ or are no whole number of rows,
/// [`Error::InvalidOption`](crate::Error::InvalidOption) for a weight or a probability outside `[0, 1]`, for weights that do not add up to 1,
/// and for a row that does not (logits, for example).
///
/// ```
/// use tpgm_core::weight_space::ensemble;
/// let p = ensemble(&[(&[0.9f32, 0.1]).into(), (&[0.5f32, 0.5]).into()], 2, &[0.75, 0.25])?;
/// assert!((p[0] - 0.8).abs() < 1e-7 && (p[1] - 0.2).abs() < 1e-7);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub fn ensemble(probabilities: &[Slice<'_>], classes: usize, weights: &[f64]) -> Result<Vec<f64>> {
    at_least("predictors of an ensemble", 1, probabilities.len())?;
    check_count("weights of an ensemble", probabilities.len(), weights.len())?;
    check("classes", classes as f64, "at least 1", |classes| classes >= 1.0)?;
    let unit = |x: f64| (0.0..=1.0).contains(&x);
    for &weight in weights {
        check("weight of an ensemble", weight, "in [0, 1]", unit)?;
    }
    check("sum of the weights of an ensemble", weights.iter().sum(), "1", |sum| (sum - 1.0).abs() < 1e-6)?;
    let len = probabilities[0].len();
    check_len("probabilities", "array [samples, classes]", len / classes * classes, len)?;
    let mut mixed = vec![0.0; len];
    for (of, &weight) in probabilities.iter().zip(weights) {
        check_len("probabilities", "array of another predictor", len, of.len())?;
        let values = of.to_f64();
        for row in values.chunks_exact(classes) {
            for &p in row {
                check("probability", p, "in [0, 1]; are these logits?", |p| {
                    (0.0..=1.0 + SUM_TOLERANCE).contains(&p)
                })?;
            }
            let sum = row.iter().sum();
            check("sum of a row of probabilities", sum, "1; are these logits?", |sum| {
                (sum - 1.0).abs() <= SUM_TOLERANCE
            })?;
        }
        mixed.iter_mut().zip(values).for_each(|(mixed, p)| *mixed += weight * p);
    }
    Ok(mixed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{Buffer, DType};
    use crate::error::Error;

    #[test]
    fn hand_computed_mixtures_in_every_type() {
        let (first, second) = ([0.5, 0.25, 0.25, 1.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.25, 0.25, 0.5]);
        for dtype in DType::ALL {
            let [first, second] = [first, second].map(|p| Buffer::from_f64(dtype, &p));
            let p = ensemble(&[first.as_slice(), second.as_slice()], 3, &[0.25, 0.75]).unwrap();
            assert_eq!(p, [0.125, 0.4375, 0.4375, 0.4375, 0.1875, 0.375]);
            let alone = ensemble(&[first.as_slice(), second.as_slice()], 3, &[0.0, 1.0]).unwrap();
            assert_eq!(alone, second.to_f64());
        }
    }

    #[test]
    fn mistakes_are_named() {
        let good: &[f64] = &[0.5, 0.5];
        let run = |p: &[&[f64]], classes, weights: &[f64]| {
            let slices: Vec<Slice<'_>> = p.iter().map(|p| (*p).into()).collect();
            ensemble(&slices, classes, weights).unwrap_err()
        };
        assert!(matches!(run(&[], 2, &[]), Error::TooFew { .. }));
        assert!(matches!(run(&[good], 2, &[0.5, 0.5]), Error::CountMismatch { expected: 1, got: 2, .. }));
        assert!(matches!(run(&[good], 0, &[1.0]), Error::InvalidOption { option: "classes", .. }));
        assert!(matches!(run(&[good], 3, &[1.0]), Error::LengthMismatch { .. }));
        assert!(matches!(run(&[good, &[1.0; 4]], 2, &[0.5, 0.5]), Error::LengthMismatch { .. }));
        for weights in [[1.5, -0.5], [f64::NAN, 0.5]] {
            let error = run(&[good, good], 2, &weights);
            assert!(matches!(error, Error::InvalidOption { option: "weight of an ensemble", .. }), "{error}");
        }
        let error = run(&[good, good], 2, &[0.5, 0.4]);
        assert!(matches!(error, Error::InvalidOption { option: "sum of the weights of an ensemble", .. }));
        for logits in [[3.0, -2.0], [0.9, 0.9], [f64::NAN, 0.5]] {
            assert!(run(&[&logits], 2, &[1.0]).to_string().contains("logits"), "{logits:?}");
        }
    }
}
