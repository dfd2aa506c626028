//! Random numbers that are the same on every platform and in every version, whatever else draws numbers.

/// The odd constant of SplitMix64: 2^64 over the golden ratio.
pub const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64.
#[inline(always)]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a. A hash that is the same in every release: Rust's own hasher does not promise that.
pub fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Philox4x32-10: four numbers that depend on a counter and a key alone, so that any of them can be had without those before it.
///
/// Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_rounds(counter.map(|word| [word]), key).map(|[word]| word)
}

/// Counters that are computed beside each other: so many that the compiler makes vectors of them (with 8 it takes 2.7 times as long).
pub(crate) const PHILOX_LANES: usize = 16;

/// [`philox`] at the counters from `low` on, with `high` as their upper 64 bits: the first numbers of all, the second ones, and so on.
#[inline(always)]
pub(crate) fn philox_lanes(low: u64, high: u64, key: u64) -> [[u32; PHILOX_LANES]; 4] {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let counters: [_; PHILOX_LANES] = std::array::from_fn(|lane| halves(low.wrapping_add(lane as u64)));
    let [third, fourth] = halves(high).map(|word| [word; PHILOX_LANES]);
    philox_rounds(
        [counters.map(|[word, _]| word), counters.map(|[_, word]| word), third, fourth],
        halves(key),
    )
}

#[inline(always)]
fn philox_rounds<const N: usize>(counter: [[u32; N]; 4], key: [u32; 2]) -> [[u32; N]; 4] {
    let ([mut a, mut b, mut c, mut d], [mut first, mut second]) = (counter, key);
    for _ in 0..10 {
        for i in 0..N {
            let (x, y) = (u64::from(a[i]) * 0xd251_1f53, u64::from(c[i]) * 0xcd9e_8d57);
            a[i] = (y >> 32) as u32 ^ b[i] ^ first;
            b[i] = y as u32;
            c[i] = (x >> 32) as u32 ^ d[i] ^ second;
            d[i] = x as u32;
        }
        first = first.wrapping_add(0x9e37_79b9);
        second = second.wrapping_add(0xbb67_ae85);
    }
    [a, b, c, d]
}

/// Steele, Lea and Flood: Fast splittable pseudorandom number generators (OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Numbers that depend on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Numbers for what is called `name`.
    pub fn named(seed: u64, name: &str) -> Self {
        // Seeds that differ by little start far apart.
        Self(Self(seed ^ fnv1a(name)).next_u64())
    }

    /// Uniform over all numbers of 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// A number below `bound`, all equally likely (Lemire: Fast random integer generation in an interval, 2019). Nothing is below
    /// 0: that gives 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let bound = bound.max(1);
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(bound);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (-53f64).exp2()
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A number of the Beta distribution with parameters `a` and `b`, both above 0: of two Gamma variables, the share of the first.
    /// Their logarithms are compared, so that parameters near 0 give 0 and 1, not 0 / 0.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.log_gamma_variable(a), self.log_gamma_variable(b));
        1.0 / (1.0 + (y - x).exp())
    }

    /// The logarithm of a number of the Gamma distribution (Marsaglia and Tsang: A simple method for generating gamma variables,
    /// 2000); below shape 1 by their relation to shape + 1.
    fn log_gamma_variable(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = (1.0 - self.uniform()).ln() / shape;
            return boost + self.log_gamma_variable(shape + 1.0);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            let u = 1.0 - self.uniform();
            if v > 0.0 && u.ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return d.ln() + v.ln();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        // The first outputs for seed 1234567 that implementations in other languages agree on.
        let mut random = SplitMix64::new(1_234_567);
        let first: Vec<_> = (0..5).map(|_| random.next_u64()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821,
            ]
        );
    }

    /// The vectors of Random123 (`kat_vectors`), which comes with the paper.
    #[test]
    fn philox_is_the_published_one() {
        let all = u32::MAX;
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([all; 4], [all; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
        // Beside each other the same, also where the counter's first word overflows.
        let (low, high, key) = (0x85a3_08d3_ffff_fffd, 0x0370_7344_1319_8a2e, 0x299f_31d0_a409_3822);
        let lanes = philox_lanes(low, high, key);
        for lane in 0..PHILOX_LANES {
            let low = low.wrapping_add(lane as u64);
            let counter = [low as u32, (low >> 32) as u32, 0x1319_8a2e, 0x0370_7344];
            let expected = philox(counter, [0xa409_3822, 0x299f_31d0]);
            assert_eq!(lanes.map(|numbers| numbers[lane]), expected, "{lane}");
        }
    }

    #[test]
    fn moments_of_beta_variables() {
        let mut random = SplitMix64::new(5);
        for (a, b) in [(0.2, 0.2), (1.0, 1.0), (2.0, 5.0), (30.0, 3.0), (0.5, 4.0)] {
            const N: f64 = 40_000.0;
            let xs: Vec<f64> = (0..N as usize).map(|_| random.beta(a, b)).collect();
            let mean = xs.iter().sum::<f64>() / N;
            let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / N;
            let sum: f64 = a + b;
            let expected = (a / sum, a * b / (sum * sum * (sum + 1.0)));
            // Five standard errors of the mean; the variance within 5 %.
            assert!((mean - expected.0).abs() < 5.0 * (expected.1 / N).sqrt(), "{a} {b}: mean {mean}");
            assert!((variance / expected.1 - 1.0).abs() < 0.05, "{a} {b}: variance {variance}");
        }
        assert!((0..1000).all(|_| (0.0..=1.0).contains(&random.beta(1e-3, 1e-3))));
    }

    /// Published test value of the 64-bit FNV-1a hash.
    #[test]
    fn hash_is_fnv1a() {
        assert_eq!(fnv1a("foobar"), 0x85944171f73967e8);
    }
}
