//! The inner loops, on blocks of compute type. Everything that touches every parameter is in this file.

// Each slice has to be a parameter of its own (see `simd::kernel`).
#![allow(clippy::too_many_arguments)]

use std::ops::Range;

use super::lanes::{Lanes, fetch_ahead};
use super::simd::kernel;
use crate::element::Real;

/// How gradient, decay and anchor enter a step, in compute type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mix<C> {
    /// Factor on the gradient.
    pub(super) clip: C,
    /// Coupled weight decay: added to the gradient times the weight.
    pub(super) decay: C,
    /// Coupled pull: added to the gradient times the displacement.
    pub(super) pull: C,
    /// Decoupled weight decay times learning rate: subtracted times the weight.
    pub(super) lr_decay: C,
    /// Decoupled pull times learning rate: subtracted times the displacement.
    pub(super) lr_pull: C,
    /// What [`pull::TERMS`] and [`pull::WEIGHED`] add.
    pub(super) terms: Terms<C>,
}

/// A pull with absolute values or an importance, in compute type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<C> {
    /// Factors on displacement and its sign, weight and its sign.
    pub(super) anchor_l2: C,
    pub(super) anchor_l1: C,
    pub(super) zero_l2: C,
    pub(super) zero_l1: C,
    /// 1 if the pull is coupled, else 0.
    pub(super) to_grad: C,
    /// The learning rate if the pull is decoupled, else 0.
    pub(super) to_aside: C,
}

impl Terms<f64> {
    pub(super) const NONE: Self =
        Self { anchor_l2: 0.0, anchor_l1: 0.0, zero_l2: 0.0, zero_l1: 0.0, to_grad: 0.0, to_aside: 0.0 };

    /// In compute type.
    pub(super) fn round<C: Real>(&self) -> Terms<C> {
        Terms {
            anchor_l2: C::from_f64(self.anchor_l2),
            anchor_l1: C::from_f64(self.anchor_l1),
            zero_l2: C::from_f64(self.zero_l2),
            zero_l1: C::from_f64(self.zero_l1),
            to_grad: C::from_f64(self.to_grad),
            to_aside: C::from_f64(self.to_aside),
        }
    }
}

/// What pulls a step. A constant parameter of the kernels.
pub(super) mod pull {
    /// Nothing.
    pub(in crate::cpu) const NONE: u8 = 0;
    /// `Mix::pull` and `Mix::lr_pull`, times the displacement.
    pub(in crate::cpu) const DISPLACEMENT: u8 = 1;
    /// `Mix::terms`.
    pub(in crate::cpu) const TERMS: u8 = 2;
    /// `Mix::terms` times the importance.
    pub(in crate::cpu) const WEIGHED: u8 = 3;
}

/// The sign of `x`, 0 for 0. Two selects: no branch.
#[inline(always)]
fn sign<C: Real>(x: C) -> C {
    let up = if x > C::ZERO { C::ONE } else { C::ZERO };
    let down = if x < C::ZERO { C::ONE } else { C::ZERO };
    up - down
}

/// Constants of an AdamW step, in compute type.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdamWStep<C> {
    pub(super) beta1: C,
    pub(super) one_minus_beta1: C,
    pub(super) beta2: C,
    pub(super) one_minus_beta2: C,
    /// `lr / (1 - beta1^t)`.
    pub(super) step_size: C,
    /// `1 / sqrt(1 - beta2^t)`.
    pub(super) root_scale: C,
    pub(super) eps: C,
}

/// Constants of an SGD step, in compute type: `buf = keep * buf + take * d; W -= lr_grad * d + lr_buf * buf`.
#[derive(Debug, Clone, Copy)]
pub(super) struct SgdStep<C> {
    pub(super) keep: C,
    pub(super) take: C,
    pub(super) lr_grad: C,
    pub(super) lr_buf: C,
}

/// The gradient as the rule sees it, what is subtracted from the weight with the rule's update, and after it.
#[inline(always)]
fn mix<C: Real, const PULL: u8>(mix: &Mix<C>, w: C, g: C, a: C, importance: C) -> (C, C, C) {
    let (grad, aside) = (mix.clip * g + mix.decay * w, mix.lr_decay * w);
    let displacement = w - a;
    match PULL {
        pull::NONE => (grad, aside, C::ZERO),
        pull::DISPLACEMENT => (grad + mix.pull * displacement, aside + mix.lr_pull * displacement, C::ZERO),
        _ => {
            let k = &mix.terms;
            let to_anchor = k.anchor_l2 * displacement + k.anchor_l1 * sign(displacement);
            let to_zero = k.zero_l2 * w + k.zero_l1 * sign(w);
            let pulled = importance * (to_anchor + to_zero);
            // In the order that suits the kernels of `tpgm-cuda`.
            let grad = mix.clip * g + k.to_grad * pulled + mix.decay * w;
            (grad, aside, k.to_aside * pulled)
        }
    }
}

