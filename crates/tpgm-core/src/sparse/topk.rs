//! Exact selection of the entries with the largest magnitude.
//!
//! The bits of a magnitude, read as an integer, order as the magnitudes do, so the threshold is found by counting: a
//! histogram of the leading bits says which of their values the k-th largest magnitude has, and so on, until few enough
//! candidates are left to look at one by one. Counts are integers, and of equal magnitudes those with the lowest index
//! are taken (tensor after tensor), so the answer does not depend on the number of threads.
//!
//! Scores are computed block by block whenever they are needed. Temporaries: 64 KiB per task, and candidates for at most
//! 1/64 of the entries.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::{BLOCK, CHUNK, ranges};
use crate::element::Real;

/// Bits looked at in one pass.
const DIGIT: u32 = 12;

/// One candidate for so many entries may be held in memory.
const ENTRIES_PER_CANDIDATE: usize = 64;

/// Scores tested together for candidates, of which there are few.
const GROUP: usize = 16;

/// A number whose magnitude can be taken apart.
pub(crate) trait Magnitude: Real {
    /// Number of bits of a magnitude.
    const BITS: u32;
    /// The bits of infinity; NaNs have more.
    const INFINITE: u64;
    /// The bits of `|self|`.
    fn bits(self) -> u64;
    /// The magnitude with these bits.
    fn from_bits(bits: u64) -> Self;
}

macro_rules! magnitude {
    ($type:ident, $unsigned:ident) => {
        impl Magnitude for $type {
            const BITS: u32 = $unsigned::BITS - 1;
            const INFINITE: u64 = $type::INFINITY.to_bits() as u64;
            #[inline(always)]
            fn bits(self) -> u64 {
                self.abs().to_bits() as u64
            }
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                $type::from_bits(bits as $unsigned)
            }
        }
    };
}
magnitude!(f32, u32);
magnitude!(f64, u64);

/// Position of the first tensor with a score that is NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NanScore(pub(crate) usize);

/// Consecutive entries of one tensor: the unit of parallel work.
#[derive(Debug, Clone)]
struct Chunk {
    tensor: usize,
    entries: Range<usize>,
}

/// Tensors of given lengths whose entries have scores. `score(tensor, entries, out)` writes those of a block.
pub(crate) struct Scores<T, S> {
    chunks: Vec<Chunk>,
    tensors: usize,
    total: usize,
    score: S,
    real: PhantomData<fn() -> T>,
}

/// Which entries are the `k` with the largest magnitude: all above the threshold, and some at it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Selection {
    /// Exact for either compute type. NaN, which no magnitude reaches, selects nothing.
    threshold: f64,
    ties: Ties,
}

/// How many entries of exactly the threshold's magnitude are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ties {
    All,
    /// So many in each chunk, the first ones.
    PerChunk(Vec<usize>),
}

/// Says of the scores of one chunk, given in order, which are selected.
#[derive(Debug)]
pub(crate) struct Picker {
    threshold: f64,
    ties: usize,
}

impl Picker {
    /// Calls `f(i, selected)` for every score of a block.
    #[inline(always)]
    pub(crate) fn block<T: Magnitude>(&mut self, scores: &[T], mut f: impl FnMut(usize, bool)) {
        let threshold = T::from_f64(self.threshold);
        let at = count_at(scores, threshold);
        // Blocks with ties of which some are taken and some are not are rare; the others need no branches.
        if at == 0 || self.ties == 0 {
            for (i, score) in scores.iter().enumerate() {
                f(i, score.abs() > threshold);
            }
        } else if at <= self.ties {
            self.ties -= at;
            for (i, score) in scores.iter().enumerate() {
                f(i, score.abs() >= threshold);
            }
        } else {
            for (i, score) in scores.iter().enumerate() {
                let taken = score.abs() == threshold && self.ties > 0;
                self.ties -= usize::from(taken);
                f(i, taken || score.abs() > threshold);
            }
        }
    }
}

/// Number of scores of a block with this magnitude.
#[inline(always)]
fn count_at<T: Magnitude>(scores: &[T], magnitude: T) -> usize {
    // Counted in 32 bits, which a block cannot overflow: lanes as wide as an f32 score.
    let at = scores.iter().map(|score| u32::from(score.abs() == magnitude));
    at.sum::<u32>() as usize
}

