//! Moving averages and interpolation.

use super::data::{Problem, rounded, set, uniform};
use super::fixture::{Fixture, Tolerance};
use crate::backend::Backend;
use crate::element::{Buffer, DType};
use crate::ema::Ema;
use crate::error::Error;
use crate::oracle;
use crate::weight_space::Interpolator;

/// The moving average of every element type.
pub fn averages_match_the_oracle<B: Backend + Clone>(backend: &B) {
    for dtype in DType::ALL {
        let set = set(dtype);
        let start = Problem::new(set.tensors(), dtype, 0, 17).weights;
        let upload = |weights: &[Vec<f64>]| -> Vec<B::Buffer> {
            let one = |weight: &Vec<f64>| backend.upload(&Buffer::from_f64(dtype, weight)).expect("upload");
            weights.iter().map(one).collect()
        };
        let buffers = upload(&start);
        let views: Vec<_> = buffers.iter().map(B::as_ref).collect();
        let mut ema = Ema::new(backend.clone(), &set, &views).expect("right operands");
        let mut expected = start;
        for (round, decay) in [0.0, 0.9, 0.5, 1.0].into_iter().enumerate() {
            let weights: Vec<Vec<f64>> = set
                .tensors()
                .iter()
                .enumerate()
                .map(|(t, spec)| {
                    let values = uniform((100 * round + t) as u64, spec.numel(), 1.0);
                    Buffer::from_f64(dtype, &values).to_f64()
                })
                .collect();
            let buffers = upload(&weights);
            let views: Vec<_> = buffers.iter().map(B::as_ref).collect();
            ema.update(&views, decay).expect("right operands");
            for (average, weight) in expected.iter_mut().zip(&weights) {
                *average = oracle::ema(average, weight, decay);
            }
        }
        for (got, expected) in ema.state().expect("download").iter().zip(&expected) {
            assert_eq!(got.dtype(), dtype.compute());
            Tolerance::weights(dtype.compute())
                .check_all(&got.to_f64(), expected, || format!("average, {dtype}"));
        }
        assert!(matches!(ema.update(&views, 1.5), Err(Error::InvalidOption { .. })));
        assert!(matches!(ema.update(&views[1..], 0.5), Err(Error::CountMismatch { .. })));
    }
}

/// WiSE-FT in place, of every element type, with anchors of another.
pub fn interpolations_match_the_oracle<B: Backend + Clone>(backend: &B) {
    for dtype in DType::ALL {
        for anchor_dtype in [dtype, DType::F32] {
            let set = set(dtype);
            let problem = Problem::new(set.tensors(), anchor_dtype, 0, 19);
            let mut interpolator = Interpolator::new(backend.clone(), &set).expect("memory");
            for alpha in [0.0, 0.3, 1.0] {
                let mut fixture =
                    Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, anchor_dtype);
                fixture.run(|io| interpolator.interpolate(io, alpha)).expect("interpolate");
                for (t, got) in fixture.weights().iter().enumerate() {
                    let anchor = problem.anchors[t].as_deref().unwrap_or_default();
                    let expected = rounded(dtype, &oracle::wise(anchor, &problem.weights[t], alpha));
                    let context =
                        || format!("alpha {alpha}, {dtype} with {anchor_dtype} anchors, tensor {t}");
                    Tolerance::weights(dtype).check_all(got, &expected, context);
                }
            }
            let mut fixture =
                Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, anchor_dtype);
            let error = fixture.run(|io| interpolator.interpolate(io, 1.5));
            assert!(matches!(error, Err(Error::InvalidOption { option: "WiseFt::alpha", .. })), "{error:?}");
            let missing = problem.anchors.iter().enumerate().map(|(t, a)| a.clone().filter(|_| t != 4));
            let missing: Vec<_> = missing.collect();
            let mut fixture = Fixture::new(backend, set.tensors(), &problem.weights, &missing, anchor_dtype);
            let error = fixture.run(|io| interpolator.interpolate(io, 0.5));
            let expected = Error::MissingAnchor { tensor: "block4.weight".into(), constraint: "WiSE-FT" };
            assert_eq!(error, Err(expected));
        }
    }
}

/// A blend that keeps nothing copies, also over targets that are no numbers, from any type to any other.
pub fn blends_that_keep_nothing_copy<B: Backend + Clone>(backend: &B) {
    for dtype in DType::ALL {
        for source in DType::ALL {
            let set = set(dtype);
            let numel = set.tensors().iter().map(|spec| spec.numel());
            let values: Vec<Vec<f64>> =
                numel.enumerate().map(|(t, n)| rounded(source, &uniform(t as u64, n, 2.0))).collect();
            let anchors: Vec<_> = values.iter().cloned().map(Some).collect();
            let weights: Vec<_> = values.iter().map(|values| vec![f64::NAN; values.len()]).collect();
            let mut fixture = Fixture::new(backend, set.tensors(), &weights, &anchors, source);
            let mut interpolator = Interpolator::new(backend.clone(), &set).expect("memory");
            fixture.run(|io| interpolator.interpolate(io, 0.0)).expect("interpolate");
            // Sources are read in the compute type of the target.
            let copied = |values: &Vec<f64>| rounded(dtype, &rounded(dtype.compute(), values));
            let expected: Vec<_> = values.iter().map(copied).collect();
            assert!(fixture.weights() == expected, "{source} to {dtype}");
        }
    }
}