/// What a rule kernel does with the displacement, beside updating the weights. A constant parameter of the kernels.
pub(super) mod sink {
    /// Nothing.
    pub(in crate::cpu) const NONE: u8 = 0;
    /// Adds `|w - a|` of the new weights.
    pub(in crate::cpu) const ABS: u8 = 1;
    /// Adds `(w - a)^2` of the new weights.
    pub(in crate::cpu) const SQUARE: u8 = 2;
    /// Stores `w - a` of the new weights in `d`, and adds `|w - a|`.
    pub(in crate::cpu) const STORE_ABS: u8 = 3;
    /// Stores `w - a` of the old weights in `d`.
    pub(in crate::cpu) const STORE_OLD: u8 = 4;
}

/// Elements whose rule and displacement are computed together. Measured: taking the displacement in a loop of its own
/// over a block costs 15 % more, because its two streams then come from memory alone instead of beside the rule's four;
/// tiles of 64 cost a step of FTP up to 10 % more.
const TILE: usize = 256;

/// The part of a slice that belongs to a tile, or nothing of a slice that is not used.
#[inline(always)]
fn part<C>(used: bool, slice: &[C], tile: Range<usize>) -> &[C] {
    if used { &slice[tile] } else { &[] }
}

/// As [`part`], to be written.
#[inline(always)]
fn part_mut<C>(used: bool, slice: &mut [C], tile: Range<usize>) -> &mut [C] {
    if used { &mut slice[tile] } else { &mut [] }
}

/// Copies past the caches: the destination is not read before the next step, and a plain store would first fetch what it
/// overwrites, 4 more bytes per parameter. [`fence`] must follow before another thread reads it.
#[inline(always)]
fn stream<C: Real>(to: &mut [C], from: &[C]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        let bytes = size_of_val(from);
        let (source, target) = (from.as_ptr().cast::<__m128i>(), to.as_mut_ptr().cast::<__m128i>());
        if to.len() == from.len() && bytes.is_multiple_of(16) && target.is_aligned() {
            let vectors = bytes / 16;
            // SAFETY: both slices have `bytes` bytes, the target is aligned to 16, and SSE2 is part of x86-64.
            let copy = |i| unsafe { _mm_stream_si128(target.add(i), _mm_loadu_si128(source.add(i))) };
            for line in 0..vectors / 4 {
                (4 * line..4 * line + 4).for_each(copy);
            }
            (vectors & !3..vectors).for_each(copy);
            return;
        }
    }
    to.copy_from_slice(from);
}

