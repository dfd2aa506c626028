//! The phase that writes: the rule, norms of what came out, and pulling back.

use std::ops::Range;

use super::decide::{Move, RuleStep};
use super::kernels::{self, AdamWStep, Mix, SgdStep, pull, sink};
use super::lanes::Lanes;
use super::operand::{Operand, Operands, Stage, load};
use super::pull::NormRange;
use super::settle::{finish_norm, row_scale_of};
use super::simd::Simd;
use crate::backend::Slot;
use crate::element::Real;
use crate::norm::Norm;
use crate::plan::{Piece, TensorPlan, blocks};

/// What [`advance`] reports of one piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceNorms {
    pub(super) norms: NormRange,
    pub(super) ratio: f64,
    pub(super) pulled: usize,
}

impl PieceNorms {
    pub(super) const EMPTY: Self = Self { norms: NormRange::EMPTY, ratio: 1.0, pulled: 0 };

    #[inline(always)]
    fn add(&mut self, norm: f64, ratio: f64) {
        self.norms.add(norm);
        self.ratio = self.ratio.min(ratio);
        self.pulled += usize::from(ratio < 1.0);
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.norms = self.norms.join(other.norms);
        self.ratio = self.ratio.min(other.ratio);
        self.pulled += other.pulled;
    }
}

/// Calls the version of a rule kernel that run-time values select: one branch per block instead of one per element.
macro_rules! choose {
    ($sink:expr, $pull:expr, $variant:expr => kernels::$kernel:ident::<C>($($arg:expr),*)) => {
        choose!(@pull $sink, $pull, *$variant, $kernel, ($($arg),*), [NONE, ABS, SQUARE, STORE_ABS, STORE_OLD])
    };
    // A pull of its own kind is the whole constraint: nothing asks for the displacement beside it.
    (@pull $sink:expr, $pull:expr, $variant:expr, $kernel:ident, $args:tt, $sinks:tt) => {
        match $pull {
            pull::NONE => choose!(@sink $sink, { pull::NONE }, $variant, $kernel, $args, $sinks),
            pull::DISPLACEMENT => choose!(@sink $sink, { pull::DISPLACEMENT }, $variant, $kernel, $args, $sinks),
            pull::TERMS => choose!(@variant { pull::TERMS }, $variant, $kernel, $args, { sink::NONE }),
            _ => choose!(@variant { pull::WEIGHED }, $variant, $kernel, $args, { sink::NONE }),
        }
    };
    (@sink $sink:expr, $pull:tt, $variant:expr, $kernel:ident, $args:tt, [$($name:ident),*]) => {
        match $sink {
            $(sink::$name => choose!(@variant $pull, $variant, $kernel, $args, { sink::$name }),)*
            _ => unreachable!("every sink is listed"),
        }
    };
    (@variant $pull:tt, $variant:expr, $kernel:ident, ($($arg:expr),*), $sink:tt) => {
        match $variant {
            false => kernels::$kernel::<C, $pull, false, $sink>($($arg),*),
            true => kernels::$kernel::<C, $pull, true, $sink>($($arg),*),
        }
    };
}

/// The phase that writes, on one tensor.
pub(super) struct Advance<'a> {
    pub(super) simd: Simd,
    pub(super) operands: &'a Operands,
    pub(super) step: &'a Move,
    pub(super) tensor: &'a TensorPlan,
    pub(super) parts: Operand,
    pub(super) norms: Operand,
}

