//! The logarithm of the beta function.

/// `ln B(a, b) = ln(gamma(a) * gamma(b) / gamma(a + b))` for positive `a`, `b`.
///
/// By Stirling's formula with its error term, in a form that does not subtract large logarithms of gamma functions: the
/// absolute error is about `1e-16` of the result plus a few times 1e-15.
pub(super) fn ln_beta(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let half_ln_two_pi = 0.918_938_533_204_672_8;
    a * (a / sum).ln() + b * (b / sum).ln() - 0.5 * (a.ln() + b.ln() - sum.ln())
        + half_ln_two_pi
        + (stirling_error(a) + stirling_error(b) - stirling_error(sum))
}

/// `ln gamma(z) - ((z - 1/2) * ln z - z + ln(2 * pi) / 2)` for positive `z`.
fn stirling_error(mut z: f64) -> f64 {
    // From here on the series below is exact to rounding: its next term is 3617 / 122400 / z^15 < 3e-17.
    const SERIES: f64 = 10.0;
    let mut error = 0.0;
    while z < SERIES {
        // gamma(z + 1) = z * gamma(z)
        error += (z + 0.5) * z.recip().ln_1p() - 1.0;
        z += 1.0;
    }
    // Bernoulli numbers B_2k / (2k * (2k - 1)), k = 7, ..., 1, in powers of 1 / z^2.
    let series = [
        1.0 / 156.0,
        -691.0 / 360_360.0,
        1.0 / 1188.0,
        -1.0 / 1680.0,
        1.0 / 1260.0,
        -1.0 / 360.0,
        1.0 / 12.0,
    ];
    let x = (z * z).recip();
    error + series.iter().fold(0.0, |sum, term| sum * x + term) / z
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ln_gamma(z: f64) -> f64 {
        (z - 0.5) * z.ln() - z + 0.5 * std::f64::consts::TAU.ln() + stirling_error(z)
    }

    #[test]
    fn gamma_of_integers_is_the_factorial_and_of_a_half_the_root_of_pi() {
        let mut factorial = 1.0f64;
        for n in 1..=20 {
            let got = ln_gamma(f64::from(n));
            assert!((got - factorial.ln()).abs() <= 2e-14, "{n}: {got}");
            factorial *= f64::from(n);
        }
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 4e-15);
    }

    #[test]
    fn gamma_matches_the_c_library() {
        // C's lgamma.
        let table = [
            (1e-10, 23.025_850_929_882_736),
            (0.1, 2.252_712_651_734_205_5),
            (0.7, 0.260_867_246_531_666_9),
            (2.5, 0.284_682_870_472_919_6),
            (9.99, 12.779_315_214_350_197),
            (10.01, 12.824_350_262_448_247),
            (123.456, 469.605_547_129_929_56),
            (1e6, 12_815_504.569_147_611),
        ];
        for (z, expected) in table {
            let got = ln_gamma(z);
            assert!((got - expected).abs() <= 1e-14 * f64::max(1.0, expected), "{z}: {got} {expected}");
        }
    }

    #[test]
    fn beta_of_integers_and_halves() {
        let pi = std::f64::consts::PI;
        for (a, b, expected) in [
            (1.0, 1.0, 1.0),
            (2.0, 3.0, 1.0 / 12.0),
            (3.0, 2.0, 1.0 / 12.0),
            (5.0, 7.0, 1.0 / 2310.0),
            (0.5, 0.5, pi),
            (0.5, 2.0, 4.0 / 3.0),
        ] {
            let got = ln_beta(a, b);
            assert!((got - f64::ln(expected)).abs() < 2e-14, "{a} {b}: {got}");
        }
    }

    #[test]
    fn beta_of_large_numbers_keeps_its_digits() {
        // B(n + 1, n + 1) = 1 / ((2n + 1) * C(2n, n)), and C(2n, n) = 4^n / sqrt(pi * n) * (1 - 1 / 8n + 1 / 128n^2 ..).
        let n = 1e10f64;
        let binomial = n * 4f64.ln() - 0.5 * (std::f64::consts::PI * n).ln() - 1.0 / (8.0 * n);
        let expected = -(2.0 * n + 1.0).ln() - binomial;
        assert!((ln_beta(n + 1.0, n + 1.0) / expected - 1.0).abs() < 1e-15);
        // The peak of the density of Beta(n, n), at 1/2, is about 2 * sqrt(n / pi).
        let peak = -2.0 * (n - 1.0) * 2f64.ln() - ln_beta(n, n);
        assert!((peak - 0.5 * (4.0 * n / std::f64::consts::PI).ln()).abs() < 1e-5, "{peak}");
    }
}
