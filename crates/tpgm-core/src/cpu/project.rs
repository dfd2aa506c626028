//! TPGM's projection and the update of its radii.

use rayon::prelude::*;

use super::decide::{Decide, Move};
use super::kernels;
use super::lanes::Lanes;
use super::measure::{PieceSums, check_finite};
use super::operand::{Operand, Operands, Stage, load};
use super::pull::{self, NormRange, Pull, is_tpgm};
use super::settle::finish_norm;
use super::simd::Simd;
use super::{Cpu, Workspace};
use crate::backend::Slot;
use crate::backend::{Job, Write};
use crate::blocks::with_real;
use crate::constraint::Constraint;
use crate::element::{DType, Element, Real};
use crate::error::{Error, Result};
use crate::norm::Norm;
use crate::plan::{Piece, Plan, TensorPlan, blocks};
use crate::scalars::TensorScalars;
use crate::step::Projection;

/// Projects in place: the writing phase of a step without a rule.
pub(super) fn project(cpu: &Cpu, job: Job<'_, '_, Cpu>) -> Result<()> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);
    workspace.move_all(cpu, set, plan, settings, scalars, |t, _, scalars, _| {
        let (settings, tensor) = (&settings[t], &plan.tensors[t]);
        if tensor.units == 0 || !is_tpgm(&settings.constraint) {
            return Move::SKIP;
        }
        let (dtype, projection) = (set.tensors()[t].dtype, Projection::Apply);
        let context = Decide { settings, tensor, set_numel: 0, dtype, lr: 0.0, clip: 0.0, projection };
        context.decide(scalars, &PieceSums::NONE, None)
    });
    Ok(())
}

/// Copies the weights, unless there is a master, and measures their displacement.
///
/// Reads 8 and writes 4 bytes per f32 parameter.
pub(super) fn remember(cpu: &Cpu, job: Job<'_, '_, Cpu>) -> Result<()> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);
    let Workspace { operands, parts, norms, .. } = workspace;
    let part_slots = Operand::write(parts.as_mut_slice().into());
    cpu.run(|| {
        plan.pieces.par_iter().for_each(|piece| {
            let (operands, tensor) = (&operands[piece.tensor], &plan.tensors[piece.tensor]);
            if let Constraint::Tpgm(tpgm) = &settings[piece.tensor].constraint {
                with_real!(operands.weight.dtype(), C =>
                    remember_piece::<C>(cpu.simd, operands, tensor, piece, tpgm.norm, part_slots));
            }
        });
    });
    for ((tensor, settings), spec) in plan.tensors.iter().zip(settings).zip(set.tensors()) {
        let Constraint::Tpgm(tpgm) = &settings.constraint else { continue };
        let parts = &parts[tensor.first_part..][..tensor.units * tensor.parts];
        for (norm, parts) in norms[tensor.unit_range()].iter_mut().zip(parts.chunks(tensor.parts)) {
            *norm = finish_norm(tpgm.norm, parts.iter().sum());
            if !norm.is_finite() {
                return Err(Error::NonFiniteValue { tensor: spec.name.clone(), what: "displacement" });
            }
        }
    }
    for (settings, scalars) in settings.iter().zip(scalars) {
        if is_tpgm(&settings.constraint) {
            scalars.master_filled = 1.0;
        }
    }
    Ok(())
}