impl Advance<'_> {
    /// Runs the rule on a piece, takes norms, and pulls back what need not wait.
    ///
    /// Bytes per f32 parameter: AdamW 16 read and 12 written, SGD with momentum 12 and 8; an anchor 4 more read;
    /// [`Slot::Displacement`] 4 more written. Pulling back reads and writes what is in cache.
    pub(super) fn advance<C: Real>(&self, piece: &Piece) -> PieceNorms {
        let mut out = PieceNorms::EMPTY;
        let Self { step, tensor, .. } = *self;
        if step.skip {
            return out;
        }
        let mut stages = Stages::<C>::EMPTY;
        for unit in 0..piece.units {
            let range = tensor.elements(piece, unit);
            let mut sum = Lanes::ZERO;
            for range in blocks(range.clone()) {
                out.pulled += self.advance_block::<C>(range, &mut stages, &mut sum);
            }
            let Some(norm) = step.norm else { continue };
            // SAFETY: the slots of these parts, units and rows belong to this piece alone.
            let (part, norm_slot, row_scale) = unsafe {
                let part = piece.part + unit;
                let at = tensor.first_unit + piece.unit + unit;
                let row = piece.unit + unit;
                (
                    self.parts.typed_mut::<f64>(part..part + 1),
                    self.norms.typed_mut::<f64>(at..at + 1),
                    self.operands.state::<f64>(
                        Slot::RowScale,
                        if step.row_scale.is_some() && tensor.parts == 1 { row..row + 1 } else { 0..0 },
                    ),
                )
            };
            let total = sum.total();
            if tensor.parts > 1 {
                part[0] = total;
                continue;
            }
            let norm = finish_norm(norm, total);
            norm_slot[0] = norm;
            if let ([scale], Some(memory)) = (row_scale, step.row_scale) {
                *scale = row_scale_of(memory, step.pull, norm);
            }
            let mut ratio = C::ONE;
            if !step.deferred && norm >= step.pulls_from {
                ratio = step.pull.ratio::<C>(norm);
                if ratio != C::ONE {
                    self.pull_range::<C>(range, ratio, &mut stages);
                }
            }
            out.add(norm, ratio.to_f64());
        }
        if step.keep_after {
            kernels::fence();
        }
        out
    }

    /// Returns how many elements the per-element rule has limited.
    #[inline(always)]
    fn advance_block<C: Real>(&self, range: Range<usize>, stages: &mut Stages<C>, sum: &mut Lanes) -> usize {
        let Self { simd, operands, step, .. } = *self;
        let Stages { weights, grads, anchors, current, before } = stages;
        let mix = Mix {
            clip: C::from_f64(step.mix.clip),
            decay: C::from_f64(step.mix.decay),
            pull: C::from_f64(step.mix.pull),
            lr_decay: C::from_f64(step.mix.lr_decay),
            lr_pull: C::from_f64(step.mix.lr_pull),
            terms: step.mix.terms.round(),
        };
        let pulled = match (step.terms, operands.slot(Slot::Importance)) {
            (true, Some(_)) => pull::WEIGHED,
            (true, None) => pull::TERMS,
            (false, _) if step.mix.pull != 0.0 || step.mix.lr_pull != 0.0 => pull::DISPLACEMENT,
            (false, _) => pull::NONE,
        };
        let displaced = pulled == pull::DISPLACEMENT
            || step.keep_before
            || step.norm.is_some()
            || step.scale_radius.is_some();
        // Without one, terms of the anchor are 0 and get zeros.
        let anchored = displaced || step.terms;
        let mut limited = 0;
        let sink = match step.norm {
            _ if step.keep_before => sink::STORE_OLD,
            Some(Norm::Mars) if step.keep_after => sink::STORE_ABS,
            Some(Norm::Mars) => sink::ABS,
            Some(Norm::L2) => sink::SQUARE,
            None => sink::NONE,
        };
        // SAFETY: every element belongs to one piece, and this phase runs each piece once. Gradient, anchor and variances
        // are never written.
        unsafe {
            let anchor = operands.anchor.filter(|_| displaced || step.terms_anchored);
            let a = if anchored { load(anchor, range.clone(), anchors) } else { &[] };
            let f: &[C] = operands.state::<C>(Slot::Importance, range.clone());
            let d = operands.state::<C>(Slot::Displacement, range.clone());
            operands.with_weight::<C>(range.clone(), weights, |w| {
                match &step.rule {
                    RuleStep::Hold => match sink {
                        sink::SQUARE => kernels::add_norm::<C, true>(simd, w, a, sum),
                        sink::ABS => kernels::add_norm::<C, false>(simd, w, a, sum),
                        // A deferred projection of a tensor without a gradient: nothing to do.
                        _ => {}
                    },
                    RuleStep::AdamW { step: k, amsgrad } => {
                        let g = load(operands.grad, range.clone(), grads);
                        let m = operands.state::<C>(Slot::ExpAvg, range.clone());
                        let v = operands.state::<C>(Slot::ExpAvgSq, range.clone());
                        let v_max = operands.state::<C>(Slot::MaxExpAvgSq, range.clone());
                        let k = adamw_constants(k);
                        choose!(sink, pulled, amsgrad => kernels::adamw::<C>(simd, &mix, &k, w, g, a, f, m, v, v_max, d, sum));
                    }
                    RuleStep::Sgd { step: k, momentum } => {
                        let g = load(operands.grad, range.clone(), grads);
                        let buf = operands.state::<C>(Slot::MomentumBuffer, range.clone());
                        let k = sgd_constants(k);
                        choose!(sink, pulled, momentum => kernels::sgd::<C>(simd, &mix, &k, w, g, a, f, buf, d, sum));
                    }
                }
                if let Some(radius) = step.scale_radius {
                    let (var, anchor_var) = match operands.variance {
                        Some((var, anchor)) => {
                            (load(Some(var), range.clone(), current), load(Some(anchor), range.clone(), before))
                        }
                        None => (&[][..], &[][..]),
                    };
                    limited = kernels::limit_scale(simd, w, a, var, anchor_var, C::from_f64(radius));
                }
            });
        }
        limited
    }

    fn pull_range<C: Real>(&self, range: Range<usize>, ratio: C, stages: &mut Stages<C>) {
        let Self { simd, operands, .. } = *self;
        // The master was filled when the rule ran.
        let operands = &Operands { fresh_master: false, ..*operands };
        for range in blocks(range) {
            // SAFETY: as in `advance_block`.
            unsafe {
                let a = load(operands.anchor, range.clone(), &mut stages.anchors);
                operands.with_weight::<C>(range, &mut stages.weights, |w| kernels::pull(simd, w, a, ratio));
            }
        }
    }

    /// The second pass of tensors that had to wait. Reads 8 and writes 4 bytes per f32 parameter where it pulls back.
    pub(super) fn pull_deferred<C: Real>(&self, piece: &Piece) {
        if !self.step.deferred {
            return;
        }
        let mut stages = Stages::<C>::EMPTY;
        for unit in 0..piece.units {
            let at = self.tensor.first_unit + piece.unit + unit;
            // SAFETY: nobody writes norms in this phase.
            let norm = unsafe { self.norms.slice(at..at + 1) }.get(0);
            let ratio = self.step.pull.ratio::<C>(norm);
            if ratio != C::ONE && norm < self.step.waited_below {
                self.pull_range::<C>(self.tensor.elements(piece, unit), ratio, &mut stages);
            }
        }
    }
}

