//! Tensors that are too large for one rank are cut by rows, where that changes no bit.
//!
//! A step adds up a few numbers over each tensor, piece of work by piece of work, and looks at rows and elements alone once it
//! has them. So a block of rows that begins and ends with a piece is stepped as in the whole if it is given the sums of all
//! pieces, in their order. That holds where no norm goes over several rows: not for L2 norms and SPD, whose norms do; not for
//! TPGM, whose updates add up over rows again; a pull's importance is relative to its tensor's mean. These stay whole.

use std::collections::HashSet;
use std::ops::Range;

use tpgm_core::plan::Plan;
use tpgm_core::{Constraint, Norm, ParamSet, Settings, TensorSpec};

use crate::engine::{Operands, Result};
use crate::params::Param;

/// Pieces of work in a block, at most: 4 MiB of f32 with pieces of the usual size. A step takes memory for a copy of a block with its
/// state.
const PIECES: usize = 64;

/// All of a tensor, or some of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) tensor: usize,
    pub(super) rows: Option<Range<usize>>,
}

/// The blocks of a set, in set order.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The tensors that they are of.
    pub(super) whole: ParamSet,
    /// They themselves as a set: a block of rows has the name of its tensor and its rows, as in `w[0..128]`.
    pub(super) set: ParamSet,
    pub(super) list: Vec<Block>,
    /// What each of them is driven by.
    pub(super) settings: Vec<Settings>,
    /// Pieces of work of each.
    pub(super) pieces: Vec<usize>,
}

impl Blocks {
    /// Cuts tensors that have more than [`PIECES`] pieces of `chunk` elements, if there is a chunk. Follows from shapes and
    /// settings alone, so that all ranks have the same ones, whatever their number.
    pub(super) fn new(set: &ParamSet, settings: &[Settings], chunk: Option<usize>) -> Self {
        let mut list = Vec::with_capacity(set.len());
        // Where a tensor has the name of another's rows, as `w[0..4]` beside `w`, saved state could mean either: the other stays whole.
        let named = |spec: &TensorSpec| set.position(rows_in_name(&spec.name)?.0).ok();
        let named: HashSet<usize> = set.tensors().iter().filter_map(named).collect();
        for (tensor, (spec, settings)) in set.tensors().iter().zip(settings).enumerate() {
            let chunk = chunk.filter(|_| !named.contains(&tensor));
            match chunk.and_then(|chunk| rows_of_a_block(spec, settings, chunk)) {
                Some(most) => {
                    let rows = spec.rows().0;
                    let starts = (0..rows).step_by(most);
                    list.extend(starts.map(|at| Block { tensor, rows: Some(at..rows.min(at + most)) }));
                }
                None => list.push(Block { tensor, rows: None }),
            }
        }
        let specs = list.iter().map(|block| {
            let mut spec = set.tensors()[block.tensor].clone();
            if let Some(rows) = &block.rows {
                spec.name = name_of_rows(&spec.name, rows);
                spec.shape[0] = rows.len();
            }
            (block.tensor, spec)
        });
        let blocks = set.pieces(specs);
        let settings: Vec<Settings> = list.iter().map(|block| settings[block.tensor]).collect();
        let plan = Plan::new(blocks.tensors(), &settings, chunk.unwrap_or(usize::MAX));
        let pieces = plan.tensors.iter().map(|tensor| tensor.pieces.len()).collect();
        Self { whole: set.clone(), set: blocks, list, settings, pieces }
    }

    /// Blocks as operands, without anchors.
    pub(super) fn operands(&self, params: &[Param], which: impl Iterator<Item = usize>) -> Result<Operands> {
        let block = |i: usize| {
            let Block { tensor, rows } = &self.list[i];
            (self.set.tensors()[i].name.clone(), &params[*tensor], rows.clone())
        };
        Operands::of_blocks(which.map(block))
    }

    /// Whether a block is some rows of a larger tensor.
    pub(super) fn is_cut(&self, block: usize) -> bool {
        self.list[block].rows.is_some()
    }

    /// The blocks of a tensor.
    pub(super) fn of(&self, tensor: usize) -> Range<usize> {
        let start = self.list.partition_point(|block| block.tensor < tensor);
        start..self.list.partition_point(|block| block.tensor <= tensor)
    }

    /// The tensor of each block.
    pub(super) fn tensors(&self) -> Vec<usize> {
        self.list.iter().map(|block| block.tensor).collect()
    }

    /// The tensor that saved state names, and which of its rows.
    pub(super) fn named(&self, name: &str) -> Option<(usize, Range<usize>)> {
        saved_rows(&self.whole, name)
    }
}

