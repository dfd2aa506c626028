//! SAFT: the entries worth training.

use rayon::prelude::*;

use crate::blocks::{
    BLOCK, CHUNK, accumulate, at_least, check_count, check_len, chunks_mut, load, ranges, widest, with_real,
};
use crate::element::{Buffer, Real, Slice};
use crate::error::{Error, Result};
use crate::params::{AnchorKind, ParamSet, TensorSpec};
use crate::rule::check;

use super::mask::{SaftMask, Trained};
use super::topk::{NanScore, Scores};

/// Sparse adaptation for fine-tuning (ECCV 2024, arXiv 2407.03036): only the entries with the largest gradient on the
/// fine-tuning data, before any training, are trained; all others are frozen.
///
/// How the paper ranks was not in the text we could read. Here: one pass over (part of) the training data at the
/// pre-trained weights adds up the gradients of all batches, and the `k = max(1, floor(fraction * N))` entries with the
/// largest absolute sum are selected among all N entries of all tensors together. Of equal sums the first in order of
/// tensors and elements is selected.
///
/// Tensors that are excluded or have no anchor (a new head) take no part: they are trained whole.
///
/// ```
/// use tpgm_core::sparse::{Saft, SaftScore, Trained};
/// use tpgm_core::{DType, ParamSet};
/// let set = ParamSet::builder().tensor("w", [3], DType::F32).tensor("b", [2], DType::F32).build()?;
/// let mut score = SaftScore::new(&set);
/// score.add(&[Some((&[1.0f32, -2.0, 0.0]).into()), Some((&[0.5f32, 4.0]).into())])?;
/// score.add(&[Some((&[1.0f32, -2.0, 0.5]).into()), Some((&[0.5f32, -4.0]).into())])?;
/// let mask = Saft { fraction: 0.4 }.select(&score)?;
/// assert_eq!(mask.tensors(), [Trained::Entries(vec![0, 1]), Trained::Entries(vec![])]);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Saft {
    /// Share of the entries that are trained, in `(0, 1]`. Default 0.001 (the paper).
    pub fraction: f64,
}

impl Default for Saft {
    fn default() -> Self {
        Self { fraction: 1e-3 }
    }
}

/// Adds up gradients at the pre-trained weights, one batch at a time. 4 bytes per selectable parameter, 8 for f64
/// tensors, while it lives.
#[derive(Debug, Clone)]
pub struct SaftScore {
    set: ParamSet,
    /// `None` for tensors that are trained whole.
    sums: Vec<Option<Buffer>>,
    batches: usize,
}

impl SaftScore {
    /// Sums of no gradients yet.
    pub fn new(set: &ParamSet) -> Self {
        let sum = |(spec, kind): (&TensorSpec, AnchorKind)| match kind {
            AnchorKind::None => None,
            _ => Some(Buffer::zeros(spec.dtype.compute(), spec.numel())),
        };
        Self {
            set: set.clone(),
            sums: set.tensors().iter().zip(set.anchors()).map(sum).collect(),
            batches: 0,
        }
    }