/// Room to convert blocks of every operand.
struct Stages<C> {
    weights: Stage<C>,
    grads: Stage<C>,
    anchors: Stage<C>,
    current: Stage<C>,
    before: Stage<C>,
}

impl<C: Real> Stages<C> {
    const EMPTY: Self = Self {
        weights: Stage::EMPTY,
        grads: Stage::EMPTY,
        anchors: Stage::EMPTY,
        current: Stage::EMPTY,
        before: Stage::EMPTY,
    };
}

fn adamw_constants<C: Real>(k: &AdamWStep<f64>) -> AdamWStep<C> {
    AdamWStep {
        beta1: C::from_f64(k.beta1),
        one_minus_beta1: C::from_f64(k.one_minus_beta1),
        beta2: C::from_f64(k.beta2),
        one_minus_beta2: C::from_f64(k.one_minus_beta2),
        step_size: C::from_f64(k.step_size),
        root_scale: C::from_f64(k.root_scale),
        eps: C::from_f64(k.eps),
    }
}

fn sgd_constants<C: Real>(k: &SgdStep<f64>) -> SgdStep<C> {
    SgdStep {
        keep: C::from_f64(k.keep),
        take: C::from_f64(k.take),
        lr_grad: C::from_f64(k.lr_grad),
        lr_buf: C::from_f64(k.lr_buf),
    }
}
