//! How the work of a set is laid out: pieces, spans and the queue.

use tpgm_core::plan::Plan;
use tpgm_core::{Constraint, Settings};

use crate::tables::{Item, Piece, Span, Tensor, item};

/// Pieces that a block measures before it adds up over its threads.
const SPAN: usize = 4;
/// Pieces of whole rows in one item of a second pass, which seldom has anything to do with them.
const PULL: usize = 16;

/// Everything that follows from a plan and from what applies to its tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) spans: Vec<Span>,
    /// The queue of a step or a projection.
    pub(crate) moves: Vec<Item>,
    /// The queue of a write.
    pub(crate) writes: Vec<Item>,
}

impl Layout {
    /// `dtypes` are those of the weights; `lag` elements are advanced between a tensor's first and second pass.
    pub(crate) fn new(plan: &Plan, settings: &[Settings], dtypes: &[u32], lag: usize) -> Self {
        let all = plan.tensors.iter().map(|tensor| tensor.numel).sum();
        let mut spans = Vec::new();
        let mut tensors = Vec::with_capacity(plan.tensors.len());
        for (t, tensor) in plan.tensors.iter().enumerate() {
            let first_span = spans.len();
            for start in tensor.pieces.clone().step_by(SPAN) {
                let pieces = SPAN.min(tensor.pieces.end - start);
                spans.push(Span {
                    tensor: t as u32,
                    first_piece: start as u32,
                    pieces: pieces as u32,
                    pad: 0,
                });
            }
            tensors.push(Tensor {
                numel: tensor.numel as u64,
                units: tensor.units as u64,
                unit_len: tensor.unit_len as u64,
                parts: tensor.parts as u64,
                first_unit: tensor.first_unit as u64,
                first_part: tensor.first_part as u64,
                dtype: dtypes[t],
                pieces: tensor.pieces.len() as u32,
                first_span: first_span as u32,
                spans: (spans.len() - first_span) as u32,
                settings: crate::tables::Settings::new(&settings[t], tensor.numel, all),
            });
        }
        let piece = |piece: &tpgm_core::plan::Piece| Piece {
            start: piece.start as u64,
            end: piece.end as u64,
            unit: piece.unit as u64,
            part: piece.part as u64,
            tensor: piece.tensor as u32,
            units: piece.units as u32,
        };
        Self {
            tensors,
            pieces: plan.pieces.iter().map(piece).collect(),
            spans,
            moves: moves(plan, settings, lag),
            writes: writes(plan, settings),
        }
    }
}

/// All pieces in order; the second pass of a tensor follows once `lag` elements of others have been queued.
fn moves(plan: &Plan, settings: &[Settings], lag: usize) -> Vec<Item> {
    let mut queue = Vec::new();
    // Tensors that wait for their second pass, with the elements queued when their first one was complete.
    let mut waiting = std::collections::VecDeque::new();
    let mut elements = 0;
    for (t, tensor) in plan.tensors.iter().enumerate() {
        for piece in tensor.pieces.clone() {
            queue.push(Item { kind: item::ADVANCE, tensor: t as u32, first_piece: piece as u32, pieces: 1 });
            elements += plan.pieces[piece].end - plan.pieces[piece].start;
            while let Some(&(first, at)) = waiting.front()
                && elements - at >= lag
            {
                pull(plan, first, &mut queue);
                waiting.pop_front();
            }
        }
        let constraint = &settings[t].constraint;
        let cut = tensor.parts > 1 && constraint.norm().is_some();
        if cut || matches!(constraint, Constraint::Tpgm(_)) {
            waiting.push_back((t, elements));
        }
    }
    waiting.iter().for_each(|&(t, _)| pull(plan, t, &mut queue));
    queue
}

/// The second pass of a tensor, last pieces first: what was touched last is still in the cache.
fn pull(plan: &Plan, t: usize, queue: &mut Vec<Item>) {
    let tensor = &plan.tensors[t];
    let at_once = if tensor.parts > 1 { 1 } else { PULL };
    for start in tensor.pieces.clone().step_by(at_once).rev() {
        let pieces = at_once.min(tensor.pieces.end - start);
        queue.push(Item {
            kind: item::PULL,
            tensor: t as u32,
            first_piece: start as u32,
            pieces: pieces as u32,
        });
    }
}

/// First the radii of all tensors that TPGM constrains, then their pieces.
fn writes(plan: &Plan, settings: &[Settings]) -> Vec<Item> {
    let learned =
        |t: &usize| matches!(settings[*t].constraint, Constraint::Tpgm(_)) && plan.tensors[*t].units > 0;
    let radius = |t| Item { kind: item::SETTLE, tensor: t as u32, first_piece: 0, pieces: 0 };
    let mut queue: Vec<Item> = (0..settings.len()).filter(learned).map(radius).collect();
    for t in (0..settings.len()).filter(learned) {
        for piece in plan.tensors[t].pieces.clone() {
            queue.push(Item { kind: item::PULL, tensor: t as u32, first_piece: piece as u32, pieces: 1 });
        }
    }
    queue
}

#[cfg(test)]
mod tests {
    use tpgm_core::{AdamW, Constraint, DType, FixedRadius, Group, Norm, ParamSet};

    use super::*;

    /// Pieces of 4 elements: 3 of the first tensor, 1 of the second, which has no second pass, 5 of the third.
    fn queue(lag: usize) -> Vec<(u32, u32, u32)> {
        let set = ParamSet::builder()
            .tensor("a", [12], DType::F32)
            .tensor("free", [4], DType::F32)
            .tensor("b", [20], DType::F32)
            .group(Group::new("free").constraint(Constraint::None))
            .build()
            .unwrap();
        let constraint = FixedRadius { radius: 1.0, norm: Norm::L2 }.into();
        let settings = set.settings(&AdamW::default().into(), &constraint).unwrap();
        let plan = Plan::new(set.tensors(), &settings, 4);
        let layout = Layout::new(&plan, &settings, &[1; 3], lag);
        layout.moves.iter().map(|item| (item.kind, item.tensor, item.first_piece)).collect()
    }

    const FIRST: u32 = item::ADVANCE;
    const SECOND: u32 = item::PULL;

    #[test]
    fn without_a_lag_the_second_pass_follows_as_soon_as_there_is_something_between() {
        let expected = [
            (FIRST, 0, 0),
            (FIRST, 0, 1),
            (FIRST, 0, 2),
            (FIRST, 1, 3),
            (SECOND, 0, 2),
            (SECOND, 0, 1),
            (SECOND, 0, 0),
            (FIRST, 2, 4),
            (FIRST, 2, 5),
            (FIRST, 2, 6),
            (FIRST, 2, 7),
            (FIRST, 2, 8),
            (SECOND, 2, 8),
            (SECOND, 2, 7),
            (SECOND, 2, 6),
            (SECOND, 2, 5),
            (SECOND, 2, 4),
        ];
        assert_eq!(queue(0), expected);
        assert_eq!(queue(4), expected);
    }

    #[test]
    fn a_lag_lets_so_many_elements_pass_first() {
        for (lag, between) in [(5, 2), (8, 2), (9, 3), (24, 6), (25, 6), (usize::MAX, 6)] {
            let queue = queue(lag);
            assert_eq!(queue.len(), 17, "{lag}");
            let position = |item| queue.iter().position(|&found| found == item).unwrap();
            assert_eq!(position((SECOND, 0, 2)) - position((FIRST, 0, 2)) - 1, between, "{lag}");
            // Nobody waits for a later entry.
            assert!(position((FIRST, 2, 8)) < position((SECOND, 2, 8)), "{lag}");
        }
    }
}
