//! A second gradient beside the first.

use super::linear::{combine, dot_all};
use super::{Follow, GradientTransform, Grads, check, reads};
use crate::element::{Buffer, Slice};
use crate::error::{Error, Result};
use crate::params::ParamSet;
use crate::rule::{at_least_zero, check as check_option};

/// When [`OrthogonalPart`] takes the common part away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Conflict {
    /// Always, of the second gradient alone: `a + b - <a, b> / (|a| + eps)^2 a` (GradMF).
    #[default]
    Untested,
    /// Only if `<a, b> < 0`, and of both: `a - <a, b> / (|b| + eps)^2 b + b - <a, b> / (|a| + eps)^2 a`; else `a + b` (PCGrad with two
    /// tasks).
    Tested,
}

/// Adds a second gradient, of another loss, without its part along the first: with all tensors as one vector,
/// `a + b - <a, b> / (|a| + eps)^2 a`.
///
/// GradMF (ICASSP 2024): `a` is the gradient of the source's loss and `b` of the target's, both of the same model; without a
/// test for conflict, so the part of `b` that agrees with `a` goes too. With [`Conflict::Tested`] it is PCGrad (arXiv 2001.06782),
/// whose code has no `eps`: set it to 0.
///
/// Every tensor with a gradient of one loss needs one of the other; zeros are enough. The second gradient is given before each step
/// and kept until then: 4 bytes per parameter.
///
/// ```
/// use tpgm_core::gradient::{GradientTransform, OrthogonalPart};
/// use tpgm_core::{DType, ParamSet};
/// let set = ParamSet::builder().tensor("w", [2], DType::F64).build()?;
/// let mut transform = OrthogonalPart::new(&set);
/// transform.second(&[Some((&[-1.0f64, 1.0]).into())])?;
/// let mut first = [2.0f64, 0.0];
/// transform.apply(&mut [Some((&mut first).into())])?;
/// assert!((first[0] - 2.0).abs() < 1e-4 && first[1] == 1.0);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct OrthogonalPart {
    set: ParamSet,
    conflict: Conflict,
    eps: f64,
    rounds: usize,
    second: Option<Vec<Option<Buffer>>>,
}

impl OrthogonalPart {
    /// As GradMF's code: untested, `eps` 1e-5, one round.
    pub fn new(set: &ParamSet) -> Self {
        Self { set: set.clone(), conflict: Conflict::Untested, eps: 1e-5, rounds: 1, second: None }
    }

    /// Sets when the common part goes.
    #[must_use]
    pub fn conflict(mut self, conflict: Conflict) -> Self {
        self.conflict = conflict;
        self
    }

    /// Sets what is added to a norm that is divided by. Default 1e-5.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] unless it is at least 0 and finite.
    pub fn eps(mut self, eps: f64) -> Result<Self> {
        at_least_zero("OrthogonalPart::eps", eps)?;
        self.eps = eps;
        Ok(self)
    }

    /// Sets how often the second gradient is added, each time to the result of the time before. Default 1, at least 1.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`].
    pub fn rounds(mut self, rounds: usize) -> Result<Self> {
        check_option("OrthogonalPart::rounds", rounds as f64, "at least 1", |rounds| rounds >= 1.0)?;
        self.rounds = rounds;
        Ok(self)
    }

    /// Gives the second gradient of the next step, one slice per tensor in set order.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`], [`Error::LengthMismatch`], [`Error::NonFiniteGradient`]; the one given before stays then.
    pub fn second(&mut self, grads: &[Option<Slice<'_>>]) -> Result<()> {
        check(&self.set, grads)?;
        let copy = |slice: &Slice<'_>| {
            let mut buffer = Buffer::zeros(slice.dtype(), slice.len());
            combine(buffer.as_mut(), 0.0, &[(1.0, *slice)]);
            buffer
        };
        self.second = Some(grads.iter().map(|grad| grad.as_ref().map(copy)).collect());
        Ok(())
    }

    /// The shares of the first and of the second gradient in the result of all rounds. The result is always such a combination, and
    /// its products follow from those of the two.
    fn shares(&self, aa: f64, ab: f64, bb: f64) -> (f64, f64) {
        let (mut first, mut second) = (1.0, 0.0);
        let over = |dot: f64, square: f64| match square.sqrt() + self.eps {
            0.0 => 0.0,
            norm => dot / (norm * norm),
        };
        for _ in 0..self.rounds {
            let square = first * first * aa + 2.0 * first * second * ab + second * second * bb;
            let dot = first * ab + second * bb;
            match self.conflict {
                Conflict::Tested if dot >= 0.0 => second += 1.0,
                Conflict::Tested => {
                    let kept = 1.0 - over(dot, square);
                    (first, second) = (kept * first, kept * second + 1.0 - over(dot, bb));
                }
                Conflict::Untested => {
                    let kept = 1.0 - over(dot, square);
                    (first, second) = (kept * first, kept * second + 1.0);
                }
            }
        }
        (first, second)
    }
}