/// As many rows as a block has; `None` for a tensor that stays whole.
fn rows_of_a_block(spec: &TensorSpec, settings: &Settings, chunk: usize) -> Option<usize> {
    let (rows, len) = spec.rows();
    let limit = PIECES.saturating_mul(chunk);
    if spec.numel() <= limit {
        return None;
    }
    // Rows after which a piece ends.
    let step = match &settings.constraint {
        Constraint::Ftp(_) => (len <= chunk).then(|| chunk / len)?,
        Constraint::FixedRadius(c) if c.norm == Norm::Mars => (len <= chunk).then(|| chunk / len)?,
        Constraint::None | Constraint::L2Sp(_) | Constraint::Digrap(_) => chunk / gcd(chunk, len),
        _ => return None,
    };
    let most = limit / len / step * step;
    if most == 0 || most >= rows {
        return None;
    }
    // Not a large one and a small rest.
    let even = rows.div_ceil(rows.div_ceil(most));
    Some(even.div_ceil(step) * step)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn name_of_rows(tensor: &str, rows: &Range<usize>) -> String {
    format!("{tensor}[{}..{}]", rows.start, rows.end)
}

/// The reverse of [`name_of_rows`].
fn rows_in_name(name: &str) -> Option<(&str, Range<usize>)> {
    let (tensor, rows) = name.strip_suffix(']')?.rsplit_once('[')?;
    let (start, end) = rows.split_once("..")?;
    Some((tensor, start.parse().ok()?..end.parse().ok()?))
}

/// What a name in saved state means: a tensor, or some of its rows.
pub(super) fn saved_rows(set: &ParamSet, name: &str) -> Option<(usize, Range<usize>)> {
    if let Ok(tensor) = set.position(name) {
        return Some((tensor, 0..set.tensors()[tensor].rows().0));
    }
    let (tensor, rows) = rows_in_name(name)?;
    let tensor = set.position(tensor).ok()?;
    (rows.start < rows.end && rows.end <= set.tensors()[tensor].rows().0).then_some((tensor, rows))
}

#[cfg(test)]
mod tests {
    use tpgm_core::{AdamW, DType, FixedRadius, Ftp, Spd, Tpgm};

    use super::*;

    fn blocks(shape: &[usize], constraint: impl Into<Constraint>, chunk: usize) -> Vec<String> {
        let set = ParamSet::builder().tensor("w", shape, DType::F32).build().unwrap();
        let settings = set.settings(&AdamW::default().into(), &constraint.into()).unwrap();
        let blocks = Blocks::new(&set, &settings, Some(chunk));
        // Blocks end where pieces of the whole do: they have as many together.
        let whole = Plan::new(set.tensors(), &settings, chunk).pieces.len();
        assert_eq!(blocks.pieces.iter().sum::<usize>(), whole);
        assert_eq!(blocks.of(0), 0..blocks.list.len());
        assert_eq!(blocks.set.numel(), set.numel());
        blocks.set.tensors().iter().map(|spec| spec.name.clone()).collect()
    }

    #[test]
    fn rows_are_cut_where_pieces_of_work_end() {
        // By hand, of pieces of 10 elements: 640 are whole. Pieces of 3 rows, blocks of at most 213 rows, two like ones.
        assert_eq!(blocks(&[640], Ftp::default(), 10), ["w"]);
        assert_eq!(blocks(&[216, 3], Ftp::default(), 10), ["w[0..108]", "w[108..216]"]);
        // Without rows a piece ends after 10 elements, and with a row after 30: 10 rows.
        assert_eq!(blocks(&[216, 3], Constraint::None, 10), ["w[0..110]", "w[110..216]"]);
        // A convolution.
        assert_eq!(blocks(&[100, 2, 2, 2], Ftp::default(), 10), ["w[0..50]", "w[50..100]"]);
        // MiniLM's word embedding: 42 rows of 384 are a piece, and 12 blocks enough.
        let names = blocks(&[30_522, 384], Ftp::default(), 16_384);
        assert_eq!((names.len(), names[1].as_str()), (12, "w[2562..5124]"));
    }

    #[test]
    fn what_would_change_stays_whole() {
        let l2 = FixedRadius { radius: 0.1, norm: Norm::L2 };
        assert_eq!(blocks(&[216, 3], l2, 10), ["w"]);
        assert_eq!(blocks(&[216, 3], FixedRadius { norm: Norm::Mars, ..l2 }, 10).len(), 2);
        assert_eq!(blocks(&[216, 3], Spd::default(), 10), ["w"]);
        assert_eq!(blocks(&[216, 3], Tpgm::default(), 10), ["w"]);
        // Rows longer than a piece are pulled back when all of them are known.
        assert_eq!(blocks(&[100, 11], Ftp::default(), 10), ["w"]);
        // No block of so many rows ends with a piece.
        assert_eq!(blocks(&[70, 97], Constraint::None, 10), ["w"]);
        // One row.
        assert_eq!(blocks(&[700], Constraint::None, 10), ["w"]);
    }

    #[test]
    fn a_tensor_whose_rows_have_another_ones_name_stays_whole() {
        let names = |other: &str| -> Vec<String> {
            let set = ParamSet::builder().tensor("w", [216, 3], DType::F32).tensor(other, [2], DType::F32);
            let set = set.build().unwrap();
            let settings = set.settings(&AdamW::default().into(), &Ftp::default().into()).unwrap();
            let blocks = Blocks::new(&set, &settings, Some(10));
            blocks.set.tensors().iter().map(|spec| spec.name.clone()).collect()
        };
        for other in ["w[0..108]", "w[1..2]"] {
            assert_eq!(names(other), ["w", other]);
        }
        for other in ["w[0]", "v[0..108]", "w[0..b]", "w[0..108"] {
            assert_eq!(names(other), ["w[0..108]", "w[108..216]", other]);
        }
    }

    #[test]
    fn names_in_saved_state_are_tensors_or_rows() {
        let set = ParamSet::builder().tensor("w", [8, 2], DType::F32).tensor("b[0]", [3], DType::F32);
        let set = set.build().unwrap();
        let rows = |name| saved_rows(&set, name);
        assert_eq!(rows("w"), Some((0, 0..8)));
        assert_eq!(rows("w[2..8]"), Some((0, 2..8)));
        assert_eq!(rows("b[0]"), Some((1, 0..1)));
        for name in ["v", "w[2..9]", "w[3..3]", "w[4..3]", "w[2]", "w[a..b]", "w2..3]", "v[0..1]"] {
            assert_eq!(rows(name), None, "{name}");
        }
    }
}