fn remember_piece<C: Real>(
    simd: Simd,
    operands: &Operands,
    tensor: &TensorPlan,
    piece: &Piece,
    norm: Norm,
    parts: Operand,
) {
    let (mut anchors, mut weights) = (Stage::EMPTY, Stage::EMPTY);
    for unit in 0..piece.units {
        let mut sum = Lanes::ZERO;
        for range in blocks(tensor.elements(piece, unit)) {
            // SAFETY: nobody writes to weights, masters and anchors in this phase; the copy is this piece's own.
            unsafe {
                let a = load(operands.anchor, range.clone(), &mut anchors);
                let w = load(Some(operands.source()), range.clone(), &mut weights);
                match norm {
                    Norm::L2 => kernels::add_norm::<C, true>(simd, w, a, &mut sum),
                    Norm::Mars => kernels::add_norm::<C, false>(simd, w, a, &mut sum),
                }
                // The master remembers the weights, but only once a step has filled it.
                let fresh_master = operands.slot(Slot::Master).filter(|_| operands.fresh_master);
                if let Some(copy) = operands.slot(Slot::Remembered).or(fresh_master) {
                    C::store(w, copy.slice_mut(range));
                }
            }
        }
        let part = piece.part + unit;
        // SAFETY: the part belongs to this piece alone.
        unsafe { parts.typed_mut::<f64>(part..part + 1)[0] = sum.total() };
    }
}

/// Clips the radii and writes projected or remembered weights. Reads 8 and writes 4 bytes per f32 parameter.
pub(super) fn write(cpu: &Cpu, job: Job<'_, '_, Cpu>, write: Write) -> Result<()> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);
    let Workspace { operands, norms, .. } = workspace;
    if write != Write::Remembered {
        for (((tensor, settings), spec), scalars) in
            plan.tensors.iter().zip(settings).zip(set.tensors()).zip(scalars.iter_mut())
        {
            if is_tpgm(&settings.constraint) && tensor.units > 0 {
                settle_radius(scalars, spec.dtype, &norms[tensor.unit_range()]);
            }
        }
    }
    let (norms, scalars) = (&norms[..], &scalars[..]);
    cpu.run(|| {
        plan.pieces.par_iter().for_each(|piece| {
            if is_tpgm(&settings[piece.tensor].constraint) {
                let (operands, tensor) = (&operands[piece.tensor], &plan.tensors[piece.tensor]);
                let norms = &norms[tensor.first_unit + piece.unit..][..piece.units];
                let radius = scalars[piece.tensor].radius;
                with_real!(operands.weight.dtype(), C =>
                    write_piece::<C>(cpu.simd, operands, tensor, piece, norms, radius, write));
            }
        });
    });
    Ok(())
}

/// Clips the radius of one tensor and notes what the projection will do.
fn settle_radius(scalars: &mut TensorScalars, dtype: DType, norms: &[f64]) {
    let mut range = NormRange::EMPTY;
    norms.iter().for_each(|&norm| range.add(norm));
    pull::clip_tpgm(scalars, dtype, range);
    let pull = Pull::Learned { radius: scalars.radius };
    let (mut smallest, mut pulled) = (1.0f64, 0);
    for &norm in norms {
        let ratio = with_real!(dtype, C => pull.ratio::<C>(norm).to_f64());
        smallest = smallest.min(ratio);
        pulled += usize::from(ratio < 1.0);
    }
    scalars.norm = range.max;
    scalars.ratio = smallest;
    scalars.fire_rate = pulled as f64 / norms.len() as f64;
}

fn write_piece<C: Real>(
    simd: Simd,
    operands: &Operands,
    tensor: &TensorPlan,
    piece: &Piece,
    norms: &[f64],
    radius: f64,
    write: Write,
) {
    let (mut anchors, mut sources) = (Stage::EMPTY, Stage::EMPTY);
    let mut weights = Stage::<C>::EMPTY;
    let master = operands.slot(Slot::Master);
    for (unit, &norm) in norms.iter().enumerate() {
        let ratio = match write {
            Write::Remembered => C::ONE,
            Write::Trial | Write::Projection => Pull::Learned { radius }.ratio::<C>(norm),
        };
        for range in blocks(tensor.elements(piece, unit)) {
            // SAFETY: every element belongs to one piece. Anchors are never written, remembered weights not in this phase.
            unsafe {
                let a = load(operands.anchor, range.clone(), &mut anchors);
                if let (Some(master), Write::Projection) = (master, write) {
                    let master = master.typed_mut::<C>(range.clone());
                    if ratio != C::ONE {
                        kernels::pull(simd, master, a, ratio);
                    }
                    C::store(master, operands.weight.slice_mut(range));
                    continue;
                }
                let from = load(master.or(operands.slot(Slot::Remembered)), range.clone(), &mut sources);
                let weight = operands.weight.slice_mut(range.clone());
                if weight.dtype() == C::DTYPE {
                    kernels::project(simd, operands.weight.typed_mut::<C>(range), from, a, ratio);
                } else {
                    let staged = weights.block(range.len());
                    kernels::project(simd, staged, from, a, ratio);
                    C::store(staged, weight);
                }
            }
        }
    }
}

