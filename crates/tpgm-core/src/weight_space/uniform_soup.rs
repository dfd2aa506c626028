//! The average of fine-tuned models.

use rayon::prelude::*;

use crate::blocks::{accumulate, at_least, check_count, check_len, chunks_mut, copy, map, with_real};
use crate::element::{Buffer, Real, Slice, SliceMut};
use crate::error::Result;
use crate::params::TensorSpec;

/// The mean of any number of models (uniform soup, ICML 2022, arXiv 2203.05482), one model at a time.
///
/// Holds the sum of the models so far: 4 bytes per parameter, 8 for f64 tensors. With one model, the mean is that model
/// bit for bit.
///
/// ```
/// use tpgm_core::weight_space::UniformSoup;
/// use tpgm_core::{DType, ParamSet};
/// let set = ParamSet::builder().tensor("w", [2], DType::F32).build()?;
/// let mut soup = UniformSoup::new(set.tensors());
/// soup.add(&[(&[1.0f32, 2.0]).into()])?;
/// soup.add(&[(&[3.0f32, -2.0]).into()])?;
/// let mut mean = [0.0f32; 2];
/// soup.finish(&mut [(&mut mean).into()])?;
/// assert_eq!(mean, [2.0, 0.0]);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct UniformSoup {
    specs: Vec<TensorSpec>,
    sums: Vec<Buffer>,
    models: usize,
}

impl UniformSoup {
    /// A soup of no models yet, of tensors like these. Sums are kept in the compute type of each tensor.
    pub fn new(specs: &[TensorSpec]) -> Self {
        Self {
            sums: specs.iter().map(|spec| Buffer::zeros(spec.dtype.compute(), spec.numel())).collect(),
            specs: specs.to_vec(),
            models: 0,
        }
    }

    /// Number of models added.
    pub fn models(&self) -> usize {
        self.models
    }

    /// Adds a model: its tensors in the order given to [`UniformSoup::new`], of any element type.
    ///
    /// Reads the model once and updates the sums once.
    ///
    /// # Errors
    ///
    /// [`Error::CountMismatch`](crate::Error::CountMismatch) or [`Error::LengthMismatch`](crate::Error::LengthMismatch); the soup is then as before.
    pub fn add(&mut self, model: &[Slice<'_>]) -> Result<()> {
        check_model(&self.specs, model)?;
        let first = self.models == 0;
        let jobs: Vec<_> = self
            .sums
            .iter_mut()
            .zip(model)
            .flat_map(|(sum, model)| chunks_mut(sum.as_mut()).map(|(range, sum)| (sum, model.sub(range))))
            .collect();
        jobs.into_par_iter().for_each(|(sum, model)| {
            if first {
                copy(sum, model);
            } else {
                with_real!(sum.dtype(), T => accumulate::<T>(sum, model));
            }
        });
        self.models += 1;
        Ok(())
    }

    /// Writes the mean of all models added. More may be added afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::TooFew`](crate::Error::TooFew) without models, [`Error::CountMismatch`](crate::Error::CountMismatch) or [`Error::LengthMismatch`](crate::Error::LengthMismatch).
    pub fn finish(&self, out: &mut [SliceMut<'_>]) -> Result<()> {
        at_least("models of the soup", 1, self.models)?;
        check_count("destinations", self.specs.len(), out.len())?;
        for (spec, out) in self.specs.iter().zip(out.iter()) {
            check_len(&spec.name, "destination", spec.numel(), out.len())?;
        }
        self.mean(None, out.iter_mut().map(SliceMut::reborrow));
        Ok(())
    }

    /// Writes `(sum + extra) / number of models`.
    pub(super) fn mean<'a>(&self, extra: Option<&[Slice<'_>]>, out: impl Iterator<Item = SliceMut<'a>>) {
        let models = self.models + usize::from(extra.is_some());
        let mut jobs = Vec::new();
        for (i, (sum, out)) in self.sums.iter().zip(out).enumerate() {
            let extra = extra.map(|extra| extra[i]);
            for (range, out) in chunks_mut(out) {
                jobs.push((sum.as_slice().sub(range.clone()), extra.map(|extra| extra.sub(range)), out));
            }
        }
        jobs.into_par_iter().for_each(|(sum, extra, out)| {
            with_real!(sum.dtype(), T => divide::<T>(out, sum, extra, models));
        });
    }
}

