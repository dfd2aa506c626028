//! Norms of the difference between two values of a tensor.

use std::ops::Range;

use rayon::prelude::*;
use tpgm_core::{Norm, Slice, rows_of};

/// Elements that are summed in one go; sums of longer rows are put together in order, so that the number of threads
/// changes nothing.
const BLOCK: usize = 1 << 14;

/// Sums over part of a tensor.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    /// Of squared differences.
    pub(super) squares: f64,
    /// Of the squares of the first value.
    pub(super) base: f64,
}

/// The norm of `b - a` of each row, or one L2 norm. Summed in f64.
pub(super) fn row_norms(norm: Norm, shape: &[usize], a: Slice<'_>, b: Slice<'_>) -> Vec<f64> {
    let (sums, rows) = measure(shape, a, b);
    match norm {
        Norm::L2 => vec![sums.squares.sqrt()],
        Norm::Mars => rows,
    }
}

/// The sums over the whole tensor, and the L1 norm of the difference of each row.
pub(super) fn measure(shape: &[usize], a: Slice<'_>, b: Slice<'_>) -> (Sums, Vec<f64>) {
    let (rows, len) = rows_of(shape);
    let mut norms = vec![0.0; rows];
    if rows * len == 0 {
        return (Sums::default(), norms);
    }
    let pieces: Vec<Range<usize>> =
        (0..a.len()).step_by(BLOCK).map(|start| start..(start + BLOCK).min(a.len())).collect();
    let parts: Vec<(Sums, Vec<f64>)> = pieces.par_iter().map(|piece| part(piece, len, a, b)).collect();
    let mut total = Sums::default();
    for (piece, (sums, rows)) in pieces.iter().zip(parts) {
        total.squares += sums.squares;
        total.base += sums.base;
        norms[piece.start / len..].iter_mut().zip(rows).for_each(|(norm, part)| *norm += part);
    }
    (total, norms)
}

/// The sums of a piece, and the part of each row that it touches.
fn part(piece: &Range<usize>, len: usize, a: Slice<'_>, b: Slice<'_>) -> (Sums, Vec<f64>) {
    let (a, b) = (a.sub(piece.clone()).to_f64(), b.sub(piece.clone()).to_f64());
    let (mut sums, mut rows) = (Sums::default(), Vec::new());
    let mut start = 0;
    while start < a.len() {
        let end = (start + len - (piece.start + start) % len).min(a.len());
        let mut norm = 0.0;
        for (a, b) in a[start..end].iter().zip(&b[start..end]) {
            let difference = b - a;
            norm += difference.abs();
            sums.squares += difference * difference;
            sums.base += a * a;
        }
        rows.push(norm);
        start = end;
    }
    (sums, rows)
}
