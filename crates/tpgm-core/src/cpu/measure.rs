//! The phase that only reads: is every gradient finite, and what do the constraints need to know of it.

use super::kernels;
use super::lanes::Lanes;
use super::operand::{Operands, Stage, load};
use super::simd::Simd;
use crate::backend::Slot;
use crate::blocks::with_real;
use crate::constraint::{Constraint, FtpMemory};
use crate::element::Real;
use crate::error::{Error, Result};
use crate::params::{Settings, TensorSpec};
use crate::plan::{Piece, Plan, TensorPlan, blocks};
use crate::scalars::TensorScalars;
use crate::step::StepSums;

/// Which sums [`measure`] takes of a tensor beside the check for finite gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// None.
    Check,
    /// `<g, W - W0>` and `|W - W0|^2`, over the tensor.
    Displacement,
    /// As `Displacement`, and `<g, slot>`.
    DisplacementAndPrevious,
    /// `<g, slot>` of each row times its row scale.
    ScaledPrevious,
    /// `<g, W - W0>` of each row times its row scale.
    ScaledDisplacement,
}

pub(super) fn sums_wanted(settings: &Settings, scalars: &TensorScalars) -> Sums {
    match &settings.constraint {
        Constraint::Spd(_) => Sums::Displacement,
        Constraint::Digrap(_) => Sums::DisplacementAndPrevious,
        Constraint::Ftp(_) if scalars.step == 0.0 => Sums::Check,
        Constraint::Ftp(ftp) if ftp.memory == FtpMemory::Exact => Sums::ScaledPrevious,
        Constraint::Ftp(_) => Sums::ScaledDisplacement,
        _ => Sums::Check,
    }
}

/// What [`measure`] found in one piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceSums {
    pub(super) finite: bool,
    pub(super) square: f64,
    pub(super) dot: f64,
    pub(super) displacement: f64,
    pub(super) previous: f64,
}

impl PieceSums {
    /// Of nothing.
    pub(super) const NONE: Self =
        Self { finite: true, square: 0.0, dot: 0.0, displacement: 0.0, previous: 0.0 };

    pub(super) fn total(pieces: &[Self]) -> Self {
        let mut total = Self::NONE;
        pieces.iter().for_each(|piece| total.join(piece));
        total
    }

    /// The numbers among them.
    pub(super) fn sums(&self) -> StepSums {
        let Self { square, dot, displacement, previous, .. } = *self;
        StepSums { square, dot, displacement, previous }
    }

    /// Of gradients that were found finite.
    pub(super) fn of(sums: StepSums) -> Self {
        let StepSums { square, dot, displacement, previous } = sums;
        Self { finite: true, square, dot, displacement, previous }
    }

    fn join(&mut self, other: &Self) {
        self.finite &= other.finite;
        self.square += other.square;
        self.dot += other.dot;
        self.displacement += other.displacement;
        self.previous += other.previous;
    }
}

/// An error that names the first tensor whose gradient is not finite.
pub(super) fn check_finite(specs: &[TensorSpec], plan: &Plan, sums: &[PieceSums]) -> Result<()> {
    let finite = |t: &usize| sums[plan.tensors[*t].pieces.clone()].iter().all(|piece| piece.finite);
    let mut affected = (0..specs.len()).filter(|t| !finite(t));
    match affected.next() {
        None => Ok(()),
        Some(t) => {
            Err(Error::NonFiniteGradient { tensor: specs[t].name.clone(), count: 1 + affected.count() })
        }
    }
}

/// As [`measure`], in the compute type of the tensor.
pub(super) fn piece(
    simd: Simd,
    operands: &Operands,
    plan: &Plan,
    piece: &Piece,
    wanted: Sums,
    clipping: bool,
) -> PieceSums {
    let tensor = &plan.tensors[piece.tensor];
    with_real!(operands.weight.dtype(), C => measure::<C>(simd, operands, tensor, piece, wanted, clipping))
}

/// Bytes read per f32 parameter: 4, with `Displacement` 12, `DisplacementAndPrevious` 16, `ScaledPrevious` 8,
/// `ScaledDisplacement` 12. Nothing is written.
fn measure<C: Real>(
    simd: Simd,
    operands: &Operands,
    tensor: &TensorPlan,
    piece: &Piece,
    wanted: Sums,
    clipping: bool,
) -> PieceSums {
    let mut out = PieceSums::NONE;
    let (mut grads, mut anchors, mut weights) = (Stage::EMPTY, Stage::EMPTY, Stage::EMPTY);
    let (mut square, mut dot, mut displacement, mut previous) =
        (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
    let scaled = matches!(wanted, Sums::ScaledPrevious | Sums::ScaledDisplacement);
    let remembers = matches!(wanted, Sums::ScaledPrevious | Sums::DisplacementAndPrevious);
    let anchored = !matches!(wanted, Sums::Check | Sums::ScaledPrevious);
    for unit in 0..piece.units {
        let mut row = Lanes::ZERO;
        for range in blocks(tensor.elements(piece, unit)) {
            let (mut a, mut w, mut before): (&[C], &[C], &[C]) = (&[], &[], &[]);
            // SAFETY: during this phase nobody writes to any operand.
            let g = unsafe {
                if anchored {
                    a = load(operands.anchor, range.clone(), &mut anchors);
                    w = load(Some(operands.source()), range.clone(), &mut weights);
                }
                if remembers {
                    before = operands.state::<C>(Slot::Displacement, range.clone());
                }
                load(operands.grad, range, &mut grads)
            };
            match wanted {
                Sums::Check if clipping => {}
                Sums::Check => out.finite &= kernels::all_finite(simd, g),
                Sums::ScaledPrevious => kernels::add_dot(simd, g, before, &mut row),
                Sums::ScaledDisplacement => kernels::add_dot_displacement(simd, g, w, a, &mut row),
                Sums::Displacement => kernels::add_dot_and_norm(simd, g, w, a, &mut dot, &mut displacement),
                Sums::DisplacementAndPrevious => {
                    kernels::add_dot_and_norm(simd, g, w, a, &mut dot, &mut displacement);
                    kernels::add_dot_and_square(simd, g, before, &mut previous, &mut square);
                }
            }
            if clipping && wanted != Sums::DisplacementAndPrevious {
                kernels::add_dot(simd, g, g, &mut square);
            }
        }
        if scaled {
            let at = piece.unit + unit;
            // SAFETY: as above.
            let scale = unsafe { operands.state::<f64>(Slot::RowScale, at..at + 1) };
            out.dot += row.total() * scale[0];
        }
    }
    out.square = square.total();
    out.displacement = displacement.total();
    out.previous = previous.total();
    if !scaled {
        out.dot = dot.total();
    }
    // A gradient that is not finite makes every sum over it not finite. The reverse does not hold, so look again.
    if !(out.square.is_finite() && out.dot.is_finite() && out.previous.is_finite()) {
        out.finite = blocks(piece.start..piece.end).all(|range| {
            // SAFETY: as above.
            kernels::all_finite(simd, unsafe { load(operands.grad, range, &mut grads) })
        });
    }
    out
}
