//! Conversions between element types that the `half` crate rounds twice or does not vectorize.

use half::{bf16, f16};

/// f64 to f32, rounded to odd: a value that f32 does not represent goes to whichever of its two neighbors has an odd last
/// bit.
///
/// Rounding that to nearest even in a type with at least two bits less is rounding the f64 once: the odd bit keeps the
/// result off the ties of the narrower type, and on the right side of them (Boldo and Melquiond, 2008). f16 and bf16 are
/// that much coarser than f32 everywhere, among subnormals too.
#[inline(always)]
fn round_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let (wide, bits) = (f64::from(nearest), nearest.to_bits());
    // NaN stays NaN: it is unequal to itself, but never above, and setting a bit does not make it finite.
    let inexact = u32::from(wide != x);
    let away_from_zero = u32::from(wide.abs() > x.abs());
    f32::from_bits((bits - away_from_zero) | inexact)
}

/// Rounds to nearest even. `f16::from_f64` drops the lower half of the significand first.
#[inline(always)]
pub(super) fn f64_to_f16(x: f64) -> f16 {
    f16::from_f32(round_to_odd(x))
}

/// Rounds to nearest even. `bf16::from_f64` drops the lower half of the significand first.
#[inline(always)]
pub(super) fn f64_to_bf16(x: f64) -> bf16 {
    f32_to_bf16(round_to_odd(x))
}

/// Rounds to nearest even; NaN becomes quiet and keeps its sign and upper payload. No branch, so loops vectorize.
#[inline(always)]
fn f32_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    // Half a unit of the result, less the tie that goes down to an even result. Carries into the exponent are right, up
    // to infinity; only a NaN may overflow.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 1 << 22;
    bf16::from_bits(((if x.is_nan() { quiet } else { rounded }) >> 16) as u16)
}

/// Widens every element; NaN becomes quiet.
pub(super) fn widen_bf16(src: &[bf16], dst: &mut [f32]) {
    for (d, s) in dst.iter_mut().zip(src) {
        let bits = s.to_bits();
        let quiet = if bits & 0x7fff > 0x7f80 { 1 << 6 } else { 0 };
        *d = f32::from_bits(u32::from(bits | quiet) << 16);
    }
}

