//! Values that are not numbers.

use rayon::prelude::*;
use tpgm_core::Slice;

/// Elements that are looked at in one go.
const BLOCK: usize = 1 << 14;

/// How many elements are infinite or NaN.
pub fn non_finite(values: Slice<'_>) -> usize {
    let starts: Vec<usize> = (0..values.len()).step_by(BLOCK).collect();
    let count = |start: usize| {
        let piece = values.sub(start..(start + BLOCK).min(values.len()));
        piece.to_f64().into_iter().filter(|x| !x.is_finite()).count()
    };
    starts.into_par_iter().map(count).sum()
}
