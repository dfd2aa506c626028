//! The two types in which layers compute, with the functions that their inner loops need.

use tpgm_core::Real;

/// Partial sums per reduction. Part of the result: a sum is taken over this many lanes on every instruction set.
const LANES: usize = 16;

/// Square root of 2 pi, inverted: the density of a standard normal variable at 0.
const FRAC_1_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

/// f32 or f64 arithmetic. The functions of f32 have no branch and call no library, so loops over them vectorize.
pub(super) trait Float: Real {
    const NEG_INFINITY: Self;
    /// e^x; relative error of f32 below 2 units in the last place.
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn is_nan(self) -> bool;
    /// Distribution function and density of a standard normal variable at x. The absolute error of f32 is below
    /// 2e-7, and the distribution function keeps its relative precision far into the lower tail.
    fn normal(self) -> (Self, Self);
}

impl Float for f64 {
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        f64::ln(self)
    }

    #[inline(always)]
    fn is_nan(self) -> bool {
        f64::is_nan(self)
    }

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let erf = candle_core::cpu::erf::erf_f64(self * std::f64::consts::FRAC_1_SQRT_2);
        (0.5 + 0.5 * erf, FRAC_1_SQRT_2PI * f64::exp(-0.5 * self * self))
    }
}

impl Float for f32 {
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    /// 2^n e^r with |r| <= ln(2) / 2, where e^r is its Taylor polynomial up to r^7 (remainder 5e-9).
    #[inline(always)]
    fn exp(self) -> Self {
        // Beyond these bounds the result is infinite, or rounds to zero. A NaN passes both comparisons.
        let x = if self > 89.0 { 89.0 } else { self };
        let x = if x < -104.0 { -104.0 } else { x };
        // Adding 1.5 * 2^23 rounds to an integer, and leaves that integer in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let power = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        // ln(2) in two parts, the first short enough for an exact product with n.
        let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
        let mut p = 1.0 / 5040.0;
        p = p * r + 1.0 / 720.0;
        p = p * r + 1.0 / 120.0;
        p = p * r + 1.0 / 24.0;
        p = p * r + 1.0 / 6.0;
        p = p * r + 0.5;
        let e = p * (r * r) + r + 1.0;
        // In two factors, as 2^n itself may be subnormal or too large.
        let half = power >> 1;
        let scale = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        e * scale(half) * scale(power.wrapping_sub(half))
    }

    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }

    #[inline(always)]
    fn is_nan(self) -> bool {
        f32::is_nan(self)
    }

    /// With a = |x| and t = 1 / (1 + 0.35 a), the upper tail at a is e^(-a^2 / 2) t P(t). P interpolates the exact
    /// quotient at the Chebyshev nodes of t for a in 0..14.5 (relative error 4e-8); further out the tail is zero in f32.
    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        const P: [f32; 9] = [
            0.139_618_64,
            0.139_914_33,
            0.119_425_096,
            0.107_212_5,
            -0.027_321_91,
            0.165_510_16,
            -0.261_410_53,
            0.146_784,
            -0.029_732_276,
        ];
        let a = f32::abs(self);
        let t = 1.0 / (1.0 + 0.35 * a);
        let e = Float::exp(-0.5 * a * a);
        let mut p = P[8];
        for i in 0..8 {
            p = p * t + P[7 - i];
        }
        let tail = e * (t * p);
        let cdf = if self > 0.0 { 1.0 - tail } else { tail };
        (cdf, FRAC_1_SQRT_2PI as f32 * e)
    }
}

/// 1 / (1 + e^-x), and its slope s (1 - s) without cancellation.
#[inline(always)]
pub(super) fn logistic<C: Float>(x: C) -> (C, C) {
    // e^-|x| does not overflow.
    let e = (-x.abs()).exp();
    let r = C::ONE / (C::ONE + e);
    let s = if x < C::ZERO { e * r } else { r };
    (s, e * r * r)
}

/// Sum over a slice.
#[inline(always)]
pub(super) fn sum<C: Float>(a: &[C], f: impl Fn(C) -> C) -> C {
    let (chunks, tail) = a.as_chunks::<LANES>();
    let mut lanes = [C::ZERO; LANES];
    for chunk in chunks {
        for (lane, &a) in lanes.iter_mut().zip(chunk) {
            *lane += f(a);
        }
    }
    for (lane, &a) in lanes.iter_mut().zip(tail) {
        *lane += f(a);
    }
    total(lanes)
}

/// Sum over two slices of one length.
#[inline(always)]
pub(super) fn sum2<C: Float>(a: &[C], b: &[C], f: impl Fn(C, C) -> C) -> C {
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    let mut lanes = [C::ZERO; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes[i] += f(a, b);
    }
    total(lanes)
}

/// The largest element; minus infinity without any. NaN is passed over.
#[inline(always)]
pub(super) fn largest<C: Float>(a: &[C]) -> C {
    let (chunks, tail) = a.as_chunks::<LANES>();
    let mut lanes = [C::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &a) in lanes.iter_mut().zip(chunk) {
            *lane = if a > *lane { a } else { *lane };
        }
    }
    lanes.iter().chain(tail).fold(C::NEG_INFINITY, |max, &a| if a > max { a } else { max })
}