/// Rounds every element to nearest even; NaN becomes quiet.
pub(super) fn narrow_bf16(src: &[f32], dst: &mut [bf16]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = f32_to_bf16(*s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::slice::HalfFloatSliceExt;
    use proptest::prelude::*;

    /// A 16-bit floating point type, given by what its bit patterns mean.
    struct Format {
        name: &'static str,
        /// Bits of positive infinity.
        infinity: u16,
        /// The power of two at which finite values end.
        end: f64,
        value: fn(u16) -> f64,
        round: fn(f64) -> u16,
    }

    const FORMATS: [Format; 2] = [
        Format {
            name: "f16",
            infinity: 0x7c00,
            end: 65536.0,
            value: |bits| f16::from_bits(bits).to_f64(),
            round: |x| f64_to_f16(x).to_bits(),
        },
        Format {
            name: "bf16",
            infinity: 0x7f80,
            end: 340_282_366_920_938_463_463_374_607_431_768_211_456.0, // 2^128
            value: |bits| bf16::from_bits(bits).to_f64(),
            round: |x| f64_to_bf16(x).to_bits(),
        },
    ];

    impl Format {
        /// The value of a positive pattern; of infinity the one that it stands for in rounding.
        fn positive(&self, bits: u16) -> f64 {
            if bits == self.infinity { self.end } else { (self.value)(bits) }
        }

        /// The nearest pattern: all neighbors of a first guess are tried. Differences of nearby f64 are exact here.
        fn nearest(&self, x: f64) -> u16 {
            let magnitude = x.abs().min(self.end);
            let above = (0..=self.infinity)
                .collect::<Vec<_>>()
                .partition_point(|&bits| self.positive(bits) < magnitude);
            let candidates = (above as u16).saturating_sub(2)..=(above as u16 + 2).min(self.infinity);
            let distance = |bits: &u16| ((self.positive(*bits) - magnitude).abs(), bits & 1);
            let best = candidates.min_by(|a, b| distance(a).partial_cmp(&distance(b)).unwrap()).unwrap();
            best | if x.is_sign_negative() { 0x8000 } else { 0 }
        }

        fn check(&self, x: f64, expected: u16) {
            assert_eq!((self.round)(x), expected, "{} of {x:e}", self.name);
            assert_eq!((self.round)(-x), expected | 0x8000, "{} of {:e}", self.name, -x);
        }
    }

    #[test]
    fn every_value_and_every_tie_rounds_to_nearest_even() {
        for format in &FORMATS {
            for low in 0..format.infinity {
                let high = low + 1;
                let (a, b) = (format.positive(low), format.positive(high));
                let middle = a + (b - a) / 2.0;
                assert!(a < middle && middle < b);
                format.check(a, low);
                format.check(a.next_up(), low);
                format.check(middle.next_down(), low);
                format.check(middle, if low % 2 == 0 { low } else { high });
                format.check(middle.next_up(), high);
                format.check(b.next_down(), high);
            }
        }
    }

    #[test]
    fn the_ends_of_f64_round_to_zero_infinity_and_nan() {
        for format in &FORMATS {
            for x in [0.0, f64::from_bits(1), f64::MIN_POSITIVE, 1e-60] {
                format.check(x, 0);
            }
            for x in [format.end, format.end.next_up(), 1e39, f64::MAX, f64::INFINITY] {
                format.check(x, format.infinity);
            }
            // Quiet, and signaling with a payload that no narrower type can hold.
            for bits in [f64::NAN.to_bits(), 0x7ff0_0000_0000_0001, 0xfff0_0000_0000_0001] {
                let rounded = (format.round)(f64::from_bits(bits));
                assert!((format.value)(rounded).is_nan(), "{} of NaN {bits:x}: {rounded:x}", format.name);
            }
        }
    }

    proptest! {
        #[test]
        fn rounding_finds_the_nearest_value(significand in -1.0f64..1.0, exponent in -160i32..130, low in 0u64..4) {
            // Few low bits: halves of the significand above a tie are common.
            let x = significand * 2f64.powi(exponent);
            for x in [x, f64::from_bits(x.to_bits() & (!0 << 41) | low)] {
                for format in &FORMATS {
                    prop_assert_eq!((format.round)(x), format.nearest(x), "{} of {:e}", format.name, x);
                }
            }
        }
    }

    #[test]
    fn every_bf16_widens_as_in_half() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let (mut got, mut expected) = (vec![0.0; all.len()], vec![0.0; all.len()]);
        widen_bf16(&all, &mut got);
        all.convert_to_f32_slice(&mut expected);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.to_bits(), expected.to_bits(), "bf16 {i:04x}");
        }
    }

    #[test]
    fn f32_narrows_to_bf16_as_in_half() {
        // Every upper half with the lower halves around its tie, and hashed patterns.
        let upper = (0..=u16::MAX).map(|upper| u32::from(upper) << 16);
        let ties = upper.flat_map(|upper| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|lower| upper | lower));
        let hashed = (0..3_000_000u32).map(|i| {
            let x = i.wrapping_mul(0x9e37_79b9);
            (x ^ x >> 15).wrapping_mul(0x85eb_ca6b)
        });
        let values: Vec<f32> = ties.chain(hashed).map(f32::from_bits).collect();
        let (mut got, mut expected) = (vec![bf16::ZERO; values.len()], vec![bf16::ZERO; values.len()]);
        narrow_bf16(&values, &mut got);
        expected.convert_from_f32_slice(&values);
        for ((x, got), expected) in values.iter().zip(&got).zip(&expected) {
            assert_eq!(got.to_bits(), expected.to_bits(), "f32 {:08x}", x.to_bits());
        }
    }
}
