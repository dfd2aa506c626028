//! The cases of the self-test about arithmetic and conversion.

use anyhow::{Result, ensure};
use tpgm_cuda::Emulator;

use super::cases::{doubles, equal, launch};

/// NaN equals NaN.
fn bits(numbers: impl IntoIterator<Item = f64>) -> Vec<u64> {
    numbers.into_iter().map(|x| if x.is_nan() { f64::NAN } else { x }.to_bits()).collect()
}

pub(crate) fn mathematics(emulator: &Emulator) -> Result<()> {
    let triples: [[f64; 3]; 6] = [
        [1.5, 2.25, -0.75],
        // The product's tail is lost unless product and sum are one operation.
        [1.0 + f64::EPSILON, 1.0 + f64::EPSILON, -1.0],
        [1.0 + f64::from(f32::EPSILON), 1.0 + f64::from(f32::EPSILON), -1.0],
        [-1.0e-3, 3.7, 1.0e3],
        [f64::INFINITY, 2.0, 1.0],
        [f64::NAN, 1.0, 2.0],
    ];
    let input: Vec<u8> = triples.iter().flatten().flat_map(|x| x.to_ne_bytes()).collect();
    let count = triples.len();
    let got = doubles(&launch(emulator, "mathematics", &input, &vec![0; count * 128], count as u64)?);
    for (i, [x, y, z]) in triples.into_iter().enumerate() {
        let (a, b, c) = (x as f32, y as f32, z as f32);
        let one_or_zero = |yes: bool| if yes { 1.0 } else { 0.0 };
        let mut expected = vec![
            x.mul_add(y, z),
            x * y + z,
            x.abs().sqrt(),
            x.abs().powf(y),
            x.min(y),
            x.max(y),
            one_or_zero(x.is_finite()),
            x,
        ];
        let single = [a.mul_add(b, c), a * b + c, a.abs().sqrt(), a.min(b), a.max(b)];
        expected.extend(single.map(f64::from));
        expected.extend([one_or_zero(a.is_finite()), f64::from(a), f64::from(a.abs().sqrt())]);
        let mut got = got[16 * i..16 * (i + 1)].to_vec();
        // Powers need not be rounded correctly.
        if (got[3] / expected[3] - 1.0).abs() < 1e-15 {
            got[3] = expected[3];
        }
        equal(&bits(got), &bits(expected))?;
    }
    Ok(())
}

/// The value of a positive f16 by its definition; 2^16 for the infinite one, which is where rounding takes it to be.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10), f64::from(bits & 0x3ff) / 1024.0);
    if exponent == 0 { fraction * 2_f64.powi(-14) } else { (1.0 + fraction) * 2_f64.powi(exponent - 15) }
}

/// The nearest f16, the even one of two.
fn nearest_half(x: f32) -> u16 {
    let magnitude = f64::from(x.abs());
    // The last f16 that is not larger.
    let (mut low, mut high) = (0_u16, 0x7c00);
    if magnitude >= half(high) {
        low = high;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if half(middle) <= magnitude { low = middle } else { high = middle }
    }
    let (below, above) = (magnitude - half(low), half(high) - magnitude);
    let nearest = if below < above || (below == above && low % 2 == 0) { low } else { high };
    nearest | u16::from(x.is_sign_negative()) << 15
}

pub(crate) fn halves(emulator: &Emulator) -> Result<()> {
    // Every f16, the middle to the next, and their neighbors; then patterns over all f32.
    let mut numbers = Vec::new();
    for bits in 0..0x7c00_u16 {
        let (this, next) = (half(bits) as f32, half(bits + 1) as f32);
        let middle = ((f64::from(this) + f64::from(next)) / 2.0) as f32;
        let near = [this, middle, f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1)];
        numbers.extend(near.iter().flat_map(|&x| [x, -x]));
    }
    let patterns = (0..65_536_u32).map(|n| f32::from_bits(n.wrapping_mul(0x9e37_79b9)));
    numbers.extend(patterns.filter(|x| !x.is_nan()));
    numbers.push(f32::NAN);

    let input: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
    let output = vec![0; 65_536 * 4 + numbers.len() * 2];
    let got = launch(emulator, "halves", &input, &output, numbers.len() as u64)?;
    let (wide, narrow) = got.split_at(65_536 * 4);

    for (bits, bytes) in (0..=u16::MAX).zip(wide.chunks_exact(4)) {
        let got = f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let magnitude = bits & 0x7fff;
        let right = match magnitude {
            0x7c00 => got.is_infinite(),
            0x7c01.. => got.is_nan(),
            _ => f64::from(got.abs()) == half(magnitude),
        };
        ensure!(right && got.is_sign_negative() == (bits >> 15 == 1), "f16 {bits:#06x} became {got}");
    }
    for (x, bytes) in numbers.iter().zip(narrow.chunks_exact(2)) {
        let got = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let expected = if x.is_nan() { 0x7fff } else { nearest_half(*x) };
        ensure!(got == expected, "{x:e} became {got:#06x}, not {expected:#06x}");
    }
    Ok(())
}
