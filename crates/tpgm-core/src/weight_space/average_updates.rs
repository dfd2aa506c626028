//! One step from what several short trainings did.

use rayon::prelude::*;

use crate::blocks::{BLOCK, at_least, check_len, chunks_mut, ranges, widest, with_real, write};
use crate::element::{DType, Real, Slice, SliceMut};
use crate::error::Result;
use crate::rule::at_least_zero;

/// One tensor at the start and at the ends of M trainings, and where the average goes. All slices have as many elements;
/// their types may differ.
#[derive(Debug)]
pub struct UpdateEntry<'a> {
    /// Name of the tensor, for messages.
    pub name: &'a str,
    /// Its value where all trainings started.
    pub start: Slice<'a>,
    /// Its value where each of them ended.
    pub ends: Vec<Slice<'a>>,
    /// Where the result is written.
    pub out: SliceMut<'a>,
}

impl<'a> UpdateEntry<'a> {
    /// A tensor to average.
    pub fn new<E: Into<Slice<'a>>>(
        name: &'a str,
        start: impl Into<Slice<'a>>,
        ends: impl IntoIterator<Item = E>,
        out: impl Into<SliceMut<'a>>,
    ) -> Self {
        Self { name, start: start.into(), ends: ends.into_iter().map(Into::into).collect(), out: out.into() }
    }

    fn check(&self) -> Result<()> {
        at_least("ends of average_updates", 1, self.ends.len())?;
        let len = self.out.len();
        check_len(self.name, "value at the start", len, self.start.len())?;
        self.ends.iter().try_for_each(|end| check_len(self.name, "value at an end", len, end.len()))
    }

    fn compute(&self) -> DType {
        widest(self.ends.iter().map(Slice::dtype).chain([self.start.dtype(), self.out.dtype()]))
    }
}

