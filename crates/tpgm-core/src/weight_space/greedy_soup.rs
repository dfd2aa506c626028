//! The average of those fine-tuned models that help.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::blocks::{at_least, chunks_mut, copy};
use crate::element::{Buffer, Slice};
use crate::error::{Error, Result};
use crate::params::TensorSpec;

use super::uniform_soup::{UniformSoup, check_model};

/// A model that may enter a greedy soup.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Its tensors, in set order.
    pub weights: Vec<Slice<'a>>,
    /// Its held-out score, if known; higher is better. Without it the model is evaluated.
    pub score: Option<f64>,
}

impl<'a> Candidate<'a> {
    /// A model whose score is not known yet.
    pub fn new(weights: Vec<Slice<'a>>) -> Self {
        Self { weights, score: None }
    }

    /// Sets the held-out score, higher is better, measured exactly as the soup's evaluation measures it.
    #[must_use]
    pub fn score(mut self, score: f64) -> Self {
        self.score = Some(score);
        self
    }
}

/// What [`greedy_soup`] cooked.
#[derive(Debug, Clone, PartialEq)]
pub struct GreedySoup {
    /// The mean of the kept models, in the element types of the set.
    pub weights: Vec<Buffer>,
    /// Positions of the kept models among the candidates, in the order in which they were kept: best first.
    pub members: Vec<usize>,
    /// Held-out score of the soup.
    pub score: f64,
    /// Held-out scores of the candidates on their own, in the order given.
    pub candidate_scores: Vec<f64>,
}

/// Averages the models that help (greedy soup, ICML 2022, arXiv 2203.05482).
///
/// The candidates are tried from the best held-out score to the worst; of equal scores the one given first is tried
/// first. The best one is always kept. Another one is kept if the mean of the kept models and it scores no worse than
/// the mean without it.
///
/// `evaluate` gets the tensors in set order, in the element types of the set, and returns a score of which higher is
/// better (negate a loss). The held-out data must be neither training nor test data. It runs once for every candidate
/// without a score, and once for every candidate but the best. In memory, beside the candidates: one model and one sum
/// in the compute type.
///
/// # Errors
///
/// [`Error::TooFew`] without candidates, [`Error::CountMismatch`], [`Error::LengthMismatch`], [`Error::InvalidOption`]
/// for a score that is NaN, or whatever `evaluate` returns.
///
/// ```
/// use tpgm_core::weight_space::{Candidate, greedy_soup};
/// use tpgm_core::{Buffer, DType, Error, ParamSet};
/// let set = ParamSet::builder().tensor("w", [1], DType::F32).build()?;
/// let candidates = [&[0.0f32], &[4.0], &[1.5]].map(|w| Candidate::new(vec![w.into()]));
/// // the best weight is 1
/// let closeness = |weights: &[Buffer]| Ok::<_, Error>(-(weights[0].to_f64()[0] - 1.0).abs());
/// let soup = greedy_soup(set.tensors(), &candidates, closeness)?;
/// assert_eq!((soup.members, soup.score), (vec![2, 0], -0.25)); // (1.5 + 0) / 2; 4 makes it worse
/// # Ok::<(), Error>(())
/// ```
pub fn greedy_soup<E: From<Error>>(
    specs: &[TensorSpec],
    candidates: &[Candidate<'_>],
    mut evaluate: impl FnMut(&[Buffer]) -> Result<f64, E>,
) -> Result<GreedySoup, E> {
    at_least("candidates for the soup", 1, candidates.len())?;
    for candidate in candidates {
        check_model(specs, &candidate.weights)?;
    }
    let mut soup = UniformSoup::new(specs);
    let mut trial: Vec<Buffer> = specs.iter().map(|spec| Buffer::zeros(spec.dtype, spec.numel())).collect();
    let mut scores = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        scores.push(number(match candidate.score {
            Some(score) => score,
            None => {
                fill(&mut trial, &candidate.weights);
                evaluate(&trial)?
            }
        })?);
    }
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    // A stable sort; scores are not NaN.
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap_or(Ordering::Equal));

    let mut members = Vec::new();
    let mut best = f64::NEG_INFINITY;
    for index in order {
        let weights = &candidates[index].weights;
        let score = if members.is_empty() {
            scores[index]
        } else {
            soup.mean(Some(weights), trial.iter_mut().map(Buffer::as_mut));
            number(evaluate(&trial)?)?
        };
        if score >= best {
            soup.add(weights)?;
            members.push(index);
            best = score;
        }
    }
    soup.mean(None, trial.iter_mut().map(Buffer::as_mut));
    Ok(GreedySoup { weights: trial, members, score: best, candidate_scores: scores })
}