/// Adds up the lanes as a tree of fixed shape.
#[inline(always)]
fn total<C: Float>(mut lanes: [C; LANES]) -> C {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            let upper = lanes[i + width];
            lanes[i] += upper;
        }
        width /= 2;
    }
    lanes[0]
}

/// Defines a function over slices of [`Float`], compiled twice on x86-64: for the baseline, and for AVX2. Neither
/// contracts `a * b + c`, so both give the same bits.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$c:ident>($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        #[inline]
        $vis fn $name<$c: $crate::layers::float::Float>($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body<$c: $crate::layers::float::Float>($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2<$c: $crate::layers::float::Float>($($arg: $type),*) $(-> $result)? {
                    body::<$c>($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the line above found AVX2 on this CPU.
                    return unsafe { avx2::<$c>($($arg),*) };
                }
            }
            body::<$c>($($arg),*)
        }
    };
}
pub(super) use vectorized;

vectorized! {
    /// `z = x + y`.
    pub(super) fn add<C>(x: &[C], y: &[C], z: &mut [C]) {
        for ((z, &x), &y) in z.iter_mut().zip(x).zip(y) {
            *z = x + y;
        }
    }
}

vectorized! {
    /// Adds `x` to `sum`.
    pub(super) fn accumulate<C>(x: &[C], sum: &mut [C]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points over the whole range of f32, dense around zero.
    fn points() -> impl Iterator<Item = f32> {
        (-300_000..=300_000).map(|i| i as f32 * 5e-4)
    }

    #[test]
    fn exp_of_f32_is_within_two_units() {
        for x in points() {
            let exact = f64::exp(f64::from(x));
            let got = Float::exp(x);
            if exact > f64::from(f32::MAX) * (1.0 + 1e-7) {
                assert!(got.is_infinite(), "exp({x}) = {got}");
                continue;
            }
            // Half a unit of the subnormal range where the result lies there.
            let tolerance = (exact * 2.4e-7).max(1.5e-45);
            assert!((f64::from(got) - exact).abs() <= tolerance, "exp({x}) = {got:e}, not {exact:e}");
        }
    }

    #[test]
    fn exp_of_special_values() {
        assert_eq!(Float::exp(0.0f32), 1.0);
        assert_eq!(Float::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Float::exp(f32::INFINITY), f32::INFINITY);
        assert!(Float::exp(f32::NAN).is_nan());
    }

    #[test]
    fn normal_of_f32_follows_that_of_f64() {
        for x in points().filter(|x| x.abs() < 12.0) {
            let (cdf, density) = Float::normal(x);
            let z = f64::from(x);
            let exact = 0.5 * (1.0 + candle_core::cpu::erf::erf_f64(z * std::f64::consts::FRAC_1_SQRT_2));
            assert!((f64::from(cdf) - exact).abs() < 2e-7, "cdf({x}) = {cdf:e}, not {exact:e}");
            let exact = f64::exp(-0.5 * z * z) / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(density) - exact).abs() < 1e-7, "density({x}) = {density:e}, not {exact:e}");
        }
        // Values of the tail from tables.
        for (x, exact) in [(-4.0f32, 3.167_124_183e-5f64), (-5.0, 2.866_515_719e-7), (-6.0, 9.865_876_45e-10)]
        {
            let cdf = f64::from(Float::normal(x).0);
            assert!((cdf / exact - 1.0).abs() < 1e-6, "cdf({x}) = {cdf:e}, not {exact:e}");
        }
        assert_eq!(Float::normal(f32::INFINITY), (1.0, 0.0));
        assert_eq!(Float::normal(f32::NEG_INFINITY), (0.0, 0.0));
        assert!(Float::normal(f32::NAN).0.is_nan());
    }

    #[test]
    fn the_logistic_has_a_slope_without_cancellation() {
        for x in [-80.0f64, -20.0, -1.0, 0.0, 0.5, 20.0, 80.0] {
            let (s, slope) = logistic(x as f32);
            let e = f64::exp(-x.abs());
            let exact = e / ((1.0 + e) * (1.0 + e));
            assert!((f64::from(slope) / exact - 1.0).abs() < 1e-6, "slope at {x}: {slope:e}, not {exact:e}");
            let exact = 1.0 / (1.0 + f64::exp(-x));
            assert!((f64::from(s) / exact - 1.0).abs() < 1e-6, "logistic({x}) = {s:e}, not {exact:e}");
        }
    }

    #[test]
    fn reductions_cover_the_tail() {
        for n in [0usize, 1, 15, 16, 17, 100] {
            let a: Vec<f64> = (0..n).map(|i| i as f64 + 1.0).collect();
            assert_eq!(sum(&a, |a| a), (n * (n + 1)) as f64 / 2.0);
            assert_eq!(sum2(&a, &a, |a, b| a - b + 1.0), n as f64);
            assert_eq!(largest(&a), if n == 0 { f64::NEG_INFINITY } else { n as f64 });
        }
    }
}
