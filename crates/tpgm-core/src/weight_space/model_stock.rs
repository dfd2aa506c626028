//! Model Stock: an average pulled towards the anchor.

use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::{
    BLOCK, CHUNK, at_least, check_len, copy, dot, load, ranges, split_mut, sub_mut, widest, with_real, write,
};
use crate::element::{DType, Real, Slice, SliceMut};
use crate::error::{Error, Result};
use crate::norm::rows_of;

/// The least product of two displacement norms that a cosine is divided by.
const NORM_FLOOR: f64 = 1e-6;

/// What gets a coefficient of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum StockUnit {
    /// Each tensor.
    #[default]
    Tensor,
    /// Each row of each tensor, one index of dimension 0: a filter of a convolution, an output of a linear layer. 0-D and 1-D
    /// tensors are one row. The paper says "filter" and means this as far as we can tell; mergekit's `filter_wise` takes each vector
    /// along the *last* dimension instead, which is the same for tensors of one and two dimensions and another merge for kernels of
    /// convolutions. To get that one, hand in a shape with all dimensions but the last in one: `[numel / last, last]`.
    Row,
}

/// What happens to coefficients outside `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum StockRange {
    /// They are clamped: models that disagree (`c <= 0`) give the anchor.
    #[default]
    Clamped,
    /// The formula as it stands: `t < 0` for `c < 0`, and without bound towards `c = -1 / (N - 1)`.
    Raw,
}

/// Model Stock (ECCV 2024, arXiv 2403.19522): `w = t * mean(w_i) + (1 - t) * w0`, with `t` from the angles between the
/// displacements `u_i = w_i - w0` of N models from their anchor.
///
/// `c` is the mean over all pairs of `cos(u_i, u_j)`, and `t = N * c / (1 + (N - 1) * c)`. In a cosine, the product of
/// the two norms counts as at least 1e-6 and the result is limited to `[-1, 1]`, as in the implementation in common
/// use; so models that did not move give `c = 0`, and the anchor. Dots and norms are summed in f64.
///
/// ```
/// use tpgm_core::weight_space::{ModelStock, StockEntry};
/// let (anchor, first, second) = ([0.0f32, 0.0], [3.0f32, 4.0], [4.0f32, 3.0]);
/// let mut merged = [0.0f32; 2];
/// let entry = StockEntry::new("w", &[2], &anchor, [&first, &second], &mut merged);
/// let t = ModelStock::default().merge(&mut [entry])?[0][0];
/// assert!((t - 2.0 * 0.96 / 1.96).abs() < 1e-15); // cos = 24 / 25
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct ModelStock {
    /// One coefficient per tensor (default) or per row.
    pub unit: StockUnit,
    /// Coefficients clamped to `[0, 1]` (default) or raw.
    pub range: StockRange,
}

/// One tensor of the anchor and of N models, and where its merge goes.
///
/// All slices have as many elements as the shape; their element types may differ. Except for the f64 sums, the
/// arithmetic is in f64 if one of them is f64, else in f32.
#[derive(Debug)]
pub struct StockEntry<'a> {
    /// Name of the tensor, for messages.
    pub name: &'a str,
    /// Its shape, which says where the rows are.
    pub shape: &'a [usize],
    /// Its pre-trained value.
    pub anchor: Slice<'a>,
    /// Its value in each model.
    pub models: Vec<Slice<'a>>,
    /// Where the result is written.
    pub out: SliceMut<'a>,
}

impl<'a> StockEntry<'a> {
    /// A tensor to merge.
    pub fn new<M: Into<Slice<'a>>>(
        name: &'a str,
        shape: &'a [usize],
        anchor: impl Into<Slice<'a>>,
        models: impl IntoIterator<Item = M>,
        out: impl Into<SliceMut<'a>>,
    ) -> Self {
        Self {
            name,
            shape,
            anchor: anchor.into(),
            models: models.into_iter().map(Into::into).collect(),
            out: out.into(),
        }
    }

    fn check(&self) -> Result<()> {
        at_least("models of Model Stock", 2, self.models.len())?;
        let len = self.shape.iter().product();
        check_len(self.name, "anchor", len, self.anchor.len())?;
        check_len(self.name, "destination", len, self.out.len())?;
        self.models.iter().try_for_each(|model| check_len(self.name, "value in a model", len, model.len()))
    }

    fn compute(&self) -> DType {
        let models = self.models.iter().map(Slice::dtype);
        widest(models.chain([self.anchor.dtype(), self.out.dtype()]))
    }
}