impl Selection {
    /// The picker of a chunk of [`CHUNK`] entries, numbered through all tensors.
    pub(crate) fn picker(&self, chunk: usize) -> Picker {
        Picker {
            threshold: self.threshold,
            ties: match &self.ties {
                Ties::All => usize::MAX,
                Ties::PerChunk(ties) => ties[chunk],
            },
        }
    }
}

/// Magnitudes that share their leading bits: `lowest` with anything in the bits below `shift`.
#[derive(Debug, Clone, Copy)]
struct Candidates {
    lowest: u64,
    shift: u32,
}

impl Candidates {
    /// The least and the greatest of them. Infinity is the greatest number there is.
    fn bounds<T: Magnitude>(self) -> (T, T) {
        let greatest = self.lowest | ((1 << self.shift) - 1);
        (T::from_bits(self.lowest), T::from_bits(greatest.min(T::INFINITE)))
    }
}

impl<T: Magnitude, S: Fn(usize, Range<usize>, &mut [T]) + Sync> Scores<T, S> {
    /// Scores of tensors with these lengths.
    pub(crate) fn new(lens: impl IntoIterator<Item = usize>, score: S) -> Self {
        let (mut chunks, mut tensors, mut total) = (Vec::new(), 0, 0);
        for (tensor, len) in lens.into_iter().enumerate() {
            chunks.extend(ranges(0..len, CHUNK).map(|entries| Chunk { tensor, entries }));
            tensors += 1;
            total += len;
        }
        Self { chunks, tensors, total, score, real: PhantomData }
    }

    /// Number of entries.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Selects the `k` entries with the largest magnitude, all if there are not as many. Computes every score twice as a
    /// rule, once more if not all entries at the threshold fit, and once more for each further digit that is needed
    /// because very many scores are nearly equal.
    pub(crate) fn largest(&self, k: usize) -> Result<Selection, NanScore> {
        if k == 0 || k >= self.total {
            self.visit(|_, (): &mut ()| ())?;
            return Ok(Selection { threshold: if k == 0 { f64::NAN } else { 0.0 }, ties: Ties::All });
        }
        let (threshold, wanted, there) = self.threshold(k)?;
        let mut ties = Ties::All;
        if wanted < there {
            let mut counts = self.visit(|scores, count: &mut usize| {
                *count += count_at(scores, threshold);
            })?;
            let mut left = wanted;
            for count in &mut counts {
                *count = left.min(*count);
                left -= *count;
            }
            ties = Ties::PerChunk(counts);
        }
        Ok(Selection { threshold: threshold.to_f64(), ties })
    }

    /// The k-th largest magnitude, how many entries of exactly this magnitude are among the `k` largest, and how many
    /// there are. `k` is at least 1 and below the number of entries.
    fn threshold(&self, k: usize) -> Result<(T, usize, usize), NanScore> {
        let limit = CHUNK.max(self.total / ENTRIES_PER_CANDIDATE);
        let mut candidates = Candidates { lowest: 0, shift: T::BITS };
        // The `wanted` largest of the `there` candidates are among the k largest, and so are all entries above them.
        let (mut wanted, mut there) = (k, self.total);
        while candidates.shift > 0 {
            if there <= limit {
                let mut bits = self.collect(candidates)?;
                let (above, &mut nth, _) = bits.select_nth_unstable_by(wanted - 1, |x, y| y.cmp(x));
                wanted -= above.iter().filter(|&&bits| bits > nth).count();
                there = bits.iter().filter(|&&bits| bits == nth).count();
                return Ok((T::from_bits(nth), wanted, there));
            }
            let next = candidates.shift.saturating_sub(DIGIT);
            let counts = self.histogram(candidates, next)?;
            let mut digit = counts.len() - 1;
            while counts[digit] < wanted {
                wanted -= counts[digit];
                digit -= 1;
            }
            there = counts[digit];
            candidates = Candidates { lowest: candidates.lowest | ((digit as u64) << next), shift: next };
        }
        Ok((T::from_bits(candidates.lowest), wanted, there))
    }

    /// The selected entries of each tensor, in increasing order.
    pub(crate) fn indices(&self, selection: &Selection) -> Vec<Vec<u64>> {
        let chosen: Vec<Vec<u64>> = self
            .chunks
            .par_iter()
            .enumerate()
            .map(|(number, chunk)| {
                let mut picker = selection.picker(number);
                let mut chosen = Vec::new();
                self.blocks(chunk, |first, scores| {
                    picker.block(scores, |i, selected| {
                        if selected {
                            chosen.push((first + i) as u64);
                        }
                    });
                });
                chosen
            })
            .collect();
        let mut indices = vec![Vec::new(); self.tensors];
        for (chunk, chosen) in self.chunks.iter().zip(chosen) {
            indices[chunk.tensor].extend(chosen);
        }
        indices
    }

