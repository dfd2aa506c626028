//! Gradients that leave the outputs of kept samples alone.

use super::linear::{combine, dot_all};
use super::{Follow, GradientTransform, Grads, check, reads};
use crate::element::{Buffer, Slice};
use crate::error::Result;
use crate::params::ParamSet;
use crate::rule::above_zero;

/// Projects gradients on the kernel of the outputs of kept samples: `g <- g - J^T (J J^T + ridge I)^-1 J g`, with a row of `J` for each
/// output, its gradient by all parameters at the present weights. To first order a step along the result changes none of
/// these outputs; what is left goes with the square of the step.
///
/// Our discrete reading of "Tuning without forgetting" (arXiv 2404.11013), which moves along the kernel of a linearized end-point map.
/// Rows hold at the weights where they were taken: replace them as training moves on. With SGD the property holds for the
/// step itself; a rule that rescales elements (Adam) leaves the kernel.
///
/// Rows are kept in the type of the parameters: 4 bytes per parameter and row. Reads all rows about twice and the gradients once per
/// row.
///
/// ```
/// use tpgm_core::gradient::{GradientTransform, KernelProjection};
/// use tpgm_core::{DType, ParamSet};
/// let set = ParamSet::builder().tensor("w", [2], DType::F64).build()?;
/// let mut transform = KernelProjection::new(&set);
/// transform.keep(&[Some((&[1.0f64, 1.0]).into())])?; // of the output w_0 + w_1
/// let mut grad = [3.0f64, 1.0];
/// transform.apply(&mut [Some((&mut grad).into())])?;
/// assert!((grad[0] - 1.0).abs() < 1e-9 && (grad[1] + 1.0).abs() < 1e-9);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct KernelProjection {
    set: ParamSet,
    ridge: f64,
    rows: Vec<Vec<Option<Buffer>>>,
    /// `<row_i, row_j>` for `j <= i`.
    products: Vec<Vec<f64>>,
}

impl KernelProjection {
    /// Of a set, with nothing kept yet.
    pub fn new(set: &ParamSet) -> Self {
        Self { set: set.clone(), ridge: 1e-12, rows: Vec::new(), products: Vec::new() }
    }

    /// Sets the ridge, relative to the mean of the rows' squared norms. Default 1e-12: enough for rows that depend on each other.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) unless it is above 0.
    pub fn ridge(mut self, ridge: f64) -> Result<Self> {
        above_zero("KernelProjection::ridge", ridge)?;
        self.ridge = ridge;
        Ok(self)
    }

    /// Keeps one more output: its gradient, one slice per tensor in set order, `None` where it does not depend on the tensor.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`](crate::Error::CountMismatch), [`Error::LengthMismatch`](crate::Error::LengthMismatch),
    /// [`Error::NonFiniteGradient`](crate::Error::NonFiniteGradient); nothing is kept then.
    pub fn keep(&mut self, row: &[Option<Slice<'_>>]) -> Result<()> {
        check(&self.set, row)?;
        let copy = |slice: &Slice<'_>| {
            let mut buffer = Buffer::zeros(slice.dtype(), slice.len());
            combine(buffer.as_mut(), 0.0, &[(1.0, *slice)]);
            buffer
        };
        self.rows.push(row.iter().map(|slice| slice.as_ref().map(copy)).collect());
        let products = (0..self.rows.len()).map(|j| dot_all(&self.row(j), row)).collect();
        self.products.push(products);
        Ok(())
    }

    /// Outputs that are kept.
    pub fn kept(&self) -> usize {
        self.rows.len()
    }

    /// Forgets all outputs.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.products.clear();
    }

    fn row(&self, i: usize) -> Vec<Option<Slice<'_>>> {
        self.rows[i].iter().map(|tensor| tensor.as_ref().map(Buffer::as_slice)).collect()
    }
}

impl GradientTransform for KernelProjection {
    fn apply(&mut self, grads: Grads<'_, '_>) -> Result<Follow> {
        check(&self.set, &reads(grads))?;
        let n = self.rows.len();
        let along: Vec<f64> = (0..n).map(|i| dot_all(&self.row(i), &reads(grads))).collect();
        let mean = (0..n).map(|i| self.products[i][i]).sum::<f64>() / n.max(1) as f64;
        if mean == 0.0 {
            // Nothing is kept, or nothing that depends on the parameters.
            return Ok(Follow::Step);
        }
        let factors = solve(&self.products, self.ridge * mean, along);
        for (t, slot) in grads.iter_mut().enumerate() {
            let Some(grad) = slot else { continue };
            let terms: Vec<_> = self
                .rows
                .iter()
                .zip(&factors)
                .filter_map(|(row, factor)| Some((-factor, row[t].as_ref()?.as_slice())))
                .collect();
            combine(grad.reborrow(), 1.0, &terms);
        }
        Ok(Follow::Step)
    }
}

