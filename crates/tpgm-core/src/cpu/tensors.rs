//! Work tensor by tensor, several at a time.

use std::ops::Range;

use super::advance::PieceNorms;
use super::measure::PieceSums;
use crate::plan::Plan;
use crate::scalars::TensorScalars;

/// What belongs to one tensor alone, of some tensors that follow each other.
pub(super) struct Own<'a> {
    /// One each.
    pub(super) scalars: &'a mut [TensorScalars],
    /// One per piece.
    pub(super) sums: &'a mut [PieceSums],
    /// One per piece.
    pub(super) norms: &'a mut [PieceNorms],
}

impl<'a> Own<'a> {
    fn split(self, tensors: usize, pieces: usize) -> (Own<'a>, Own<'a>) {
        let (scalars, other_scalars) = self.scalars.split_at_mut(tensors);
        let (sums, other_sums) = self.sums.split_at_mut(pieces);
        let (norms, other_norms) = self.norms.split_at_mut(pieces);
        let first = Own { scalars, sums, norms };
        (first, Own { scalars: other_scalars, sums: other_sums, norms: other_norms })
    }
}

/// Tensors with no more elements than this in all are not worth being shared out.
const FEW: usize = crate::plan::CHUNK;

/// Calls `work` for each tensor of `range` with what it owns, on rayon's current pool. Everything that one tensor needs
/// happens in one call, so that a later pass finds in a cache what an earlier one has read; `work` may share out its own
/// pieces.
pub(super) fn each(plan: &Plan, range: Range<usize>, own: Own<'_>, work: &(impl Fn(usize, Own<'_>) + Sync)) {
    match range.len() {
        0 => return,
        1 => return work(range.start, own),
        _ => {}
    }
    let middle = range.start + range.len() / 2;
    let first_piece = |t: usize| plan.tensors[t].pieces.start;
    let (left, right) = own.split(middle - range.start, first_piece(middle) - first_piece(range.start));
    let few = plan.tensors[range.clone()].iter().map(|tensor| tensor.numel).sum::<usize>() <= FEW;
    let first = || each(plan, range.start..middle, left, work);
    let second = || each(plan, middle..range.end, right, work);
    if few {
        first();
        second();
    } else {
        rayon::join(first, second);
    }
}
