//! The short form: a few methods, and an error if one is far slower than memory or a plain loop allow. For continuous
//! integration: only ratios within the run count, never a time.

use std::time::Instant;

use anyhow::{Result, bail};
use tpgm_benches::report::{OURS, Row};
use tpgm_benches::{Method, Samples};

/// Measured rounds.
pub(crate) const ROUNDS: usize = 7;

/// Methods, and the least share of the bandwidth of the in-place triad that they must reach: about half of what they reach on a
/// quiet machine.
const LEAST: [(&str, f64); 5] = [
    ("adamw-trusted", 0.5),
    ("adamw", 0.45),
    ("adamw+ftp", 0.33),
    ("project-mars", 0.3),
    ("project-l2", 0.2),
];

/// The method that the plain loop does, too, and the most of the loop's time that it may take.
const REFERENCE: (&str, f64) = ("adamw-trusted", 1.2);

/// The methods of the short form.
pub(crate) fn methods() -> Vec<Method> {
    Method::all().into_iter().filter(|method| LEAST.iter().any(|(name, _)| *name == method.name)).collect()
}

/// Seconds of AdamW as a plain loop on one thread, over as many parameters; the median of a few rounds.
pub(crate) fn plain_loop(params: usize) -> f64 {
    let (mut w, g) = (vec![0.01f32; params], vec![1e-3f32; params]);
    let (mut m, mut v) = (vec![0f32; params], vec![0f32; params]);
    let mut samples = Samples::default();
    for step in 1..=5 {
        let begun = Instant::now();
        plain_adamw(&mut w, &g, &mut m, &mut v, step);
        samples.push(begun.elapsed().as_secs_f64());
    }
    assert!(w.iter().all(|w| w.is_finite() && *w < 0.01), "the loop has taken its steps");
    samples.median()
}

/// AdamW without weight decay, as in the paper: arXiv 1711.05101, algorithm 2.
fn plain_adamw(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: i32) {
    let (lr, beta1, beta2, eps) = (1e-3f32, 0.9f32, 0.999f32, 1e-8f32);
    let (correct1, correct2) = (1.0 - beta1.powi(step), 1.0 - beta2.powi(step));
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *w -= lr * (*m / correct1) / ((*v / correct2).sqrt() + eps);
    }
}

/// Checks the rows of the short form.
///
/// # Errors
///
/// Names every method that is out of its range.
pub(crate) fn check(rows: &[Row], plain_loop: f64) -> Result<()> {
    let mut slow = Vec::new();
    let ours = |name: &str| rows.iter().find(|row| row.method == name && row.contestant == OURS);
    for (name, least) in LEAST {
        match ours(name).and_then(|row| row.of_in_place) {
            Some(share) if share >= least => {}
            Some(share) => slow.push(format!(
                "{name} reaches {:.0} % of the bandwidth of the in-place triad, at least {:.0} % is expected",
                100.0 * share,
                100.0 * least
            )),
            None => slow.push(format!("{name} was not measured")),
        }
    }
    let (name, most) = REFERENCE;
    if let Some(row) = ours(name)
        && row.median_s > most * plain_loop
    {
        slow.push(format!(
            "{name} takes {:.2} of the time of a plain loop on one thread",
            row.median_s / plain_loop
        ));
    }
    if slow.is_empty() { Ok(()) } else { bail!("{}", slow.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(share: f64, seconds: f64) -> Vec<Row> {
        let mut samples = Samples::default();
        samples.push(seconds);
        let row = |method: Method| Row { of_in_place: Some(share), ..Row::new(method.name, OURS, &samples) };
        methods().into_iter().map(row).collect()
    }

    #[test]
    fn rows_in_their_ranges_pass_and_others_are_named() {
        assert_eq!(methods().len(), LEAST.len());
        check(&rows(0.9, 1.0), 1.0).unwrap();
        let error = check(&rows(0.4, 1.3), 1.0).unwrap_err().to_string();
        for part in
            ["adamw-trusted reaches 40 %", "adamw reaches 40 %", "adamw-trusted takes 1.30 of the time"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("adamw+ftp"), "{error}");
        assert!(check(&rows(0.9, 1.0)[1..], 1.0).unwrap_err().to_string().contains("was not measured"));
    }

    // The first step of Adam is the learning rate, whatever the gradient; the second one too, if it is the same.
    #[test]
    fn the_plain_loop_is_adamw() {
        let (mut w, mut m, mut v) = (vec![1f32; 3], vec![0f32; 3], vec![0f32; 3]);
        for step in 1..=2 {
            plain_adamw(&mut w, &[0.5, -2.0, 0.0], &mut m, &mut v, step);
        }
        for (w, expected) in w.iter().zip([1.0 - 2e-3, 1.0 + 2e-3, 1.0]) {
            assert!((w - expected).abs() < 1e-6, "{w} {expected}");
        }
        assert!(plain_loop(1000) > 0.0);
    }
}
