//! What the last gradients agree on.

use super::eigen::eigen;
use super::linear::combine;
use super::{Follow, GradientTransform, Grads, check, reads};
use crate::blocks::{at_least, check_len};
use crate::element::{Buffer, Slice, SliceMut};
use crate::error::Result;
use crate::params::ParamSet;
use crate::rule::{above_zero, check as check_option};

/// The least variance that a direction is divided by (FSTTA's code).
const FLOOR: f64 = 1e-6;

/// The concordant gradient of FSTTA (ICML 2024) from M gradients of one tensor: their mean, with each direction divided by its
/// variance. Writes it to `out` and returns the trace of the covariance.
///
/// With mean `m` and covariance `C = X X^T / (M - 1)` of the centered gradients, `C = sum lambda_d u_d u_d^T`, it is
/// `sum_d <m, u_d> / max(lambda_d, floor) u_d` over **all** D directions; `floor` is 1e-6 in the authors' code. No D x D matrix is
/// needed: directions with at most the floor all have the factor `1 / floor`, so what is left is
/// `m / floor + sum_r <m, u_r> (1 / lambda_r - 1 / floor) u_r` over the few others, which the M x M matrix of products has; with
/// fewer elements than gradients the D x D one is smaller and is taken.
///
/// With less variance than the floor throughout (gradients below 1e-3 or so) the result is the mean times `1 / floor`; a rule that
/// normalizes, such as Adam, does not mind.
///
/// Reads each gradient `M + 1` times and writes the result once.
///
/// # Errors
///
/// [`Error::TooFew`](crate::Error::TooFew) with less than two gradients, [`Error::LengthMismatch`](crate::Error::LengthMismatch) (of the tensor `gradient`), [`Error::InvalidOption`](crate::Error::InvalidOption) for a
/// floor that is not above 0.
pub fn concordant(gradients: &[Slice<'_>], floor: f64, out: SliceMut<'_>) -> Result<f64> {
    above_zero("floor of the concordant gradient", floor)?;
    at_least("gradients", 2, gradients.len())?;
    let len = out.len();
    gradients.iter().try_for_each(|gradient| check_len("gradient", "value", len, gradient.len()))?;
    Ok(if len < gradients.len() {
        by_elements(gradients, floor, out)
    } else {
        by_gradients(gradients, floor, out)
    })
}

/// By the matrix of products of centered gradients.
fn by_gradients(gradients: &[Slice<'_>], floor: f64, out: SliceMut<'_>) -> f64 {
    let m = gradients.len();
    let count = m as f64;
    // Centering the products would cancel: the centered gradients are made, in f64, block by block.
    let (products, means) = centered_products(gradients);
    let scale = 1.0 / (count - 1.0);
    let (values, vectors) = eigen(products.iter().map(|x| x * scale).collect(), m);
    // The result is a combination of the gradients themselves: of the mean, and of the centered ones.
    let mut centered = vec![0.0; m];
    for (value, vector) in values.iter().zip(vectors.chunks_exact(m)) {
        if *value > floor {
            let along: f64 = vector.iter().zip(&means).map(|(v, mean)| v * mean).sum();
            let factor = along * (1.0 / value - 1.0 / floor) / ((count - 1.0) * value);
            centered.iter_mut().zip(vector).for_each(|(sum, v)| *sum += factor * v);
        }
    }
    let mean: f64 = centered.iter().sum::<f64>() / count;
    let factor = |c: &f64| c - mean + 1.0 / (floor * count);
    let terms: Vec<_> = centered.iter().map(factor).zip(gradients.iter().copied()).collect();
    combine(out, 0.0, &terms);
    (0..m).map(|i| products[i * m + i]).sum::<f64>() * scale
}

/// `<x_i, x_j>` of the centered gradients, and `<x_i, mean>`.
fn centered_products(gradients: &[Slice<'_>]) -> (Vec<f64>, Vec<f64>) {
    use crate::blocks::{BLOCK, CHUNK, ranges};
    use crate::element::Real;
    use rayon::prelude::*;

    let m = gradients.len();
    let len = gradients[0].len();
    let chunks: Vec<_> = ranges(0..len, CHUNK).collect();
    let partial = |chunk: std::ops::Range<usize>| {
        let (mut products, mut means) = (vec![0.0; m * m], vec![0.0; m]);
        let mut rows = vec![0.0f64; m * BLOCK];
        for range in ranges(chunk, BLOCK) {
            let n = range.len();
            let mut mean = [0.0f64; BLOCK];
            for (row, gradient) in rows.chunks_exact_mut(BLOCK).zip(gradients) {
                f64::load(gradient.sub(range.clone()), &mut row[..n]);
                mean.iter_mut().zip(&row[..n]).for_each(|(sum, x)| *sum += x);
            }
            mean.iter_mut().for_each(|sum| *sum /= m as f64);
            for row in rows.chunks_exact_mut(BLOCK) {
                row[..n].iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
            }
            for i in 0..m {
                let row = &rows[i * BLOCK..i * BLOCK + n];
                means[i] += crate::blocks::dot(row, &mean[..n]);
                for j in 0..=i {
                    products[i * m + j] += crate::blocks::dot(row, &rows[j * BLOCK..j * BLOCK + n]);
                }
            }
        }
        (products, means)
    };
    let partials: Vec<_> = chunks.into_par_iter().map(partial).collect();
    let (mut products, mut means) = (vec![0.0; m * m], vec![0.0; m]);
    for (part, part_means) in partials {
        products.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        means.iter_mut().zip(part_means).for_each(|(sum, x)| *sum += x);
    }
    for i in 0..m {
        (i + 1..m).for_each(|j| products[i * m + j] = products[j * m + i]);
    }
    (products, means)
}

/// By the covariance of elements, of which there are fewer than gradients.
fn by_elements(gradients: &[Slice<'_>], floor: f64, mut out: SliceMut<'_>) -> f64 {
    let (d, count) = (out.len(), gradients.len() as f64);
    let mut rows: Vec<Vec<f64>> = gradients.iter().map(|gradient| gradient.to_f64()).collect();
    let mean: Vec<f64> = (0..d).map(|e| rows.iter().map(|row| row[e]).sum::<f64>() / count).collect();
    for row in &mut rows {
        row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
    }
    let at = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f64>() / (count - 1.0);
    let covariance: Vec<f64> = (0..d * d).map(|e| at(e / d, e % d)).collect();
    let trace = (0..d).map(|i| covariance[i * d + i]).sum();
    let (values, vectors) = eigen(covariance, d);
    let mut result = vec![0.0; d];
    for (value, vector) in values.iter().zip(vectors.chunks_exact(d.max(1))) {
        let along: f64 = vector.iter().zip(&mean).map(|(u, mean)| u * mean).sum();
        let factor = along / value.max(floor);
        result.iter_mut().zip(vector).for_each(|(sum, u)| *sum += factor * u);
    }
    combine(out.reborrow(), 0.0, &[(1.0, result.as_slice().into())]);
    trace
}

/// Collects the gradients of M backward passes at the same weights, and at every M-th makes the concordant one of each tensor
/// ([`concordant`]) that the step takes (FSTTA: entropy of normalization layers at test time). A tensor that had no gradient in one
/// of the passes has none at the end.
///
/// M - 1 gradients are kept, in their own type: 4 (M - 1) bytes per parameter. They are not part of saved state.
///
/// ```
/// use tpgm_core::gradient::{Concordant, Follow, GradientTransform};
/// use tpgm_core::{DType, ParamSet};
/// let set = ParamSet::builder().tensor("norm.weight", [2], DType::F32).build()?;
/// let mut transform = Concordant::new(&set, 2)?;
/// let (mut first, mut second) = ([1.0f32, 3.0], [1.0f32, -3.0]);
/// assert_eq!(transform.apply(&mut [Some((&mut first).into())])?, Follow::Wait);
/// assert_eq!(transform.apply(&mut [Some((&mut second).into())])?, Follow::Step);
/// assert_eq!(second, [1e6, 0.0]); // they agree on the first element alone, which has no variance
/// assert_eq!(transform.variance(), Some(18.0));
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Concordant {
    set: ParamSet,
    last: usize,
    floor: f64,
    kept: Vec<Vec<Option<Buffer>>>,
    variance: Option<f64>,
}

impl Concordant {
    /// Over the `last` gradients of a set, at least 2; FSTTA takes 3.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`](crate::Error::InvalidOption).
    pub fn new(set: &ParamSet, last: usize) -> Result<Self> {
        check_option("Concordant::last", last as f64, "at least 2", |last| last >= 2.0)?;
        Ok(Self { set: set.clone(), last, floor: FLOOR, kept: Vec::new(), variance: None })
    }

    /// Sets the least variance that a direction is divided by. Default 1e-6.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) unless it is above 0.
    pub fn floor(mut self, floor: f64) -> Result<Self> {
        above_zero("Concordant::floor", floor)?;
        self.floor = floor;
        Ok(self)
    }

    /// The trace of the gradients' covariance at the latest step, mean over tensors: what FSTTA's learning rate follows.
    pub fn variance(&self) -> Option<f64> {
        self.variance
    }

    /// Gradients that wait for the next step.
    pub fn pending(&self) -> usize {
        self.kept.len()
    }

    /// Forgets the gradients that wait.
    pub fn clear(&mut self) {
        self.kept.clear();
    }
}

impl GradientTransform for Concordant {
    fn apply(&mut self, grads: Grads<'_, '_>) -> Result<Follow> {
        check(&self.set, &reads(grads))?;
        let copy = |grad: &Option<SliceMut<'_>>| grad.as_ref().map(|grad| to_buffer(grad.as_slice()));
        if self.kept.len() + 1 < self.last {
            self.kept.push(grads.iter().map(copy).collect());
            return Ok(Follow::Wait);
        }
        let (mut sum, mut tensors) = (0.0, 0usize);
        for (t, slot) in grads.iter_mut().enumerate() {
            let Some(last) = copy(slot) else { continue };
            let earlier: Option<Vec<_>> =
                self.kept.iter().map(|kept| kept[t].as_ref().map(Buffer::as_slice)).collect();
            let (Some(mut all), Some(out)) = (earlier, slot.as_mut()) else {
                *slot = None;
                continue;
            };
            all.push(last.as_slice());
            sum += concordant(&all, self.floor, out.reborrow())?;
            tensors += 1;
        }
        self.kept.clear();
        self.variance = (tensors > 0).then(|| sum / tensors as f64);
        Ok(Follow::Step)
    }
}

fn to_buffer(slice: Slice<'_>) -> Buffer {
    let mut buffer = Buffer::zeros(slice.dtype(), slice.len());
    combine(buffer.as_mut(), 0.0, &[(1.0, slice)]);
    buffer
}

#[cfg(test)]
mod tests {
    use super::super::linear::dot;
    use super::*;
    use crate::blocks::testing::{noise, on_any_pool};
    use crate::element::DType;
    use crate::error::Error;

    /// Solves for every direction of the D x D covariance, by power iteration with deflation: nothing of the code above.
    fn brute_force(rows: &[Vec<f64>], floor: f64) -> Vec<f64> {
        let (count, d) = (rows.len() as f64, rows[0].len());
        let mean: Vec<f64> = (0..d).map(|e| rows.iter().map(|row| row[e]).sum::<f64>() / count).collect();
        let centered = |row: &Vec<f64>| row.iter().zip(&mean).map(|(x, m)| x - m).collect::<Vec<_>>();
        let mut rest: Vec<Vec<f64>> = rows.iter().map(centered).collect();
        let mut result: Vec<f64> = mean.iter().map(|m| m / floor).collect();
        for r in 1..rows.len() {
            let mut u = noise(r as u64 + 50, d);
            for _ in 0..20_000 {
                let along: Vec<f64> =
                    rest.iter().map(|row| dot(row.as_slice().into(), u.as_slice().into())).collect();
                let next: Vec<f64> =
                    (0..d).map(|e| rest.iter().zip(&along).map(|(row, a)| row[e] * a).sum()).collect();
                let norm = next.iter().map(|x| x * x).sum::<f64>().sqrt();
                u = next.iter().map(|x| x / norm).collect();
            }
            let along: Vec<f64> =
                rest.iter().map(|row| dot(row.as_slice().into(), u.as_slice().into())).collect();
            let value = along.iter().map(|a| a * a).sum::<f64>() / (count - 1.0);
            for (row, a) in rest.iter_mut().zip(along) {
                row.iter_mut().zip(&u).for_each(|(x, u)| *x -= a * u);
            }
            let m = dot(mean.as_slice().into(), u.as_slice().into());
            let factor = m / value.max(floor) - m / floor;
            result.iter_mut().zip(&u).for_each(|(x, u)| *x += factor * u);
        }
        result
    }

    #[test]
    fn is_the_published_formula_without_its_large_matrix() {
        for (m, d, floor) in [(3, 40, 1e-6), (3, 40, 0.3), (2, 5, 1e-3)] {
            let rows: Vec<Vec<f64>> = (0..m).map(|i| noise(i as u64 + 9, d)).collect();
            let expected = brute_force(&rows, floor);
            let largest = expected.iter().fold(0.0f64, |x, y| x.max(y.abs()));
            let mut got = vec![0.0; d];
            let slices: Vec<Slice<'_>> = rows.iter().map(|row| row.as_slice().into()).collect();
            concordant(&slices, floor, got.as_mut_slice().into()).unwrap();
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 1e-9 * largest, "{m} of {d}: {got} {expected}");
            }
        }
    }

    /// More gradients than elements, where both forms are right: the smaller matrix gives what the larger gives.
    #[test]
    fn few_elements_take_the_other_form() {
        let rows: Vec<Vec<f64>> = (0..6).map(|i| noise(i + 3, 4)).collect();
        let slices: Vec<Slice<'_>> = rows.iter().map(|row| row.as_slice().into()).collect();
        let (mut by_elements_, mut by_gradients_) = ([0.0f64; 4], [0.0f64; 4]);
        let trace = by_elements(&slices, 1e-3, (&mut by_elements_).into());
        assert!((trace - by_gradients(&slices, 1e-3, (&mut by_gradients_).into())).abs() < 1e-14);
        for (a, b) in by_elements_.iter().zip(by_gradients_) {
            assert!((a - b).abs() < 1e-9 * a.abs().max(1.0), "{a} {b}");
        }
    }

    #[test]
    fn same_bits_on_any_number_of_threads() {
        let n = 2 * crate::blocks::CHUNK + 5;
        let rows: Vec<Vec<f64>> = (0..3).map(|i| noise(i, n)).collect();
        let slices: Vec<Slice<'_>> = rows.iter().map(|row| row.as_slice().into()).collect();
        on_any_pool(|| {
            let mut out = vec![0.0; n];
            let trace = concordant(&slices, 1e-6, out.as_mut_slice().into()).unwrap();
            (trace, out)
        });
    }

    #[test]
    fn what_is_not_there_each_time_has_no_gradient() {
        let set =
            ParamSet::builder().tensor("a", [1], DType::F32).tensor("b", [1], DType::F32).build().unwrap();
        let mut transform = Concordant::new(&set, 2).unwrap();
        let [mut a, mut b] = [[1.0f32], [2.0f32]];
        assert_eq!(transform.apply(&mut [Some((&mut a).into()), None]).unwrap(), Follow::Wait);
        assert_eq!(transform.pending(), 1);
        let mut grads = [Some((&mut a).into()), Some((&mut b).into())];
        assert_eq!(transform.apply(&mut grads).unwrap(), Follow::Step);
        assert!(grads[0].is_some() && grads[1].is_none());
        assert_eq!(transform.variance(), Some(0.0));

        let mut nan = [f32::NAN];
        let error = transform.apply(&mut [Some((&mut nan).into()), None]);
        assert_eq!(error, Err(Error::NonFiniteGradient { tensor: "a".into(), count: 1 }));
        assert_eq!(transform.pending(), 0);
        let mut long = [0.0f32; 2];
        let error = transform.apply(&mut [None, Some((&mut long).into())]).unwrap_err();
        assert!(error.to_string().contains("`b`"), "{error}");
        assert!(Concordant::new(&set, 1).unwrap_err().to_string().contains("Concordant::last"));
        assert!(Concordant::new(&set, 2).unwrap().floor(0.0).is_err());
    }
}
