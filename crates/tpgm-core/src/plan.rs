//! The plan: a table that cuts a set of tensors into equal pieces of work.
//!
//! It is made once and shared by every pass. Reductions write one partial sum per part and are added up in table order,
//! so results do not depend on which thread or block takes which piece.

use std::ops::Range;

use crate::norm::Norm;
use crate::params::{Settings, TensorSpec};

/// Elements in one piece, unless a row is longer: then the row is cut. 64 KiB of f32: several operands of a piece fit
/// in a core's L2 cache, so a row can be read twice for the price of once.
pub const CHUNK: usize = 16 * 1024;

/// How one tensor is cut.
///
/// A *unit* is what one norm is taken over: a row for MARS, else the whole tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Number of elements.
    pub numel: usize,
    /// Number of units, 0 for a tensor without elements.
    pub units: usize,
    /// Elements per unit.
    pub unit_len: usize,
    /// Parts that each unit is cut into; 1 when units are whole.
    pub parts: usize,
    /// Index of the first unit among the units of all tensors.
    pub first_unit: usize,
    /// Index of the first part among the parts of all tensors. Unit `u` has parts `first_part + u * parts ..`.
    pub first_part: usize,
    /// The pieces of this tensor.
    pub pieces: Range<usize>,
}

impl TensorPlan {
    /// The global indices of this tensor's units.
    pub fn unit_range(&self) -> Range<usize> {
        self.first_unit..self.first_unit + self.units
    }

    /// The elements of the `unit`-th unit (or the one part of a unit) of a piece.
    #[inline(always)]
    pub fn elements(&self, piece: &Piece, unit: usize) -> Range<usize> {
        if self.parts > 1 {
            piece.start..piece.end
        } else {
            let start = piece.start + unit * self.unit_len;
            start..start + self.unit_len
        }
    }
}

/// Elements that a kernel handles at a time: six f32 operands of a block fit in a 32 KiB L1 cache.
pub(crate) const BLOCK: usize = 1024;

/// Cuts a range of elements into blocks of at most [`BLOCK`].
#[inline(always)]
pub(crate) fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
}

/// One piece of work: whole units, or one part of a long one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index of the tensor.
    pub tensor: usize,
    /// First element.
    pub start: usize,
    /// One past the last element.
    pub end: usize,
    /// First unit, counted within the tensor.
    pub unit: usize,
    /// Number of units the piece touches: all whole, or 1.
    pub units: usize,
    /// Global index of its first part.
    pub part: usize,
}

/// The table of all tensors and pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One entry per tensor, in set order.
    pub tensors: Vec<TensorPlan>,
    /// All pieces, tensor after tensor.
    pub pieces: Vec<Piece>,
    /// Number of units of all tensors.
    pub units: usize,
    /// Number of parts of all tensors.
    pub parts: usize,
}

impl Plan {
    /// Cuts tensors into pieces of at most `chunk` elements (at least 1); `settings` decide what a unit is.
    pub fn new(tensors: &[TensorSpec], settings: &[Settings], chunk: usize) -> Self {
        Self::in_rounds(tensors, settings, chunk, |_| 1)
    }

    /// The same for a worker that goes through the rows of a piece in rounds, of which each takes `rows_at_a_time` rows of a
    /// length: pieces with room for more rows have a multiple of them, since the last round would take as long for fewer.
    pub fn in_rounds(
        tensors: &[TensorSpec],
        settings: &[Settings],
        chunk: usize,
        rows_at_a_time: impl Fn(usize) -> usize,
    ) -> Self {
        let chunk = chunk.max(1);
        let mut plan =
            Plan { tensors: Vec::with_capacity(tensors.len()), pieces: Vec::new(), units: 0, parts: 0 };
        for (spec, settings) in tensors.iter().zip(settings) {
            let by_row = settings.constraint.norm() == Some(Norm::Mars);
            let (units, unit_len) = match (spec.numel(), by_row) {
                (0, _) => (0, 0),
                (_, true) => spec.rows(),
                (numel, false) => (1, numel),
            };
            plan.push(units, unit_len, chunk, rows_at_a_time(unit_len));
        }
        plan
    }