/// Orders the streaming stores of this thread before everything that it does next.
#[inline(always)]
pub(super) fn fence() {
    // SAFETY: SSE is part of x86-64.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// Runs `rule(i, old weight, anchor) -> new weight` over a tile and does what the sink says.
#[inline(always)]
fn run_tile<C: Real, const PULL: u8, const SINK: u8>(
    w: &mut [C],
    a: &[C],
    d: &mut [C],
    sum: &mut Lanes,
    scratch: &mut [C; TILE],
    mut rule: impl FnMut(usize, C, C) -> C,
) {
    let n = w.len();
    let reads = PULL != pull::NONE || SINK != sink::NONE;
    let stores = SINK == sink::STORE_ABS || SINK == sink::STORE_OLD;
    let (a, d) = (part(reads, a, 0..n), part_mut(stores, d, 0..n));
    let scratch = &mut scratch[..n];
    for i in 0..n {
        let old = w[i];
        let anchor = if reads { a[i] } else { C::ZERO };
        let new = rule(i, old, anchor);
        w[i] = new;
        match SINK {
            sink::STORE_OLD => scratch[i] = old - anchor,
            sink::STORE_ABS | sink::ABS | sink::SQUARE => scratch[i] = new - anchor,
            _ => {}
        }
    }
    match SINK {
        sink::ABS | sink::STORE_ABS => {
            let mut tile = Lanes::ZERO;
            tile.add1(scratch, C::abs);
            sum.add_tile(tile);
        }
        sink::SQUARE => sum.add1(scratch, |d| d.to_f64() * d.to_f64()),
        _ => {}
    }
    match SINK {
        sink::STORE_ABS => stream(d, scratch),
        sink::STORE_OLD => d.copy_from_slice(scratch),
        _ => {}
    }
}

/// Cuts `0..n` into tiles.
#[inline(always)]
fn tiles(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(TILE).map(move |start| start..n.min(start + TILE))
}

kernel! {
    /// AdamW. Reads 16 and writes 12 bytes per f32 parameter; with AMSGrad 4 more each; 4 more read if `PULL` or for a
    /// sink, and 4 if `WEIGHED`; 4 more written for a sink that stores. `a`, `f`, `d` and `v_max` are empty when not used.
    fn adamw[C: Real, const PULL: u8, const AMSGRAD: bool, const SINK: u8][C, PULL, AMSGRAD, SINK](
        mixed: &Mix<C>, k: &AdamWStep<C>, w: &mut [C], g: &[C], a: &[C], f: &[C], m: &mut [C], v: &mut [C], v_max: &mut [C],
        d: &mut [C], sum: &mut Lanes,
    ) {
        let mut scratch = [C::ZERO; TILE];
        for tile in tiles(w.len()) {
            let n = tile.len();
            let (g, m, v) = (&g[tile.clone()], &mut m[tile.clone()], &mut v[tile.clone()]);
            let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
            let v_max = part_mut(AMSGRAD, v_max, tile.clone());
            let a = part(PULL != pull::NONE || SINK != sink::NONE, a, tile.clone());
            let f = part(PULL == pull::WEIGHED, f, tile.clone());
            let d = part_mut(SINK == sink::STORE_ABS || SINK == sink::STORE_OLD, d, tile.clone());
            run_tile::<C, PULL, SINK>(&mut w[tile], a, d, sum, &mut scratch, |i, w, a| {
                let f = if PULL == pull::WEIGHED { f[i] } else { C::ONE };
                let (grad, aside, after) = mix::<C, PULL>(mixed, w, g[i], a, f);
                let first = k.beta1 * m[i] + k.one_minus_beta1 * grad;
                let mut second = k.beta2 * v[i] + k.one_minus_beta2 * grad * grad;
                m[i] = first;
                v[i] = second;
                if AMSGRAD {
                    // Not `max`: a select compiles to one instruction, and NaN cannot occur.
                    second = if second > v_max[i] { second } else { v_max[i] };
                    v_max[i] = second;
                }
                w - (k.step_size * first / (second.sqrt() * k.root_scale + k.eps) + aside) - after
            });
        }
    }
}

kernel! {
    /// SGD. With momentum reads 12 and writes 8 bytes per f32 parameter, without reads 8 and writes 4; anchor and sinks as
    /// for AdamW. `a`, `f`, `d` and `buf` are empty when not used.
    fn sgd[C: Real, const PULL: u8, const MOMENTUM: bool, const SINK: u8][C, PULL, MOMENTUM, SINK](
        mixed: &Mix<C>, k: &SgdStep<C>, w: &mut [C], g: &[C], a: &[C], f: &[C], buf: &mut [C], d: &mut [C], sum: &mut Lanes,
    ) {
        let mut scratch = [C::ZERO; TILE];
        for tile in tiles(w.len()) {
            let g = &g[tile.clone()][..tile.len()];
            let buf = part_mut(MOMENTUM, buf, tile.clone());
            let a = part(PULL != pull::NONE || SINK != sink::NONE, a, tile.clone());
            let f = part(PULL == pull::WEIGHED, f, tile.clone());
            let d = part_mut(SINK == sink::STORE_ABS || SINK == sink::STORE_OLD, d, tile.clone());
            run_tile::<C, PULL, SINK>(&mut w[tile], a, d, sum, &mut scratch, |i, w, a| {
                let f = if PULL == pull::WEIGHED { f[i] } else { C::ONE };
                let (grad, aside, after) = mix::<C, PULL>(mixed, w, g[i], a, f);
                let mut update = k.lr_grad * grad + aside;
                if MOMENTUM {
                    buf[i] = k.keep * buf[i] + k.take * grad;
                    update += k.lr_buf * buf[i];
                }
                w - update - after
            });
        }
    }
}

kernel! {
    /// Adds `|w - a|`, or `(w - a)^2` if `SQUARED`.
    fn add_norm[C: Real, const SQUARED: bool][C, SQUARED](w: &[C], a: &[C], sum: &mut Lanes) {
        if SQUARED {
            sum.add2(w, a, |w, a| (w - a).to_f64() * (w - a).to_f64());
        } else {
            for range in tiles(w.len()) {
                let mut tile = Lanes::ZERO;
                tile.add2(&w[range.clone()], &a[range], |w, a| (w - a).abs());
                sum.add_tile(tile);
            }
        }
    }
}

kernel! {
    /// `w = a + ratio * (w - a)`.
    fn pull[C: Real][C](w: &mut [C], a: &[C], ratio: C) {
        let n = w.len();
        let a = &a[..n];
        for i in 0..n {
            w[i] = a[i] + ratio * (w[i] - a[i]);
        }
    }
}

kernel! {
    /// `w = a + ratio * (from - a)`, or `from` itself where `ratio` is 1.
    fn project[C: Real][C](w: &mut [C], from: &[C], a: &[C], ratio: C) {
        let n = w.len();
        let (from, a) = (&from[..n], &a[..n]);
        if ratio == C::ONE {
            w.copy_from_slice(from);
        } else {
            for i in 0..n {
                w[i] = a[i] + ratio * (from[i] - a[i]);
            }
        }
    }
}

kernel! {
    /// The per-element rule for normalization scales: limits `w / s - a / s0` to `[-radius, radius]`, with
    /// `s = sqrt(var + 1e-6)`. Without variances (empty slices) `s = s0 = 1`. Returns how many elements were limited.
    fn limit_scale[C: Real][C](w: &mut [C], a: &[C], var: &[C], anchor_var: &[C], radius: C) -> usize {
        let eps = C::from_f64(1e-6);
        let mut limited = 0;
        for i in 0..w.len() {
            let (s, s0) = if var.is_empty() {
                (C::ONE, C::ONE)
            } else {
                ((var[i] + eps).sqrt(), (anchor_var[i] + eps).sqrt())
            };
            let t = w[i] / s - a[i] / s0;
            if t.abs() > radius {
                w[i] = (if t > C::ZERO { radius } else { -radius } + a[i] / s0) * s;
                limited += 1;
            }
        }
        limited
    }
}

kernel! {
    /// True if every element is finite.
    fn all_finite[C: Real][C](x: &[C]) -> bool {
        // x * 0 is 0 for finite x, else NaN: no branch.
        let (blocks, rest) = x.as_chunks::<16>();
        let mut bad = [C::ZERO; 16];
        for x in blocks {
            fetch_ahead(x);
            for lane in 0..16 {
                bad[lane] += x[lane] * C::ZERO;
            }
        }
        for (bad, &x) in bad.iter_mut().zip(rest) {
            *bad += x * C::ZERO;
        }
        bad.iter().all(|&x| x == C::ZERO)
    }
}

kernel! {
    /// Adds `x * y`.
    fn add_dot[C: Real][C](x: &[C], y: &[C], sum: &mut Lanes) {
        sum.add2(x, y, |x, y| x.to_f64() * y.to_f64());
    }
}

kernel! {
    /// Adds `g * (w - a)`.
    fn add_dot_displacement[C: Real][C](g: &[C], w: &[C], a: &[C], sum: &mut Lanes) {
        sum.add3(g, w, a, |g, w, a| g.to_f64() * (w - a).to_f64());
    }
}

kernel! {
    /// Adds `g * (w - a)` and `(w - a)^2`.
    fn add_dot_and_norm[C: Real][C](g: &[C], w: &[C], a: &[C], dot: &mut Lanes, norm: &mut Lanes) {
        dot.add3_with(norm, g, w, a, |g, w, a| {
            let d = (w - a).to_f64();
            (g.to_f64() * d, d * d)
        });
    }
}

kernel! {
    /// Adds `g * x` and `g^2`.
    fn add_dot_and_square[C: Real][C](g: &[C], x: &[C], dot: &mut Lanes, square: &mut Lanes) {
        dot.add3_with(square, g, x, x, |g, x, _| {
            let g = g.to_f64();
            (g * x.to_f64(), g * g)
        });
    }
}

kernel! {
    /// `f = keep * f + take * F` with the Fisher weights `F = scale * g^2`. In f64, where no square is lost.
    fn average_fisher[C: Real][C](f: &mut [C], g: &[C], scale: f64, keep: f64, take: f64) {
        let n = f.len();
        let g = &g[..n];
        for i in 0..n {
            let g = g[i].to_f64();
            f[i] = C::from_f64(keep * f[i].to_f64() + take * (g * g * scale));
        }
    }
}

kernel! {
    /// `f = 1` where `scale * g^2` reaches the threshold.
    fn open_gates[C: Real][C](f: &mut [C], g: &[C], scale: f64, threshold: f64) {
        let n = f.len();
        let g = &g[..n];
        for i in 0..n {
            let g = g[i].to_f64();
            f[i] = if g * g * scale >= threshold { C::ONE } else { f[i] };
        }
    }
}

kernel! {
    /// `target = keep * target + take * source`.
    fn blend[C: Real][C](target: &mut [C], source: &[C], keep: C, take: C) {
        let n = target.len();
        let source = &source[..n];
        for i in 0..n {
            target[i] = keep * target[i] + take * source[i];
        }
    }
}