/// Solves `(P + ridge I) x = b` by Cholesky; `P` is given by its lower triangle and has no negative eigenvalue.
fn solve(products: &[Vec<f64>], ridge: f64, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    let mut l = products.to_vec();
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i][k] * l[j][k]).sum();
            let rest = l[i][j] - sum + if i == j { ridge } else { 0.0 };
            // Rounding may leave less than the ridge of rows that depend on each other.
            l[i][j] = if i == j { rest.max(ridge).sqrt() } else { rest / l[j][j] };
        }
    }
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| l[i][k] * b[k]).sum();
        b[i] = (b[i] - sum) / l[i][i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| l[k][i] * b[k]).sum();
        b[i] = (b[i] - sum) / l[i][i];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::noise;
    use crate::element::DType;
    use crate::error::Error;

    /// A network `v tanh(W x)` of two tensors, and the gradient of its output.
    struct Net {
        w: Vec<f64>,
        v: Vec<f64>,
    }

    const INPUTS: usize = 5;
    const HIDDEN: usize = 7;

    impl Net {
        fn hidden(&self, x: &[f64]) -> Vec<f64> {
            self.w
                .chunks_exact(INPUTS)
                .map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>().tanh())
                .collect()
        }

        fn output(&self, x: &[f64]) -> f64 {
            self.hidden(x).iter().zip(&self.v).map(|(h, v)| h * v).sum()
        }

        fn gradient(&self, x: &[f64]) -> [Vec<f64>; 2] {
            let h = self.hidden(x);
            let inner = |j: usize| self.v[j] * (1.0 - h[j] * h[j]);
            [(0..HIDDEN * INPUTS).map(|e| inner(e / INPUTS) * x[e % INPUTS]).collect(), h.clone()]
        }
    }

    #[test]
    fn outputs_of_kept_samples_change_by_the_square_of_the_step() {
        let net = Net { w: noise(1, HIDDEN * INPUTS), v: noise(2, HIDDEN) };
        let kept: Vec<Vec<f64>> = (0..4).map(|i| noise(10 + i, INPUTS)).collect();
        let new = noise(30, INPUTS);
        let set = ParamSet::builder()
            .tensor("w", [HIDDEN, INPUTS], DType::F64)
            .tensor("v", [HIDDEN], DType::F64)
            .build()
            .unwrap();
        let mut transform = KernelProjection::new(&set);
        for x in &kept {
            let row = net.gradient(x);
            transform.keep(&row.each_ref().map(|g| Some(g.as_slice().into()))).unwrap();
        }
        // One of them twice: rows that depend on each other do no harm.
        let row = net.gradient(&kept[0]);
        transform.keep(&row.each_ref().map(|g| Some(g.as_slice().into()))).unwrap();
        let plain = net.gradient(&new);
        let mut projected = plain.clone();
        transform.apply(&mut projected.each_mut().map(|g| Some(g.as_mut_slice().into()))).unwrap();

        let change = |gradient: &[Vec<f64>; 2], step: f64| {
            let moved = |at: &[f64], g: &[f64]| at.iter().zip(g).map(|(x, g)| x - step * g).collect();
            let moved = Net { w: moved(&net.w, &gradient[0]), v: moved(&net.v, &gradient[1]) };
            let of = |x: &Vec<f64>| (moved.output(x) - net.output(x)).abs();
            (kept.iter().map(of).fold(0.0, f64::max), moved.output(&new) - net.output(&new))
        };
        let (coarse, learned) = change(&projected, 1e-2);
        let (fine, _) = change(&projected, 1e-3);
        assert!((80.0..120.0).contains(&(coarse / fine)), "a tenth of the step: {coarse:e} {fine:e}");
        let (plain_coarse, _) = change(&plain, 1e-2);
        let (plain_fine, _) = change(&plain, 1e-3);
        assert!(
            (8.0..12.0).contains(&(plain_coarse / plain_fine)),
            "without: {plain_coarse:e} {plain_fine:e}"
        );
        assert!(learned < -1e-4, "the new sample is still learned: {learned:e}");
        assert!(coarse < 0.1 * plain_coarse);
    }

    #[test]
    fn nothing_kept_changes_nothing_and_mistakes_are_named() {
        let set = ParamSet::builder().tensor("w", [2], DType::F32).build().unwrap();
        let mut transform = KernelProjection::new(&set);
        let mut grad = [1.0f32, 2.0];
        transform.apply(&mut [Some((&mut grad).into())]).unwrap();
        transform.keep(&[None]).unwrap();
        transform.apply(&mut [Some((&mut grad).into())]).unwrap();
        assert_eq!((grad, transform.kept()), ([1.0, 2.0], 1));
        assert!(matches!(transform.keep(&[]), Err(Error::CountMismatch { .. })));
        let error = transform.keep(&[Some((&[1.0f32]).into())]).unwrap_err();
        assert!(error.to_string().contains("`w`"), "{error}");
        let error = transform.keep(&[Some((&[1.0f32, f32::NAN]).into())]);
        assert!(matches!(error, Err(Error::NonFiniteGradient { .. })), "{error:?}");
        assert_eq!(transform.kept(), 1);
        transform.clear();
        assert_eq!(transform.kept(), 0);
        assert!(KernelProjection::new(&set).ridge(0.0).is_err());
    }
}