/// `out = (sum + extra) / models`.
fn divide<T: Real>(out: SliceMut<'_>, sum: Slice<'_>, extra: Option<Slice<'_>>, models: usize) {
    let models = T::from_f64(models as f64);
    match extra {
        Some(extra) => map(out, [sum, extra], |[sum, x]: [T; 2]| (sum + x) / models),
        None => map(out, [sum], |[sum]: [T; 1]| sum / models),
    }
}

pub(super) fn check_model(specs: &[TensorSpec], model: &[Slice<'_>]) -> Result<()> {
    check_count("tensors of a model", specs.len(), model.len())?;
    for (spec, slice) in specs.iter().zip(model) {
        check_len(&spec.name, "value in a model", spec.numel(), slice.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::{LENGTHS, noise, on_any_pool};
    use crate::element::DType;
    use crate::error::Error;

    fn specs(tensors: &[(usize, DType)]) -> Vec<TensorSpec> {
        let spec = |(i, &(len, dtype)): (usize, &(usize, DType))| TensorSpec {
            name: format!("t{i}"),
            shape: vec![len],
            dtype,
        };
        tensors.iter().enumerate().map(spec).collect()
    }

    fn slices(model: &[Buffer]) -> Vec<Slice<'_>> {
        model.iter().map(Buffer::as_slice).collect()
    }

    #[test]
    fn the_uniform_soup_is_the_mean_in_the_compute_type() {
        let shapes: Vec<_> = LENGTHS.iter().flat_map(|&len| DType::ALL.map(|dtype| (len, dtype))).collect();
        let specs = specs(&shapes);
        let models: Vec<Vec<Buffer>> = (0..3)
            .map(|m| specs.iter().map(|s| Buffer::from_f64(s.dtype, &noise(m, s.numel()))).collect())
            .collect();
        let got = on_any_pool(|| {
            let mut soup = UniformSoup::new(&specs);
            models.iter().for_each(|model| soup.add(&slices(model)).unwrap());
            let mut out: Vec<_> = specs.iter().map(|s| Buffer::zeros(s.dtype, s.numel())).collect();
            let mut refs: Vec<_> = out.iter_mut().map(Buffer::as_mut).collect();
            soup.finish(&mut refs).unwrap();
            out
        });
        for (t, spec) in specs.iter().enumerate() {
            let [a, b, c] = [0, 1, 2].map(|m| models[m][t].to_f64());
            let mean = |i: usize| match spec.dtype {
                DType::F64 => (a[i] + b[i] + c[i]) / 3.0,
                _ => f64::from((a[i] as f32 + b[i] as f32 + c[i] as f32) / 3.0),
            };
            let expected: Vec<f64> = (0..spec.numel()).map(mean).collect();
            assert_eq!(got[t], Buffer::from_f64(spec.dtype, &expected), "{spec:?}");
        }
    }

    #[test]
    fn a_soup_of_one_model_is_that_model() {
        let specs = specs(&[(3, DType::F32)]);
        let model = [-0.0f32, 1e-42, -0.1];
        let mut out = [1.0f32; 3];
        let mut soup = UniformSoup::new(&specs);
        soup.add(&[(&model).into()]).unwrap();
        soup.finish(&mut [(&mut out).into()]).unwrap();
        assert_eq!(out.map(f32::to_bits), model.map(f32::to_bits));
    }

    #[test]
    fn soup_mistakes_are_named_and_change_nothing() {
        let specs = specs(&[(2, DType::F32), (1, DType::F32)]);
        let mut soup = UniformSoup::new(&specs);
        let (mut a, mut b) = ([5.0f32; 2], [5.0f32]);
        let nothing = soup.finish(&mut [(&mut a).into(), (&mut b).into()]).unwrap_err();
        assert!(matches!(nothing, Error::TooFew { got: 0, .. }), "{nothing}");
        soup.add(&[(&[1.0f32, 2.0]).into(), (&[3.0f32]).into()]).unwrap();
        let long = soup.add(&[(&[9.0f32, 9.0]).into(), (&[9.0f32, 9.0]).into()]).unwrap_err();
        assert!(long.to_string().contains("`t1`: its value in a model has 2 elements, but 1"), "{long}");
        assert!(matches!(soup.add(&[]).unwrap_err(), Error::CountMismatch { got: 0, .. }));
        let short = soup.finish(&mut [(&mut a).into()]).unwrap_err();
        assert!(matches!(short, Error::CountMismatch { what: "destinations", .. }));
        soup.finish(&mut [(&mut a).into(), (&mut b).into()]).unwrap();
        assert_eq!((a, b, soup.models()), ([1.0, 2.0], [3.0], 1));
    }
}