    /// The bits of all candidates.
    fn collect(&self, candidates: Candidates) -> Result<Vec<u64>, NanScore> {
        let (least, greatest) = candidates.bounds::<T>();
        let within = |score: &T| (score.abs() >= least) & (score.abs() <= greatest);
        let found = self.visit(|scores, found: &mut Vec<u64>| {
            for group in scores.chunks(GROUP) {
                if group.iter().fold(false, |any, score| any | within(score)) {
                    found.extend(group.iter().filter(|score| within(score)).map(|score| score.bits()));
                }
            }
        })?;
        Ok(found.concat())
    }

    /// How many candidates there are for each value of the digit from bit `next` to below their shift.
    fn histogram(&self, candidates: Candidates, next: u32) -> Result<Vec<usize>, NanScore> {
        let Candidates { lowest, shift } = candidates;
        let digits = 1usize << (shift - next);
        // Few histograms: they are larger than the chunks are worth.
        let group = self.chunks.len().div_ceil(2 * rayon::current_num_threads()).max(1);
        let groups: Vec<Result<Vec<usize>, NanScore>> = self
            .chunks
            .par_chunks(group)
            .map(|chunks| {
                // Neighbors count in separate histograms: near ones are often equal, and would wait for each other.
                let mut counts = vec![[0usize; 2]; digits];
                for chunk in chunks {
                    self.scores(chunk, |scores| {
                        for (i, score) in scores.iter().enumerate() {
                            let bits = score.bits() ^ lowest;
                            if bits >> shift == 0 {
                                counts[(bits >> next) as usize & (digits - 1)][i % 2] += 1;
                            }
                        }
                    })?;
                }
                Ok(counts.into_iter().map(|[even, odd]| even + odd).collect())
            })
            .collect();
        let mut total = vec![0; digits];
        for counts in groups {
            for (total, count) in total.iter_mut().zip(counts?) {
                *total += count;
            }
        }
        Ok(total)
    }

    /// Looks at all scores, block by block, and returns what `f` made of each chunk.
    fn visit<R: Default + Send>(&self, f: impl Fn(&[T], &mut R) + Sync) -> Result<Vec<R>, NanScore> {
        let results: Vec<Result<R, NanScore>> = self
            .chunks
            .par_iter()
            .map(|chunk| {
                let mut result = R::default();
                self.scores(chunk, |scores| f(scores, &mut result))?;
                Ok(result)
            })
            .collect();
        // One after the other, so that the first NaN is the one reported.
        results.into_iter().collect()
    }

    /// The scores of a chunk, block by block; an error if one is NaN.
    fn scores(&self, chunk: &Chunk, mut f: impl FnMut(&[T])) -> Result<(), NanScore> {
        let mut nan = false;
        self.blocks(chunk, |_, scores| {
            nan |= scores.iter().fold(false, |nan, score| nan | (score.bits() > T::INFINITE));
            f(scores);
        });
        if nan { Err(NanScore(chunk.tensor)) } else { Ok(()) }
    }