    /// Number of batches added.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// Adds the gradients of one batch, one per tensor in set order, of any element type. No gradient counts as zeros;
    /// gradients of tensors that are trained whole are ignored. Batches should be of one size.
    ///
    /// Reads the gradients twice and updates the sums once.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`], [`Error::LengthMismatch`] or [`Error::NonFiniteGradient`]; the sums are then as before.
    pub fn add(&mut self, grads: &[Option<Slice<'_>>]) -> Result<()> {
        check_count("gradients", self.set.len(), grads.len())?;
        let mut pairs = Vec::with_capacity(grads.len());
        for ((spec, sum), grad) in self.set.tensors().iter().zip(&mut self.sums).zip(grads) {
            if let (Some(sum), Some(grad)) = (sum, grad) {
                check_len(&spec.name, "gradient", spec.numel(), grad.len())?;
                pairs.push((spec, sum, *grad));
            }
        }
        let finite: Vec<bool> = pairs
            .par_iter()
            .map(|(_, sum, grad)| with_real!(sum.dtype(), T => is_finite::<T>(*grad)))
            .collect();
        if let Some(first) = finite.iter().position(|finite| !finite) {
            return Err(Error::NonFiniteGradient {
                tensor: pairs[first].0.name.clone(),
                count: finite.iter().filter(|finite| !**finite).count(),
            });
        }
        let jobs: Vec<_> = pairs
            .into_iter()
            .flat_map(|(_, sum, grad)| {
                chunks_mut(sum.as_mut()).map(move |(range, sum)| (sum, grad.sub(range)))
            })
            .collect();
        jobs.into_par_iter().for_each(|(sum, grad)| with_real!(sum.dtype(), T => accumulate::<T>(sum, grad)));
        self.batches += 1;
        Ok(())
    }
}

/// True if no element is infinite or NaN in the compute type.
fn is_finite<T: Real>(grad: Slice<'_>) -> bool {
    let chunks: Vec<_> = ranges(0..grad.len(), CHUNK).collect();
    chunks.into_par_iter().all(|chunk| {
        let mut scratch = [T::ZERO; BLOCK];
        ranges(chunk, BLOCK).all(|range| {
            let block = load(grad.sub(range), &mut scratch);
            block.iter().fold(true, |finite, x| finite & (*x * T::ZERO == T::ZERO))
        })
    })
}

impl Saft {
    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`].
    pub fn validate(&self) -> Result<()> {
        check("Saft::fraction", self.fraction, "above 0 and at most 1", |x| x > 0.0 && x <= 1.0)
    }

    /// Selects the entries to train. Reads the sums two or three times.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`]; [`Error::TooFew`] before the first batch, or if no tensor takes part;
    /// [`Error::NonFiniteValue`] for a sum that is NaN.
    pub fn select(&self, score: &SaftScore) -> Result<SaftMask> {
        self.validate()?;
        at_least("batches of gradients for SAFT", 1, score.batches)?;
        let sums: Vec<&Buffer> = score.sums.iter().flatten().collect();
        let dtype = widest(sums.iter().map(|sum| sum.dtype()));
        let chosen = with_real!(dtype, T => {
            let load = |t: usize, range, out: &mut [T]| T::load(sums[t].as_slice().sub(range), out);
            let scores = Scores::new(sums.iter().map(|sum| sum.len()), load);
            at_least("parameters that SAFT may train", 1, scores.total())?;
            let k = (self.fraction * scores.total() as f64) as usize;
            scores.largest(k.max(1)).map(|selection| scores.indices(&selection))
        });
        let chosen = chosen.map_err(|NanScore(position)| {
            let mut takes_part = score.set.tensors().iter().zip(&score.sums).filter(|(_, sum)| sum.is_some());
            Error::NonFiniteValue {
                tensor: takes_part.nth(position).map(|(spec, _)| spec.name.clone()).unwrap_or_default(),
                what: "sum of gradients",
            }
        })?;
        let mut chosen = chosen.into_iter();
        let trained = |sum: &Option<Buffer>| match sum {
            Some(_) => Trained::Entries(chosen.next().unwrap_or_default()),
            None => Trained::Whole,
        };
        SaftMask::new(&score.set, score.sums.iter().map(trained).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::{LENGTHS, noise, on_any_pool};
    use crate::element::DType;
    use crate::params::Group;

    fn score(set: &ParamSet, batches: &[Vec<Option<Buffer>>]) -> SaftScore {
        let mut score = SaftScore::new(set);
        for batch in batches {
            let grads: Vec<_> = batch.iter().map(|grad| grad.as_ref().map(Buffer::as_slice)).collect();
            score.add(&grads).unwrap();
        }
        score
    }

    #[test]
    fn the_largest_sums_of_all_tensors_are_selected() {
        // Tensors of every type and length; sums in f32, or f64 for f64, of three batches of gradients.
        for fraction in [1e-3, 0.3, 1.0] {
            let mut set = ParamSet::builder();
            for (i, len) in LENGTHS.into_iter().enumerate() {
                let dtype = DType::ALL[i % 4];
                set = set.tensor(format!("t{i}"), [len], dtype);
            }
            let set = set.build().unwrap();
            let grad = |seed: u64| {
                move |spec: &TensorSpec| {
                    // Coarse values, so that sums are exact and tie.
                    let values: Vec<f64> =
                        noise(seed, spec.numel()).iter().map(|x| (x * 20.0).round()).collect();
                    (spec.name != "t4" || seed > 1).then(|| Buffer::from_f64(spec.dtype, &values))
                }
            };
            let batches: Vec<Vec<_>> =
                (0..3).map(|seed| set.tensors().iter().map(grad(seed)).collect()).collect();
            let mask = on_any_pool(|| Saft { fraction }.select(&score(&set, &batches)).unwrap());

            let mut all = Vec::new();
            for (t, spec) in set.tensors().iter().enumerate() {
                for i in 0..spec.numel() {
                    let sum: f64 =
                        batches.iter().flat_map(|batch| &batch[t]).map(|g| g.as_slice().get(i)).sum();
                    all.push((sum.abs(), t, i as u64));
                }
            }
            all.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2).cmp(&(y.1, y.2))));
            all.truncate((fraction * set.numel() as f64) as usize);
            let mut expected = vec![Vec::new(); set.len()];
            all.iter().for_each(|&(_, t, i)| expected[t].push(i));
            expected.iter_mut().for_each(|indices| indices.sort_unstable());
            let expected: Vec<_> = expected.into_iter().map(Trained::Entries).collect();
            assert!(mask.tensors() == expected, "fraction {fraction}");
        }
    }

    #[test]
    fn heads_take_no_part_and_one_entry_is_always_selected() {
        let set = ParamSet::builder()
            .tensor("w", [2, 2], DType::F32)
            .tensor("head", [1], DType::F32)
            .tensor("frozen", [1], DType::F32)
            .group(Group::new("head").no_anchor())
            .group(Group::new("frozen").excluded())
            .build()
            .unwrap();
        let grads = [Some(vec![0.0f32, 0.0, -1e-9, 0.0].into()), Some(vec![f32::INFINITY].into()), None];
        let mask = Saft::default().select(&score(&set, &[grads.to_vec()])).unwrap();
        assert_eq!(mask.tensors(), [Trained::Entries(vec![2]), Trained::Whole, Trained::Whole]);
        let unseen = score(&set, &[vec![None, None, None]]);
        let mask = Saft { fraction: 0.5 }.select(&unseen).unwrap();
        assert_eq!(mask.tensors()[0], Trained::Entries(vec![0, 1]), "ties: the lowest indices");
    }

    #[test]
    fn mistakes_are_named_and_change_nothing() {
        let set =
            ParamSet::builder().tensor("a", [2], DType::F32).tensor("b", [1], DType::F64).build().unwrap();
        let mut score = SaftScore::new(&set);
        assert!(matches!(Saft::default().select(&score), Err(Error::TooFew { got: 0, .. })));
        score.add(&[Some((&[1.0f32, 2.0]).into()), None]).unwrap();
        let count = score.add(&[None]).unwrap_err();
        assert!(matches!(count, Error::CountMismatch { expected: 2, got: 1, .. }));
        let long = score.add(&[Some((&[1.0f32, 2.0]).into()), Some((&[1.0f32, 2.0]).into())]).unwrap_err();
        assert!(long.to_string().contains("`b`: its gradient has 2 elements"), "{long}");
        for bad in [f64::NAN, f64::INFINITY] {
            let error = score.add(&[Some((&[1.0f32, 2.0]).into()), Some((&[bad]).into())]).unwrap_err();
            assert_eq!(error, Error::NonFiniteGradient { tensor: "b".into(), count: 1 });
        }
        assert_eq!(score.batches(), 1);
        let sums: Vec<_> = score.sums.iter().flatten().map(Buffer::to_f64).collect();
        assert_eq!(sums, [vec![1.0, 2.0], vec![0.0]]);
        for fraction in [0.0, 1.1, f64::NAN] {
            assert!(
                matches!(Saft { fraction }.select(&score), Err(Error::InvalidOption { .. })),
                "{fraction}"
            );
        }
        let head = ParamSet::builder()
            .tensor("head", [2], DType::F32)
            .group(Group::new("head").no_anchor())
            .build()
            .unwrap();
        let mut score = SaftScore::new(&head);
        score.add(&[None]).unwrap();
        assert!(matches!(Saft::default().select(&score), Err(Error::TooFew { needed: 1, .. })));
    }
}