impl GradientTransform for OrthogonalPart {
    fn apply(&mut self, grads: Grads<'_, '_>) -> Result<Follow> {
        let Some(given) = &self.second else {
            let problem = "without a second gradient: give one by `second` before each step";
            return Err(Error::OutOfOrder { call: "OrthogonalPart::apply", problem });
        };
        let first = reads(grads);
        check(&self.set, &first)?;
        let second: Vec<_> = given.iter().map(|grad| grad.as_ref().map(Buffer::as_slice)).collect();
        for ((spec, a), b) in self.set.tensors().iter().zip(&first).zip(&second) {
            if a.is_some() != b.is_some() {
                let missing = if a.is_some() { "second loss" } else { "first loss" };
                return Err(Error::OneSided { tensor: spec.name.clone(), what: "gradient", missing });
            }
        }
        let (a, b) =
            self.shares(dot_all(&first, &first), dot_all(&first, &second), dot_all(&second, &second));
        for (grad, second) in grads.iter_mut().zip(&second) {
            if let (Some(grad), Some(second)) = (grad, second) {
                combine(grad.reborrow(), a, &[(b, *second)]);
            }
        }
        self.second = None;
        Ok(Follow::Step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::noise;
    use crate::element::DType;

    fn set() -> ParamSet {
        ParamSet::builder().tensor("a", [3], DType::F64).tensor("b", [2, 2], DType::F64).build().unwrap()
    }

    /// Both tensors as one vector, by the formula.
    fn brute_force(mut a: Vec<f64>, b: &[f64], eps: f64, rounds: usize, tested: bool) -> Vec<f64> {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let over =
            |dot: f64, x: f64| if x.sqrt() + eps == 0.0 { 0.0 } else { dot / (x.sqrt() + eps).powi(2) };
        for _ in 0..rounds {
            let ab = dot(&a, b);
            let (of_a, of_b) = match (tested, ab < 0.0) {
                (true, false) => (0.0, 0.0),
                (true, true) => (over(ab, dot(&a, &a)), over(ab, dot(b, b))),
                (false, _) => (over(ab, dot(&a, &a)), 0.0),
            };
            a = a.iter().zip(b).map(|(a, b)| a + b - of_a * a - of_b * b).collect();
        }
        a
    }

    #[test]
    fn all_tensors_are_one_vector() {
        for (seed, eps, rounds, tested) in
            [(1, 1e-5, 1, false), (2, 0.3, 4, false), (3, 0.0, 1, true), (4, 0.0, 1, true), (5, 0.1, 3, true)]
        {
            let (a, b) = (noise(seed, 7), noise(seed + 100, 7));
            for b in [b.clone(), b.iter().map(|x| -x).collect(), vec![0.0; 7]] {
                let conflict = if tested { Conflict::Tested } else { Conflict::Untested };
                let mut transform =
                    OrthogonalPart::new(&set()).conflict(conflict).eps(eps).unwrap().rounds(rounds).unwrap();
                transform.second(&[Some(b[..3].into()), Some(b[3..].into())]).unwrap();
                let mut got = a.clone();
                let (head, tail) = got.split_at_mut(3);
                transform.apply(&mut [Some(head.into()), Some(tail.into())]).unwrap();
                for (got, expected) in got.iter().zip(brute_force(a.clone(), &b, eps, rounds, tested)) {
                    assert!(
                        (got - expected).abs() < 1e-12 * expected.abs().max(1.0),
                        "{seed}: {got} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn after_pcgrad_neither_loss_is_worked_against() {
        let (a, b) = ([1.0, 0.0, 0.5], [-1.0, 0.4, 0.0]);
        let set = ParamSet::builder().tensor("a", [3], DType::F64).build().unwrap();
        let mut transform = OrthogonalPart::new(&set).conflict(Conflict::Tested).eps(0.0).unwrap();
        transform.second(&[Some((&b).into())]).unwrap();
        let mut got = a;
        transform.apply(&mut [Some((&mut got).into())]).unwrap();
        let dot = |x: &[f64; 3]| x.iter().zip(&got).map(|(x, y)| x * y).sum::<f64>();
        assert!(dot(&a) > 0.0 && dot(&b) > 0.0, "{} {}", dot(&a), dot(&b));
    }

    #[test]
    fn mistakes_are_named() {
        let mut transform = OrthogonalPart::new(&set());
        let (mut a, mut b) = ([1.0; 3], [1.0; 4]);
        let error = transform.apply(&mut [Some((&mut a).into()), Some((&mut b).into())]).unwrap_err();
        assert!(error.to_string().contains("second"), "{error}");
        transform.second(&[Some((&[1.0; 3]).into()), None]).unwrap();
        let error = transform.apply(&mut [Some((&mut a).into()), Some((&mut b).into())]).unwrap_err();
        let expected = Error::OneSided { tensor: "b".into(), what: "gradient", missing: "second loss" };
        assert_eq!(error, expected);
        assert_eq!((a, b), ([1.0; 3], [1.0; 4]));
        let error = transform.second(&[Some((&[f64::NAN; 3]).into()), None]);
        assert!(matches!(error, Err(Error::NonFiniteGradient { .. })));
        assert!(OrthogonalPart::new(&set()).eps(-1.0).is_err());
        assert!(OrthogonalPart::new(&set()).rounds(0).is_err());
    }
}