/// Elements of one tensor that one thread works on: whole units, or part of one unit that is longer than a chunk.
struct Piece {
    tensor: usize,
    units: Range<usize>,
    elements: Range<usize>,
}

/// The pieces of a tensor of `units` units of `unit_len` elements.
fn pieces(tensor: usize, units: usize, unit_len: usize) -> Vec<Piece> {
    let whole = (CHUNK / unit_len.max(1)).max(1);
    let groups = ranges(0..units, whole);
    groups
        .flat_map(|group| {
            let elements = group.start * unit_len..group.end * unit_len;
            // A group of several units is at most a chunk long, and so is one piece.
            ranges(elements, CHUNK).map(move |elements| Piece { tensor, units: group.clone(), elements })
        })
        .collect()
}

impl Piece {
    /// The part of each unit that lies in this piece: `(unit, elements)`.
    fn parts(&self, unit_len: usize) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        self.units.clone().map(move |unit| {
            let (start, end) = (unit * unit_len, (unit + 1) * unit_len);
            (unit, start.max(self.elements.start)..end.min(self.elements.end))
        })
    }
}

impl ModelStock {
    /// Writes the merge of every tensor and returns the coefficients `t`: for each entry one, or one per row.
    ///
    /// Each operand is read twice and the result written once. Beside the coefficients, `N * (N + 1) / 2` sums per unit
    /// are allocated. Any number of tensors may be given at a time.
    ///
    /// # Errors
    ///
    /// [`Error::TooFew`] with fewer than 2 models, [`Error::LengthMismatch`], or [`Error::NonFiniteValue`] for a
    /// displacement or a raw coefficient that is infinite or NaN. Nothing is written then.
    pub fn merge(&self, entries: &mut [StockEntry<'_>]) -> Result<Vec<Vec<f64>>> {
        entries.iter().try_for_each(StockEntry::check)?;
        let layout: Vec<(usize, usize)> = entries
            .iter()
            .map(|entry| match self.unit {
                StockUnit::Tensor => (1, entry.anchor.len()),
                StockUnit::Row => rows_of(entry.shape),
            })
            .collect();
        let pieces: Vec<Piece> = layout
            .iter()
            .enumerate()
            .flat_map(|(tensor, &(units, unit_len))| pieces(tensor, units, unit_len))
            .collect();
        let coefficients = self.coefficients(entries, &layout, &pieces)?;

        let mut jobs = Vec::with_capacity(pieces.len());
        let mut rest = pieces.as_slice();
        for (tensor, entry) in entries.iter_mut().enumerate() {
            let (own, others) = rest.split_at(rest.partition_point(|piece| piece.tensor == tensor));
            let compute = entry.compute();
            let parts = split_mut(entry.out.reborrow(), own.iter().map(|piece| piece.elements.len()));
            let (anchor, models) = (entry.anchor, entry.models.as_slice());
            jobs.extend(own.iter().zip(parts).map(|(piece, out)| (piece, compute, anchor, models, out)));
            rest = others;
        }
        jobs.into_par_iter().for_each(|(piece, compute, anchor, models, mut out)| {
            for (unit, elements) in piece.parts(layout[piece.tensor].1) {
                let t = coefficients[piece.tensor][unit];
                let local = elements.start - piece.elements.start..elements.end - piece.elements.start;
                let models: Vec<_> = models.iter().map(|model| model.sub(elements.clone())).collect();
                let anchor = anchor.sub(elements);
                with_real!(compute, T => blend::<T>(&mut out, local, t, anchor, &models));
            }
        });
        Ok(coefficients)
    }

    /// `t` of every unit of every tensor.
    fn coefficients(
        &self,
        entries: &[StockEntry<'_>],
        layout: &[(usize, usize)],
        pieces: &[Piece],
    ) -> Result<Vec<Vec<f64>>> {
        let partial: Vec<Vec<f64>> = pieces
            .par_iter()
            .map(|piece| {
                let entry = &entries[piece.tensor];
                with_real!(entry.compute(), T => gram::<T>(entry, piece, layout[piece.tensor].1))
            })
            .collect();
        let mut sums: Vec<Vec<f64>> = entries
            .iter()
            .zip(layout)
            .map(|(entry, (units, _))| vec![0.0; units * pairs(entry.models.len())])
            .collect();
        for (piece, partial) in pieces.iter().zip(partial) {
            let first = piece.units.start * pairs(entries[piece.tensor].models.len());
            for (sum, part) in sums[piece.tensor][first..].iter_mut().zip(partial) {
                *sum += part;
            }
        }
        let coefficient = |entry: &StockEntry<'_>, gram: &[f64]| {
            if gram.iter().any(|dot| !dot.is_finite()) {
                return Err(not_finite(entry, "displacement"));
            }
            let t = self.coefficient(entry.models.len(), gram);
            if t.is_finite() { Ok(t) } else { Err(not_finite(entry, "raw Model Stock coefficient")) }
        };
        entries
            .iter()
            .zip(&sums)
            .map(|(entry, sums)| {
                let units = sums.chunks_exact(pairs(entry.models.len()));
                units.map(|gram| coefficient(entry, gram)).collect()
            })
            .collect()
    }

    /// `t` from the dots of `n` displacements, `(0, 0), (0, 1), ... (0, n - 1), (1, 1), ...`.
    fn coefficient(&self, n: usize, gram: &[f64]) -> f64 {
        // The first dot of row i of the triangle is <u_i, u_i>.
        let mut diagonal = 0;
        let norms: Vec<f64> = (0..n)
            .map(|i| {
                let norm = gram[diagonal].sqrt();
                diagonal += n - i;
                norm
            })
            .collect();
        let mut dots = gram.iter();
        let mut cosines = 0.0;
        for i in 0..n {
            for (j, dot) in (i..n).zip(&mut dots) {
                if j > i {
                    cosines += (dot / (norms[i] * norms[j]).max(NORM_FLOOR)).clamp(-1.0, 1.0);
                }
            }
        }
        let n = n as f64;
        let c = cosines / (n * (n - 1.0) / 2.0);
        let t = n * c / (1.0 + (n - 1.0) * c);
        match self.range {
            StockRange::Raw => t,
            // Below -1 / (n - 1), which the norm floor can lead to, the formula turns positive again.
            StockRange::Clamped if c <= 0.0 => 0.0,
            StockRange::Clamped => t.min(1.0),
        }
    }
}

/// Number of pairs of `n` models, each with itself included.
fn pairs(n: usize) -> usize {
    n * (n + 1) / 2
}

fn not_finite(entry: &StockEntry<'_>, what: &'static str) -> Error {
    Error::NonFiniteValue { tensor: entry.name.to_owned(), what }
}

/// The dots of all pairs of displacements, for every unit of the piece: one pass over the anchor and all models.
fn gram<T: Real>(entry: &StockEntry<'_>, piece: &Piece, unit_len: usize) -> Vec<f64> {
    let n = entry.models.len();
    let mut sums = vec![0.0; piece.units.len() * pairs(n)];
    let mut displacements = vec![[T::ZERO; BLOCK]; n];
    let mut scratch = [T::ZERO; BLOCK];
    for ((_, elements), sums) in piece.parts(unit_len).zip(sums.chunks_exact_mut(pairs(n))) {
        for range in ranges(elements, BLOCK) {
            let anchor = load(entry.anchor.sub(range.clone()), &mut scratch);
            for (displacement, model) in displacements.iter_mut().zip(&entry.models) {
                let displacement = &mut displacement[..range.len()];
                T::load(model.sub(range.clone()), displacement);
                for (d, anchor) in displacement.iter_mut().zip(anchor) {
                    *d = *d - *anchor;
                }
            }
            let mut sums = sums.iter_mut();
            for (i, first) in displacements.iter().enumerate() {
                for (second, sum) in displacements[i..].iter().zip(&mut sums) {
                    *sum += dot(&first[..range.len()], &second[..range.len()]);
                }
            }
        }
    }
    sums
}

/// `out[local] = t * mean(models) + (1 - t) * anchor`.
fn blend<T: Real>(
    out: &mut SliceMut<'_>,
    local: Range<usize>,
    t: f64,
    anchor: Slice<'_>,
    models: &[Slice<'_>],
) {
    if t == 0.0 {
        return copy(sub_mut(out, local), anchor);
    }
    let (share, rest) = (T::from_f64(t), T::from_f64(1.0 - t));
    let count = T::from_f64(models.len() as f64);
    let [mut first, mut second, mut result] = [[T::ZERO; BLOCK]; 3];
    for range in ranges(0..anchor.len(), BLOCK) {
        let mean = &mut first[..range.len()];
        mean.fill(T::ZERO);
        for model in models {
            for (mean, x) in mean.iter_mut().zip(load(model.sub(range.clone()), &mut second)) {
                *mean += *x;
            }
        }
        let anchor = load(anchor.sub(range.clone()), &mut second);
        let target = local.start + range.start..local.start + range.end;
        write(out, target, &mut result, |out| {
            for ((out, sum), anchor) in out.iter_mut().zip(&*mean).zip(anchor) {
                *out = share * (*sum / count) + rest * *anchor;
            }
        });
    }
}

#[cfg(test)]
mod tests;
