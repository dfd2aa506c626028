//! Averages and interpolations of weights.

/// One step of an exponential moving average: `decay * average + (1 - decay) * weight`.
pub fn ema(average: &[f64], weight: &[f64], decay: f64) -> Vec<f64> {
    average.iter().zip(weight).map(|(a, w)| decay * a + (1.0 - decay) * w).collect()
}

/// WiSE-FT (arXiv 2109.01903): `(1 - alpha) * theta0 + alpha * theta1`.
pub fn wise(theta0: &[f64], theta1: &[f64], alpha: f64) -> Vec<f64> {
    theta0.iter().zip(theta1).map(|(a, b)| (1.0 - alpha) * a + alpha * b).collect()
}

/// Fisher-weighted WiSE-FT: with every Fisher value raised to at least `floor`, and ones where none is given,
/// `((1 - alpha) f0 theta0 + alpha f1 theta1) / ((1 - alpha) f0 + alpha f1)`.
pub fn wise_fisher(
    theta0: &[f64],
    theta1: &[f64],
    fisher0: Option<&[f64]>,
    fisher1: Option<&[f64]>,
    alpha: f64,
    floor: f64,
) -> Vec<f64> {
    let at = |fisher: Option<&[f64]>, i: usize| fisher.and_then(|f| f.get(i)).map_or(1.0, |f| f.max(floor));
    theta0
        .iter()
        .zip(theta1)
        .enumerate()
        .map(|(i, (t0, t1))| {
            let f0 = (1.0 - alpha) * at(fisher0, i);
            let f1 = alpha * at(fisher1, i);
            (f0 * t0 + f1 * t1) / (f0 + f1)
        })
        .collect()
}
