//! Dots and sums of gradients, in f64 and in a fixed order.

use rayon::prelude::*;

use crate::blocks::{BLOCK, CHUNK, chunks_mut, dot as dot_of, load, ranges, write};
use crate::element::{Real, Slice, SliceMut};

/// `sum a * b` over two tensors of one length.
pub(super) fn dot(a: Slice<'_>, b: Slice<'_>) -> f64 {
    let chunks: Vec<_> = ranges(0..a.len(), CHUNK).collect();
    let sums: Vec<f64> = chunks
        .into_par_iter()
        .map(|chunk| {
            let (mut left, mut right) = ([0.0f64; BLOCK], [0.0f64; BLOCK]);
            ranges(chunk, BLOCK)
                .map(|range| dot_of(load(a.sub(range.clone()), &mut left), load(b.sub(range), &mut right)))
                .sum()
        })
        .collect();
    sums.iter().sum()
}

/// `sum a * b` over all tensors that both have.
pub(super) fn dot_all(a: &[Option<Slice<'_>>], b: &[Option<Slice<'_>>]) -> f64 {
    a.iter().zip(b).filter_map(|(a, b)| Some(dot((*a)?, (*b)?))).sum()
}

/// `out = keep * out + sum_k factor_k * x_k`, each element in f64 and rounded once.
pub(super) fn combine(out: SliceMut<'_>, keep: f64, terms: &[(f64, Slice<'_>)]) {
    let chunks: Vec<_> = chunks_mut(out).collect();
    chunks.into_par_iter().for_each(|(chunk, mut out)| {
        let (mut scratch, mut values) = ([0.0f64; BLOCK], [0.0f64; BLOCK]);
        for range in ranges(0..out.len(), BLOCK) {
            let mut sums = [0.0f64; BLOCK];
            let sums = &mut sums[..range.len()];
            for (factor, x) in terms {
                let at = chunk.start + range.start..chunk.start + range.end;
                for (sum, x) in sums.iter_mut().zip(load(x.sub(at), &mut values)) {
                    *sum += factor * x;
                }
            }
            if keep != 0.0 {
                let block = out.as_slice().sub(range.clone());
                for (sum, x) in sums.iter_mut().zip(load(block, &mut values)) {
                    *sum += keep * x;
                }
            }
            write(&mut out, range, &mut scratch, |to: &mut [f64]| to.copy_from_slice(sums));
        }
    });
}

/// True if no element is infinite or NaN.
pub(super) fn is_finite(x: Slice<'_>) -> bool {
    let chunks: Vec<_> = ranges(0..x.len(), CHUNK).collect();
    chunks.into_par_iter().all(|chunk| {
        let mut scratch = [f64::ZERO; BLOCK];
        ranges(chunk, BLOCK).all(|range| {
            let block = load(x.sub(range), &mut scratch);
            block.iter().fold(true, |finite, x| finite & (x * 0.0 == 0.0))
        })
    })
}
