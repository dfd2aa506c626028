//! Sums with a fixed number of lanes and a fixed order of adding them up.

use crate::element::Real;

/// Partial sums of one reduction. Element `i` of a unit goes to lane `i % LANES`, whatever the vector width.
///
/// Sums are in f64; only those of a tile, see [`add_tile`](Lanes::add_tile), are in compute type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes<S = f64>([S; LANES]);

/// 16: four AVX2 accumulators of f64, enough to hide the latency of an addition.
pub(super) const LANES: usize = 16;

/// Asks for what a reduction reads one page later: the hardware's own prefetch stops at each page. Measured where a pass only
/// reads: about 10 % of the L2 projection, 5 % of AdamW with its check. Sums of three streams gained nothing, so they do
/// without.
#[inline(always)]
pub(super) fn fetch_ahead<T>(block: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const PAGE: usize = 4096;
        // SAFETY: SSE is part of x86-64, and a prefetch neither faults nor changes memory, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().cast::<i8>().wrapping_add(PAGE)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = block;
}

impl<S: Real> Lanes<S> {
    pub(super) const ZERO: Self = Self([S::ZERO; LANES]);

    /// Adds `f(x)` of every element.
    #[inline(always)]
    pub(super) fn add1<T: Copy>(&mut self, x: &[T], f: impl Fn(T) -> S) {
        let mut lanes = self.0;
        let (blocks, rest) = x.as_chunks::<LANES>();
        for x in blocks {
            for lane in 0..LANES {
                lanes[lane] += f(x[lane]);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += f(*x);
        }
        self.0 = lanes;
    }

    /// Adds `f(x, y)` of every pair of elements.
    #[inline(always)]
    pub(super) fn add2<T: Copy, U: Copy>(&mut self, x: &[T], y: &[U], f: impl Fn(T, U) -> S) {
        let mut lanes = self.0;
        let (x_blocks, x_rest) = x.as_chunks::<LANES>();
        let (y_blocks, y_rest) = y[..x.len()].as_chunks::<LANES>();
        for (x, y) in x_blocks.iter().zip(y_blocks) {
            fetch_ahead(x);
            fetch_ahead(y);
            for lane in 0..LANES {
                lanes[lane] += f(x[lane], y[lane]);
            }
        }
        for ((lane, x), y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
            *lane += f(*x, *y);
        }
        self.0 = lanes;
    }

    /// Adds `f(x, y, z)` of every triple of elements.
    #[inline(always)]
    pub(super) fn add3<T: Copy>(&mut self, x: &[T], y: &[T], z: &[T], f: impl Fn(T, T, T) -> S) {
        let mut lanes = self.0;
        let (x_blocks, x_rest) = x.as_chunks::<LANES>();
        let (y_blocks, y_rest) = y[..x.len()].as_chunks::<LANES>();
        let (z_blocks, z_rest) = z[..x.len()].as_chunks::<LANES>();
        for ((x, y), z) in x_blocks.iter().zip(y_blocks).zip(z_blocks) {
            for lane in 0..LANES {
                lanes[lane] += f(x[lane], y[lane], z[lane]);
            }
        }
        for (((lane, x), y), z) in lanes.iter_mut().zip(x_rest).zip(y_rest).zip(z_rest) {
            *lane += f(*x, *y, *z);
        }
        self.0 = lanes;
    }

    /// Adds the two values of `f(x, y, z)` to `self` and `other`, of every triple of elements.
    #[inline(always)]
    pub(super) fn add3_with<T: Copy>(
        &mut self,
        other: &mut Self,
        x: &[T],
        y: &[T],
        z: &[T],
        f: impl Fn(T, T, T) -> (S, S),
    ) {
        let (mut first, mut second) = (self.0, other.0);
        let (x_blocks, x_rest) = x.as_chunks::<LANES>();
        let (y_blocks, y_rest) = y[..x.len()].as_chunks::<LANES>();
        let (z_blocks, z_rest) = z[..x.len()].as_chunks::<LANES>();
        let rest = x_rest.iter().zip(y_rest).zip(z_rest);
        for ((x, y), z) in x_blocks.iter().zip(y_blocks).zip(z_blocks) {
            for lane in 0..LANES {
                let (a, b) = f(x[lane], y[lane], z[lane]);
                first[lane] += a;
                second[lane] += b;
            }
        }
        for (lane, ((x, y), z)) in rest.enumerate() {
            let (a, b) = f(*x, *y, *z);
            first[lane] += a;
            second[lane] += b;
        }
        (self.0, other.0) = (first, second);
    }
}

impl Lanes {
    /// Adds the sums of a few elements per lane, values of one sign that were added up in their own type, which takes one
    /// conversion instead of one each. Nothing cancels, so the sum is off by no more than one rounding of that type per
    /// addition, relative to itself; 16 values of f32 overflow where each is beyond 2e37.
    #[inline(always)]
    pub(super) fn add_tile<C: Real>(&mut self, tile: Lanes<C>) {
        self.add1(&tile.0, C::to_f64);
    }

    /// The sum of all lanes, added up as a binary tree.
    #[inline(always)]
    pub(super) fn total(self) -> f64 {
        let mut lanes = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}