/// The gradient of every radius, then Adam on all of them. Reads 4 bytes per f32 parameter, 12 in rows that the radius
/// limits.
pub(super) fn update_radii(cpu: &Cpu, job: Job<'_, '_, Cpu>) -> Result<()> {
    let Job { set, settings, plan, io, slots, scalars, workspace } = job;
    workspace.bind(io, slots, settings, scalars);
    let Workspace { operands, norms, sums, .. } = workspace;
    let (norms, radii) = (&norms[..], &scalars[..]);
    cpu.run(|| {
        sums.par_iter_mut().zip(&plan.pieces).for_each(|(out, piece)| {
            *out = PieceSums::NONE;
            if is_tpgm(&settings[piece.tensor].constraint) {
                let (operands, tensor) = (&operands[piece.tensor], &plan.tensors[piece.tensor]);
                let norms = &norms[tensor.first_unit + piece.unit..][..piece.units];
                let radius = radii[piece.tensor].radius;
                *out = with_real!(operands.weight.dtype(), C =>
                    radius_gradient::<C>(cpu.simd, operands, tensor, piece, norms, radius));
            }
        });
    });
    check_finite(set.tensors(), plan, sums)?;
    for (t, (settings, scalars)) in settings.iter().zip(scalars).enumerate() {
        let Constraint::Tpgm(tpgm) = &settings.constraint else {
            continue;
        };
        let grad = pull::round(set.tensors()[t].dtype, total(plan, sums, t));
        scalars.radius_grad_raw = grad;
        scalars.radius_step += 1.0;
        let t = scalars.radius_step;
        pull::adam(scalars, &tpgm.adam, grad, t);
    }
    Ok(())
}

fn total(plan: &Plan, sums: &[PieceSums], tensor: usize) -> f64 {
    sums[plan.tensors[tensor].pieces.clone()].iter().map(|sum| sum.dot).sum()
}

fn radius_gradient<C: Real>(
    simd: Simd,
    operands: &Operands,
    tensor: &TensorPlan,
    piece: &Piece,
    norms: &[f64],
    radius: f64,
) -> PieceSums {
    let (mut grads, mut anchors, mut sources) = (Stage::<C>::EMPTY, Stage::EMPTY, Stage::EMPTY);
    let from = operands.slot(Slot::Master).or(operands.slot(Slot::Remembered));
    let mut out = PieceSums::NONE;
    for (unit, &norm) in norms.iter().enumerate() {
        // Zero gradient at both ends of the clamp, ends included (hard-tanh in the reference code).
        let share = pull::share::<C>(radius, norm);
        let limited = share > C::ZERO && share < C::ONE;
        let mut dot = Lanes::ZERO;
        for range in blocks(tensor.elements(piece, unit)) {
            // SAFETY: nobody writes to any operand in this phase.
            unsafe {
                let g = load(operands.grad, range.clone(), &mut grads);
                out.finite &= kernels::all_finite(simd, g);
                if limited {
                    let a = load(operands.anchor, range.clone(), &mut anchors);
                    let w = load(from, range.clone(), &mut sources);
                    kernels::add_dot_displacement(simd, g, w, a, &mut dot);
                }
            }
        }
        if limited {
            out.dot += dot.total() / (norm + crate::constraint::RADIUS_FLOOR);
        }
    }
    out
}