fn fill(dst: &mut [Buffer], src: &[Slice<'_>]) {
    let jobs: Vec<_> = dst
        .iter_mut()
        .zip(src)
        .flat_map(|(dst, src)| chunks_mut(dst.as_mut()).map(|(range, dst)| (dst, src.sub(range))))
        .collect();
    jobs.into_par_iter().for_each(|(dst, src)| copy(dst, src));
}

fn number(score: f64) -> Result<f64> {
    if score.is_nan() {
        return Err(Error::InvalidOption { option: "held-out score", value: score, requirement: "a number" });
    }
    Ok(score)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::noise;
    use crate::element::DType;
    use crate::params::ParamSet;

    fn one_number(dtype: DType) -> ParamSet {
        ParamSet::builder().tensor("w", [1], dtype).build().unwrap()
    }

    /// Brute force: sort, then try each mean computed from scratch.
    fn plain_greedy(models: &[f64], score: impl Fn(f64) -> f64) -> (Vec<usize>, f64) {
        let mut order: Vec<usize> = (0..models.len()).collect();
        order.sort_by(|&a, &b| score(models[b]).partial_cmp(&score(models[a])).unwrap().then(a.cmp(&b)));
        let mut members = vec![order[0]];
        let mut best = score(models[order[0]]);
        for &index in &order[1..] {
            let sum: f64 = members.iter().map(|&m| models[m]).sum::<f64>() + models[index];
            let trial = score(sum / (members.len() + 1) as f64);
            if trial >= best {
                members.push(index);
                best = trial;
            }
        }
        (members, best)
    }

    #[test]
    fn greedy_follows_brute_force_with_ties() {
        let set = one_number(DType::F64);
        for seed in 0..50 {
            // Multiples of 1/4, so that scores tie and sums are exact.
            let models: Vec<f64> = noise(seed, 7).iter().map(|x| (x * 8.0).round() / 4.0).collect();
            let score = |x: f64| -(x.abs() * 2.0).round();
            let values: Vec<[f64; 1]> = models.iter().map(|&x| [x]).collect();
            let candidates: Vec<_> = values.iter().map(|x| Candidate::new(vec![x.into()])).collect();
            let evaluate = |weights: &[Buffer]| Ok::<_, Error>(score(weights[0].to_f64()[0]));
            let soup = greedy_soup(set.tensors(), &candidates, evaluate).unwrap();
            let (members, best) = plain_greedy(&models, score);
            assert_eq!((&soup.members, soup.score), (&members, best), "{models:?}");
            let mean = members.iter().map(|&m| models[m]).sum::<f64>() / members.len() as f64;
            assert_eq!(soup.weights, [Buffer::F64(vec![mean])]);
            assert_eq!(soup.candidate_scores, models.iter().map(|&x| score(x)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn known_scores_are_not_measured_again() {
        let set = ParamSet::builder().tensor("w", [1], DType::BF16).build().unwrap();
        let candidates = [
            Candidate::new(vec![(&[3.0f32]).into()]).score(0.1),
            Candidate::new(vec![(&[1.0f32]).into()]).score(0.9),
        ];
        let mut seen = Vec::new();
        let soup = greedy_soup(set.tensors(), &candidates, |weights| {
            assert_eq!(weights[0].dtype(), DType::BF16);
            seen.push(weights[0].to_f64()[0]);
            Ok::<_, Error>(0.8)
        });
        let soup = soup.unwrap();
        assert_eq!(seen, [2.0], "only the mean of both");
        assert_eq!((soup.members, soup.score), (vec![1], 0.9));
        assert_eq!(soup.weights[0].to_f64(), [1.0]);
    }

    #[test]
    fn greedy_mistakes_are_named() {
        let set = one_number(DType::F32);
        let run = |candidates: &[Candidate<'_>], score: Result<f64, Error>| {
            greedy_soup(set.tensors(), candidates, |_| score.clone()).unwrap_err()
        };
        assert!(matches!(run(&[], Ok(1.0)), Error::TooFew { needed: 1, .. }));
        let one = Candidate::new(vec![(&[1.0f32]).into()]);
        assert!(matches!(run(std::slice::from_ref(&one), Ok(f64::NAN)), Error::InvalidOption { .. }));
        assert!(matches!(run(&[one.clone().score(f64::NAN)], Ok(1.0)), Error::InvalidOption { .. }));
        let own = Error::UnknownTensor { tensor: "mine".into() };
        assert_eq!(run(&[one], Err(own.clone())), own, "the caller's own error comes back");
        assert!(matches!(run(&[Candidate::new(vec![])], Ok(1.0)), Error::CountMismatch { .. }));
    }
}
