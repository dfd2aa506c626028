//! Interpolation between two checkpoints.

use rayon::prelude::*;

use crate::blocks::{check_len, chunks_mut, copy, map, widest, with_real};
use crate::element::{Real, Slice, SliceMut};
use crate::error::{Error, Result};
use crate::rule::{above_zero, check};

/// Weight interpolation (WiSE-FT, CVPR 2022, arXiv 2109.01903): `theta = (1 - alpha) * theta0 + alpha * theta1`.
///
/// With Fisher information `f0`, `f1` (element-wise, mean squared gradient) an entry is the weighted mean
/// `(a0 * theta0 + a1 * theta1) / (a0 + a1)`, `a0 = (1 - alpha) * max(f0, floor)`, `a1 = alpha * max(f1, floor)`.
/// An entry without Fisher information counts as all ones, which is the plain formula.
///
/// **Which entries.** The authors interpolate every floating-point entry of the checkpoints, buffers included. Integer
/// buffers (BatchNorm's batch counter) cannot be interpolated: the caller copies them. Interpolated running variances
/// are not those of the interpolated model: estimate them again where there is BatchNorm.
///
/// ```
/// use tpgm_core::weight_space::{WiseEntry, WiseFt};
/// let (zero_shot, fine_tuned) = ([1.0f32, 2.0], [3.0f32, -2.0]);
/// let mut merged = [0.0f32; 2];
/// let entry = WiseEntry::new("head.weight", &zero_shot, &fine_tuned, &mut merged);
/// WiseFt { alpha: 0.25, ..WiseFt::default() }.merge(&mut [entry])?;
/// assert_eq!(merged, [1.5, 1.0]);
/// # Ok::<(), tpgm_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct WiseFt {
    /// Share of the second model, in `[0, 1]`. Default 0.5, the authors' recommendation without held-out data. 0 and 1
    /// give the first and the second model bit for bit, also with Fisher information.
    pub alpha: f64,
    /// The least Fisher information an element counts with, above 0. Default 1e-8 (the authors' code).
    pub fisher_floor: f64,
}

impl Default for WiseFt {
    fn default() -> Self {
        Self { alpha: 0.5, fisher_floor: 1e-8 }
    }
}

/// One checkpoint entry of two models, and where its interpolation goes.
///
/// All slices have the same length; their element types may differ. The arithmetic is in f64 if one of them is f64,
/// else in f32.
#[derive(Debug)]
pub struct WiseEntry<'a> {
    /// Name of the entry, for messages.
    pub name: &'a str,
    /// Its value in the first model (zero-shot, pre-trained).
    pub theta0: Slice<'a>,
    /// Its value in the second model (fine-tuned).
    pub theta1: Slice<'a>,
    /// Fisher information of the first model, at least 0.
    pub fisher0: Option<Slice<'a>>,
    /// Fisher information of the second model, at least 0. Both or neither must be there.
    pub fisher1: Option<Slice<'a>>,
    /// Where the result is written.
    pub out: SliceMut<'a>,
}

impl<'a> WiseEntry<'a> {
    /// An entry without Fisher information.
    pub fn new(
        name: &'a str,
        theta0: impl Into<Slice<'a>>,
        theta1: impl Into<Slice<'a>>,
        out: impl Into<SliceMut<'a>>,
    ) -> Self {
        Self {
            name,
            theta0: theta0.into(),
            theta1: theta1.into(),
            fisher0: None,
            fisher1: None,
            out: out.into(),
        }
    }

    /// Adds the Fisher information of both models.
    #[must_use]
    pub fn fisher(mut self, fisher0: impl Into<Slice<'a>>, fisher1: impl Into<Slice<'a>>) -> Self {
        self.fisher0 = Some(fisher0.into());
        self.fisher1 = Some(fisher1.into());
        self
    }

    fn check(&self) -> Result<()> {
        let len = self.out.len();
        check_len(self.name, "value in the first model", len, self.theta0.len())?;
        check_len(self.name, "value in the second model", len, self.theta1.len())?;
        match (self.fisher0, self.fisher1) {
            (None, None) => Ok(()),
            (Some(fisher0), Some(fisher1)) => {
                check_len(self.name, "Fisher information of the first model", len, fisher0.len())?;
                check_len(self.name, "Fisher information of the second model", len, fisher1.len())
            }
            (there, _) => Err(Error::OneSided {
                tensor: self.name.to_owned(),
                what: "Fisher information",
                missing: if there.is_some() { "second model" } else { "first model" },
            }),
        }
    }
}

/// A chunk of an entry.
type Job<'a> = (Slice<'a>, Slice<'a>, Option<(Slice<'a>, Slice<'a>)>, SliceMut<'a>);