/// A step of length `rate` along the mean of M updates: `out = start + rate * mean(end_m - start)`, computed as
/// `(1 - rate) * start + rate * mean(end_m)` with the mean in f64, so that rate 1 with a single end is that end, to the bit.
///
/// LOLSGD (arXiv 2311.01420) trains M times from the same weights by a few steps of SGD, each time on data without some of the
/// classes, and takes this step: what only some of the trainings change changes less, so classes that are missing from all data keep
/// more of what the pre-trained model knew of them. Formula recalled; M, the number of steps and the rate are the caller's.
///
/// Reads each operand once and writes the result once.
///
/// # Errors
///
/// [`Error::InvalidOption`](crate::Error::InvalidOption) for a rate below 0 or not finite, [`Error::TooFew`](crate::Error::TooFew)
/// for an entry without ends, [`Error::LengthMismatch`](crate::Error::LengthMismatch). Nothing is written then.
///
/// ```
/// use tpgm_core::weight_space::{UpdateEntry, average_updates};
/// let (start, ends) = ([1.0f32, 2.0], [[2.0f32, 2.0], [2.0, 0.0]]);
/// let mut out = [0.0f32; 2];
/// average_updates(&mut [UpdateEntry::new("w", &start, &ends, &mut out)], 0.5)?;
/// assert_eq!(out, [1.5, 1.5]);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
pub fn average_updates(entries: &mut [UpdateEntry<'_>], rate: f64) -> Result<()> {
    at_least_zero("rate of average_updates", rate)?;
    entries.iter().try_for_each(UpdateEntry::check)?;
    for entry in entries {
        let (compute, start, ends) = (entry.compute(), entry.start, &entry.ends);
        let chunks: Vec<_> = chunks_mut(entry.out.reborrow()).collect();
        chunks.into_par_iter().for_each(|(chunk, mut out)| {
            with_real!(compute, T => {
                let mut scratch = [T::ZERO; BLOCK];
                for range in ranges(0..out.len(), BLOCK) {
                    let at = chunk.start + range.start..chunk.start + range.end;
                    write(&mut out, range, &mut scratch, |out| average::<T>(start, ends, at, rate, out));
                }
            });
        });
    }
    Ok(())
}

fn average<T: Real>(
    start: Slice<'_>,
    ends: &[Slice<'_>],
    at: std::ops::Range<usize>,
    rate: f64,
    out: &mut [T],
) {
    let n = out.len();
    let (mut sums, mut values) = ([0.0f64; BLOCK], [T::ZERO; BLOCK]);
    for end in ends {
        T::load(end.sub(at.clone()), &mut values[..n]);
        for (sum, value) in sums.iter_mut().zip(&values[..n]) {
            *sum += value.to_f64();
        }
    }
    T::load(start.sub(at), &mut values[..n]);
    for ((out, sum), value) in out.iter_mut().zip(sums).zip(&values[..n]) {
        // Rate 1 keeps nothing of the start, whatever it is.
        let kept = if rate == 1.0 { 0.0 } else { (1.0 - rate) * value.to_f64() };
        *out = T::from_f64(kept + rate * (sum / ends.len() as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::{noise, on_any_pool};
    use crate::element::Buffer;
    use crate::error::Error;
    use crate::{Constraint, Cpu, Optimizer, ParamSet, Sgd, StepOptions, TensorIo};

    #[test]
    fn follows_the_formula_in_every_type() {
        let n = 3 * crate::blocks::CHUNK / 2 + 7;
        for dtype in DType::ALL {
            let buffer = |seed| Buffer::from_f64(dtype, &noise(seed, n));
            let (start, ends) = (buffer(1), [buffer(2), buffer(3), buffer(4)]);
            let got = on_any_pool(|| {
                let mut out = Buffer::zeros(DType::F64, n);
                let slices = ends.iter().map(Buffer::as_slice);
                average_updates(&mut [UpdateEntry::new("w", start.as_slice(), slices, out.as_mut())], 0.3)
                    .unwrap();
                out.to_f64()
            });
            let ends = ends.each_ref().map(|end| end.to_f64());
            for (i, (start, got)) in start.to_f64().iter().zip(&got).enumerate() {
                let mean = (ends[0][i] + ends[1][i] + ends[2][i]) / 3.0;
                assert!((start + 0.3 * (mean - start) - got).abs() < 1e-14, "{dtype} element {i}");
            }
        }
    }

    /// One training at rate 1 is that training: plain SGD, to the bit, however often the average is taken.
    #[test]
    fn one_end_at_rate_one_is_plain_sgd() {
        let set = ParamSet::builder().tensor("w", [97], DType::F32).build().unwrap();
        let target: Vec<f32> = noise(5, 97).iter().map(|&x| x as f32).collect();
        let train = |weight: &mut Vec<f32>, steps: usize| {
            let rule = Sgd { lr: 0.1, momentum: 0.0, ..Sgd::default() };
            let mut sgd = Optimizer::new(Cpu::new(), &set, rule, Constraint::None).unwrap();
            for _ in 0..steps {
                let grad: Vec<f32> = weight.iter().zip(&target).map(|(w, t)| w - t).collect();
                sgd.step(
                    &mut [TensorIo::new(weight.as_mut_slice()).grad(grad.as_slice())],
                    &StepOptions::default(),
                )
                .unwrap();
            }
        };
        let mut plain = vec![0.25f32; 97];
        let mut averaged = plain.clone();
        train(&mut plain, 12);
        for _ in 0..4 {
            let mut end = averaged.clone();
            train(&mut end, 3);
            let start = averaged.clone();
            let mut entry =
                [UpdateEntry::new("w", start.as_slice(), [end.as_slice()], averaged.as_mut_slice())];
            average_updates(&mut entry, 1.0).unwrap();
        }
        assert_eq!(averaged, plain);
    }

    #[test]
    fn mistakes_are_named() {
        let mut out = [0.0f32; 2];
        let mut run = |ends: &[&[f32]], rate| {
            average_updates(&mut [UpdateEntry::new("w", &[0.0f32; 2], ends.iter().copied(), &mut out)], rate)
                .unwrap_err()
        };
        assert!(matches!(run(&[], 0.5), Error::TooFew { needed: 1, .. }));
        assert!(run(&[&[1.0, 2.0], &[1.0]], 0.5).to_string().contains("`w`"));
        for rate in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(run(&[&[1.0, 2.0]], rate).to_string().contains("rate of average_updates"), "{rate}");
        }
        assert_eq!(out, [0.0; 2]);
    }
}