    /// The scores of a chunk, block by block, with the index of the first.
    fn blocks(&self, chunk: &Chunk, mut f: impl FnMut(usize, &[T])) {
        let mut scores = [T::ZERO; BLOCK];
        for range in ranges(chunk.entries.clone(), BLOCK) {
            let scores = &mut scores[..range.len()];
            (self.score)(chunk.tensor, range.clone(), scores);
            f(range.start, scores);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::{LENGTHS, noise, on_any_pool};
    use proptest::prelude::*;

    /// Sorts all entries by magnitude, largest first, then by position.
    fn brute<T: Magnitude>(tensors: &[Vec<T>], k: usize) -> Vec<Vec<u64>> {
        let mut all: Vec<(usize, usize)> = Vec::new();
        for (t, tensor) in tensors.iter().enumerate() {
            all.extend((0..tensor.len()).map(|i| (t, i)));
        }
        let size = |&(t, i): &(usize, usize)| tensors[t][i].abs();
        all.sort_by(|x, y| size(y).partial_cmp(&size(x)).unwrap().then(x.cmp(y)));
        let mut indices = vec![Vec::new(); tensors.len()];
        for &(t, i) in &all[..k.min(all.len())] {
            indices[t].push(i as u64);
        }
        indices.iter_mut().for_each(|indices| indices.sort_unstable());
        indices
    }

    fn selected<T: Magnitude>(tensors: &[Vec<T>], k: usize) -> Result<Vec<Vec<u64>>, NanScore> {
        let fill = |t: usize, range: Range<usize>, out: &mut [T]| out.copy_from_slice(&tensors[t][range]);
        let scores = Scores::new(tensors.iter().map(Vec::len), fill);
        assert_eq!(scores.total(), tensors.iter().map(Vec::len).sum::<usize>());
        let selection = scores.largest(k)?;
        Ok(scores.indices(&selection))
    }

    fn check<T: Magnitude>(tensors: &[Vec<T>], ks: &[usize]) {
        for &k in ks {
            let got = on_any_pool(|| selected(tensors, k).unwrap());
            assert!(
                got == brute(tensors, k),
                "k {k} of {:?}",
                tensors.iter().map(Vec::len).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn every_length_agrees_with_sorting() {
        for len in LENGTHS {
            let wide = noise(1, len);
            let ks = [0, 1, len / 20, len / 2, len.saturating_sub(1), len, len + 1];
            check(std::slice::from_ref(&wide), &ks);
            check(&[wide.iter().map(|x| *x as f32).collect::<Vec<f32>>()], &ks);
        }
    }

    #[test]
    fn ties_go_to_the_lowest_index_across_chunks_and_tensors() {
        for values in [1, 2, 5, 100] {
            // Few distinct magnitudes with both signs, both zeros among them.
            let tensors: Vec<Vec<f32>> = [CHUNK + 1, 0, 3, 2 * CHUNK + 17, 1]
                .iter()
                .zip(2..)
                .map(|(&len, seed)| {
                    noise(seed, len).iter().map(|x| (x * f64::from(values)) as i32 as f32).collect()
                })
                .collect();
            let total: usize = tensors.iter().map(Vec::len).sum();
            check(&tensors, &[1, 77, CHUNK, CHUNK + 2, total / 3, total - 5]);
            let wide: Vec<Vec<f64>> =
                tensors.iter().map(|tensor| tensor.iter().map(|x| f64::from(*x)).collect()).collect();
            check(&wide, &[1, total / 3, total - 5]);
        }
    }

    #[test]
    fn extreme_magnitudes_are_in_order() {
        let tensors = [
            vec![0.0f32, -0.0, f32::from_bits(1), -f32::MIN_POSITIVE, f32::MAX],
            vec![f32::NEG_INFINITY, 1.0, f32::INFINITY, -1.0 - f32::EPSILON],
        ];
        check(&tensors, &(0..=9).collect::<Vec<_>>());
        assert_eq!(selected(&tensors, 4).unwrap(), [vec![4], vec![0, 2, 3]]);
    }

    #[test]
    fn the_first_tensor_with_a_nan_is_named() {
        for len in [5, 3 * CHUNK] {
            let mut tensors = vec![noise(1, len), noise(2, len), noise(3, len)];
            tensors[2][0] = f64::NAN;
            tensors[1][len - 1] = -f64::NAN;
            for k in [0, 1, len, 3 * len] {
                assert_eq!(on_any_pool(|| selected(&tensors, k)), Err(NanScore(1)), "{k} of {len}");
            }
        }
    }

    /// A set as large as the histogram path wants it, made of a short pattern.
    fn tiled(pattern: &[f64], copies: usize) -> Vec<f64> {
        pattern.iter().copied().cycle().take(pattern.len() * copies).collect()
    }

    proptest! {
        #[test]
        fn small_sets_agree_with_sorting(
            tensors in proptest::collection::vec(proptest::collection::vec(-3i8..=3, 0..30), 1..5),
            share in 0.0..=1.0f64,
        ) {
            let tensors: Vec<Vec<f32>> =
                tensors.iter().map(|tensor| tensor.iter().map(|x| f32::from(*x)).collect()).collect();
            let total: usize = tensors.iter().map(Vec::len).sum();
            let k = (share * total as f64) as usize;
            prop_assert_eq!(selected(&tensors, k).unwrap(), brute(&tensors, k));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn large_sets_agree_with_sorting(
            pattern in proptest::collection::vec(-1e3..1e3f64, 1..400),
            share in 0.0..=1.0f64,
        ) {
            let tensors = [tiled(&pattern, 3 * CHUNK / pattern.len())];
            let k = (share * tensors[0].len() as f64) as usize;
            prop_assert!(selected(&tensors, k).unwrap() == brute(&tensors, k));
        }
    }
}