impl WiseFt {
    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`].
    pub fn validate(&self) -> Result<()> {
        check("WiseFt::alpha", self.alpha, "in [0, 1]", |alpha| (0.0..=1.0).contains(&alpha))?;
        above_zero("WiseFt::fisher_floor", self.fisher_floor)
    }

    /// Writes the interpolation of every entry. Reads each operand once and writes the result once.
    ///
    /// Any number of entries may be given at a time: one for streaming through checkpoints, all for speed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`], [`Error::LengthMismatch`], or [`Error::OneSided`] for an entry with the Fisher
    /// information of one model only. Nothing is written then.
    pub fn merge(&self, entries: &mut [WiseEntry<'_>]) -> Result<()> {
        self.validate()?;
        entries.iter().try_for_each(WiseEntry::check)?;
        let mut jobs: Vec<Job<'_>> = Vec::new();
        for entry in entries {
            let fisher = entry.fisher0.zip(entry.fisher1);
            for (range, out) in chunks_mut(entry.out.reborrow()) {
                let fisher = fisher.map(|(f0, f1)| (f0.sub(range.clone()), f1.sub(range.clone())));
                jobs.push((entry.theta0.sub(range.clone()), entry.theta1.sub(range), fisher, out));
            }
        }
        jobs.into_par_iter().for_each(|job| self.chunk(job));
        Ok(())
    }

    fn chunk(&self, (theta0, theta1, fisher, out): Job<'_>) {
        if self.alpha == 0.0 {
            return copy(out, theta0);
        }
        if self.alpha == 1.0 {
            return copy(out, theta1);
        }
        let fisher_dtypes = fisher.iter().flat_map(|(f0, f1)| [f0.dtype(), f1.dtype()]);
        let operands = [theta0.dtype(), theta1.dtype(), out.dtype()];
        let dtype = widest(operands.into_iter().chain(fisher_dtypes));
        with_real!(dtype, T => self.interpolate::<T>(theta0, theta1, fisher, out));
    }

    fn interpolate<T: Real>(
        &self,
        theta0: Slice<'_>,
        theta1: Slice<'_>,
        fisher: Option<(Slice<'_>, Slice<'_>)>,
        out: SliceMut<'_>,
    ) {
        let (share0, share1) = (T::from_f64(1.0 - self.alpha), T::from_f64(self.alpha));
        let Some((fisher0, fisher1)) = fisher else {
            return map(out, [theta0, theta1], |[x0, x1]: [T; 2]| share0 * x0 + share1 * x1);
        };
        let floor = T::from_f64(self.fisher_floor);
        // Not `max`, which would turn a NaN into the floor and hide it.
        let floored = |f: T| if f < floor { floor } else { f };
        map(out, [theta0, theta1, fisher0, fisher1], |[x0, x1, f0, f1]: [T; 4]| {
            let (a0, a1) = (share0 * floored(f0), share1 * floored(f1));
            (a0 * x0 + a1 * x1) / (a0 + a1)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::testing::{LENGTHS, noise, on_any_pool};
    use crate::element::{Buffer, DType};
    use proptest::prelude::*;

    /// The formulas, element by element in f64.
    fn plain(alpha: f64, theta0: f64, theta1: f64, fisher: Option<(f64, f64)>, floor: f64) -> f64 {
        let (f0, f1) = fisher.unwrap_or((1.0, 1.0));
        let (a0, a1) = ((1.0 - alpha) * f0.max(floor), alpha * f1.max(floor));
        (a0 * theta0 + a1 * theta1) / (a0 + a1)
    }

    #[test]
    fn every_type_and_length_follows_the_formula() {
        let wise = WiseFt { alpha: 0.3, fisher_floor: 1e-2 };
        for len in LENGTHS {
            let [x0, x1, f0, f1] = [1, 2, 3, 4].map(|seed| noise(seed, len));
            for dtype in DType::ALL {
                for fisher in [false, true] {
                    let [x0, x1] = [&x0, &x1].map(|x| Buffer::from_f64(dtype, x));
                    let [f0, f1] = [&f0, &f1].map(|f| Buffer::from_f64(DType::F32, f));
                    let got = on_any_pool(|| {
                        let mut out = Buffer::zeros(dtype, len);
                        let mut entry = WiseEntry::new("w", x0.as_slice(), x1.as_slice(), out.as_mut());
                        if fisher {
                            entry = entry.fisher(f0.as_slice(), f1.as_slice());
                        }
                        wise.merge(&mut [entry]).unwrap();
                        out
                    });
                    let eps = match dtype {
                        DType::F64 => 1e-15,
                        DType::F32 => 4e-7,
                        DType::F16 => 1e-3,
                        DType::BF16 => 8e-3,
                    };
                    for i in 0..len {
                        let at = |b: &Buffer| b.as_slice().get(i);
                        let fisher = fisher.then(|| (at(&f0), at(&f1)));
                        let expected = plain(0.3, at(&x0), at(&x1), fisher, 1e-2);
                        assert!(
                            (at(&got) - expected).abs() <= eps,
                            "{dtype} {len} [{i}]: {} {expected}",
                            at(&got)
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn hand_computed_values() {
        let mut out = [0.0f64; 3];
        let entry = WiseEntry::new("w", &[1.0f64, 2.0, -4.0], &[5.0f64, 2.0, 4.0], &mut out);
        // a0 = .75 * {1, 2, .5 (floored)}, a1 = .25 * {3, 2, .5 (floored)}
        let entry = entry.fisher(&[1.0f64, 2.0, 0.1], &[3.0f64, 2.0, -1.0]);
        WiseFt { alpha: 0.25, fisher_floor: 0.5 }.merge(&mut [entry]).unwrap();
        assert_eq!(out, [3.0, 2.0, -2.0]);
    }

    #[test]
    fn both_ends_are_the_models_bit_for_bit() {
        let x0 = [-0.0f32, 1e-40, 0.1, f32::MAX];
        let x1 = [f32::INFINITY, -0.0, 0.3, f32::MIN];
        for (alpha, expected) in [(0.0, x0), (1.0, x1)] {
            for fisher in [false, true] {
                let mut out = [7.0f32; 4];
                let mut entry = WiseEntry::new("w", &x0, &x1, &mut out);
                if fisher {
                    entry = entry.fisher(&[0.3f32; 4], &[0.7f32; 4]);
                }
                let wise = WiseFt { alpha, ..WiseFt::default() };
                wise.merge(&mut [entry]).unwrap();
                assert_eq!(out.map(f32::to_bits), expected.map(f32::to_bits), "{alpha} {fisher}");
            }
        }
    }

    #[test]
    fn types_may_be_mixed() {
        let half = Buffer::from_f64(DType::BF16, &[1.0, 2.0]);
        let mut out = Buffer::zeros(DType::F16, 2);
        let entry = WiseEntry::new("w", half.as_slice(), &[0.1f64, 0.2], out.as_mut());
        WiseFt::default().merge(&mut [entry]).unwrap();
        assert_eq!(out, Buffer::from_f64(DType::F16, &[0.55, 1.1]));
    }

    #[test]
    fn mistakes_are_named_and_nothing_is_written() {
        let merge = |wise: WiseFt, fisher: [Option<&[f32]>; 2], theta0: &[f32]| {
            let (mut first, mut second) = ([9.0f32; 2], [9.0f32; 2]);
            let good = WiseEntry::new("good", &[1.0f32; 2], &[2.0f32; 2], &mut first);
            let mut bad = WiseEntry::new("bad", theta0, &[2.0f32; 2], &mut second);
            [bad.fisher0, bad.fisher1] = fisher.map(|f| f.map(Slice::from));
            let error = wise.merge(&mut [good, bad]).unwrap_err();
            assert_eq!((first, second), ([9.0; 2], [9.0; 2]));
            error.to_string()
        };
        let (wise, pair): (_, &[f32]) = (WiseFt::default(), &[1.0, 1.0]);
        assert!(
            merge(wise, [Some(pair), None], pair)
                .contains("`bad`: its Fisher information is missing for the second")
        );
        assert!(merge(wise, [None, Some(pair)], pair).contains("missing for the first model"));
        assert!(
            merge(wise, [None, None], &[1.0]).contains("`bad`: its value in the first model has 1 elements")
        );
        assert!(
            merge(wise, [Some(pair), Some(&[1.0])], pair)
                .contains("Fisher information of the second model has 1")
        );
        for alpha in [-0.1, 1.1, f64::NAN] {
            assert!(merge(WiseFt { alpha, ..wise }, [None, None], pair).contains("WiseFt::alpha"), "{alpha}");
        }
        let floor = WiseFt { fisher_floor: 0.0, ..wise };
        assert!(merge(floor, [None, None], pair).contains("WiseFt::fisher_floor"));
    }

    proptest! {
        #[test]
        fn equal_models_stay_and_results_lie_between(
            alpha in 0.0..=1.0f64,
            rows in proptest::collection::vec((-10.0..10.0f64, -10.0..10.0f64, 0.0..5.0f64, 0.0..5.0f64), 1..50),
        ) {
            let column = |f: fn(&(f64, f64, f64, f64)) -> f64| rows.iter().map(f).collect::<Vec<f64>>();
            let (x0, x1) = (column(|r| r.0), column(|r| r.1));
            let (f0, f1) = (column(|r| r.2), column(|r| r.3));
            let mut out = vec![0.0f64; rows.len()];
            let wise = WiseFt { alpha, ..WiseFt::default() };
            wise.merge(&mut [WiseEntry::new("w", &x0, &x1, &mut out).fisher(&f0, &f1)]).unwrap();
            for (i, x) in out.iter().enumerate() {
                let slack = 1e-14 * (x0[i].abs() + x1[i].abs());
                prop_assert!(*x >= x0[i].min(x1[i]) - slack && *x <= x0[i].max(x1[i]) + slack);
            }
            wise.merge(&mut [WiseEntry::new("w", &x0, &x0, &mut out).fisher(&f0, &f1)]).unwrap();
            for (x, x0) in out.iter().zip(&x0) {
                prop_assert!((x - x0).abs() <= 1e-14 * x0.abs());
            }
        }
    }
}
