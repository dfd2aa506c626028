//! Between moving and pulling back: radii clipped, ratios known, telemetry written.

use super::advance::PieceNorms;
use super::decide::{Move, ftp_floor};
use super::operand::{Operand, Operands};
use super::pull::{self, Pull};
use crate::backend::Slot;
use crate::blocks::with_real;
use crate::constraint::{Constraint, FtpMemory, RADIUS_FLOOR};
use crate::element::{DType, Element};
use crate::norm::Norm;
use crate::params::Settings;
use crate::plan::TensorPlan;
use crate::scalars::TensorScalars;

/// What follows from a tensor's norms when its rule has run: radii clipped, ratios known, telemetry written.
pub(super) struct Settle<'a> {
    pub(super) operands: &'a Operands,
    pub(super) settings: &'a Settings,
    pub(super) tensor: &'a TensorPlan,
    pub(super) dtype: DType,
    pub(super) parts: Operand,
    pub(super) norms: Operand,
}

impl Settle<'_> {
    pub(super) fn settle(&self, step: &mut Move, scalars: &mut TensorScalars, mut out: PieceNorms) {
        if step.skip {
            return;
        }
        if step.scale_radius.is_some() {
            scalars.fire_rate = out.pulled as f64 / self.tensor.numel as f64;
        }
        let Some(norm) = step.norm else { return };
        // SAFETY: parts, norms and rows of a tensor are its own, and nobody works on its pieces now.
        let (norms, row_scale) = unsafe {
            let first = self.tensor.first_part;
            let parts = self.parts.slice(first..first + self.tensor.units * self.tensor.parts);
            let norms = self.norms.typed_mut::<f64>(self.tensor.unit_range());
            if self.tensor.parts > 1 {
                out = PieceNorms::EMPTY;
                for (unit, slot) in norms.iter_mut().enumerate() {
                    let first = unit * self.tensor.parts;
                    *slot = finish_norm(
                        norm,
                        (first..first + self.tensor.parts).map(|part| parts.get(part)).sum(),
                    );
                    out.norms.add(*slot);
                }
            }
            let rows = if step.row_scale.is_some() && self.tensor.parts > 1 { self.tensor.units } else { 0 };
            (norms, self.operands.state::<f64>(Slot::RowScale, 0..rows))
        };
        let ratio = |pull: Pull, norm| with_real!(self.dtype, C => pull.ratio::<C>(norm).to_f64());
        match &self.settings.constraint {
            Constraint::Tpgm(_) => {
                pull::clip_tpgm(scalars, self.dtype, out.norms);
                step.pull = Pull::Learned { radius: scalars.radius };
                // Shorter rows are inside the radius, but not always by the 1e-8 of the ratio; and the longest row is
                // not once the radius has been clipped to it. In f32 that happens only to norms below 0.25.
                if !step.deferred
                    && norms.iter().any(|&norm| norm < step.pulls_from && ratio(step.pull, norm) < 1.0)
                {
                    step.deferred = true;
                    step.waited_below = step.pulls_from;
                }
            }
            Constraint::Ftp(c) => {
                scalars.radius = scalars.radius.min((out.norms.max + RADIUS_FLOOR).max(ftp_floor(c)));
                scalars.radius = pull::round(self.dtype, scalars.radius);
                step.pull = Pull::Learned { radius: scalars.radius };
            }
            _ => {}
        }
        if let Some(memory) = step.row_scale {
            for (scale, norm) in row_scale.iter_mut().zip(norms.iter()) {
                *scale = row_scale_of(memory, step.pull, *norm);
            }
        }
        if step.deferred {
            out.pulled = 0;
            for &norm in norms.iter() {
                let ratio = ratio(step.pull, norm);
                out.ratio = out.ratio.min(ratio);
                out.pulled += usize::from(ratio < 1.0);
            }
        }
        scalars.norm = out.norms.max;
        scalars.ratio = out.ratio;
        scalars.fire_rate = out.pulled as f64 / self.tensor.units as f64;
    }
}

pub(super) fn row_scale_of(memory: FtpMemory, pull: Pull, norm: f64) -> f64 {
    let norm = norm + RADIUS_FLOOR;
    match (memory, pull) {
        (FtpMemory::Low, Pull::Learned { radius }) => 1.0 / norm.min(radius),
        _ => 1.0 / norm,
    }
}

pub(super) fn finish_norm(norm: Norm, sum: f64) -> f64 {
    match norm {
        Norm::L2 => sum.sqrt(),
        Norm::Mars => sum,
    }
}