    fn push(&mut self, units: usize, unit_len: usize, chunk: usize, at_a_time: usize) {
        let tensor = self.tensors.len();
        let first_piece = self.pieces.len();
        let parts = unit_len.div_ceil(chunk).max(1);
        if parts == 1 {
            let room = chunk / unit_len.max(1);
            let per_piece = if room > at_a_time { room - room % at_a_time.max(1) } else { room };
            for unit in (0..units).step_by(per_piece.max(1)) {
                let count = per_piece.min(units - unit);
                self.pieces.push(Piece {
                    tensor,
                    start: unit * unit_len,
                    end: (unit + count) * unit_len,
                    unit,
                    units: count,
                    part: self.parts + unit,
                });
            }
        } else {
            for unit in 0..units {
                for part in 0..parts {
                    self.pieces.push(Piece {
                        tensor,
                        start: unit * unit_len + part * chunk,
                        end: unit * unit_len + unit_len.min((part + 1) * chunk),
                        unit,
                        units: 1,
                        part: self.parts + unit * parts + part,
                    });
                }
            }
        }
        self.tensors.push(TensorPlan {
            numel: units * unit_len,
            units,
            unit_len,
            parts,
            first_unit: self.units,
            first_part: self.parts,
            pieces: first_piece..self.pieces.len(),
        });
        self.units += units;
        self.parts += units * parts;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdamW, Constraint, DType, Ftp, ParamSet, Spd};

    fn plan(shapes: &[&[usize]], constraint: Constraint, chunk: usize) -> Plan {
        let mut set = ParamSet::builder();
        for (i, shape) in shapes.iter().enumerate() {
            set = set.tensor(format!("t{i}"), shape.to_vec(), DType::F32);
        }
        let set = set.build().unwrap();
        let settings = set.settings(&AdamW::default().into(), &constraint).unwrap();
        Plan::new(set.tensors(), &settings, chunk)
    }

    #[test]
    fn every_element_and_every_part_belongs_to_exactly_one_piece() {
        let shapes: [&[usize]; 9] =
            [&[], &[0], &[7], &[0, 4], &[5, 3], &[3, 100], &[2, 33, 2], &[1], &[8, 4]];
        for constraint in [Ftp::default().into(), Spd::default().into()] {
            for chunk in [1, 2, 8, 32, 33, 1000] {
                let plan = plan(&shapes, constraint, chunk);
                let mut part = 0;
                for (t, tensor) in plan.tensors.iter().enumerate() {
                    let mut next = 0;
                    for piece in &plan.pieces[tensor.pieces.clone()] {
                        assert_eq!((piece.tensor, piece.start), (t, next));
                        assert!(piece.end > piece.start);
                        assert!(piece.end - piece.start <= chunk.max(1), "{piece:?} chunk {chunk}");
                        assert_eq!(piece.part, part);
                        part += if tensor.parts == 1 { piece.units } else { 1 };
                        next = piece.end;
                    }
                    assert_eq!(next, shapes[t].iter().product::<usize>());
                }
                assert_eq!(part, plan.parts);
            }
        }
    }

    #[test]
    fn pieces_are_multiples_of_a_round() {
        let settings = |set: &ParamSet| {
            set.settings(&AdamW::default().into(), &Ftp::default().into()).expect("valid settings")
        };
        let set = ParamSet::builder().tensor("w", [23, 10], DType::F32).build().unwrap();
        let rows = |chunk, at_a_time: usize| {
            let plan = Plan::in_rounds(set.tensors(), &settings(&set), chunk, |len| {
                assert_eq!(len, 10);
                at_a_time
            });
            plan.pieces.iter().map(|piece| piece.units).collect::<Vec<_>>()
        };
        assert_eq!(rows(75, 1), [7, 7, 7, 2]);
        assert_eq!(rows(75, 3), [6, 6, 6, 5]);
        assert_eq!(rows(75, 7), [7, 7, 7, 2]);
        // A round takes more than a piece may have.
        assert_eq!(rows(75, 16), [7, 7, 7, 2]);
        assert_eq!(rows(9, 4), [1; 46], "rows that are cut have one part each");
    }

    #[test]
    fn short_rows_stay_whole_and_long_rows_are_cut() {
        let plan = plan(&[&[10, 3], &[2, 20]], Ftp::default().into(), 8);
        assert_eq!(plan.tensors[0].parts, 1);
        assert_eq!(plan.pieces[plan.tensors[0].pieces.start].units, 2);
        assert_eq!((plan.tensors[1].units, plan.tensors[1].parts), (2, 3));
        assert_eq!(plan.tensors[1].pieces.len(), 6);
    }
}
