//! TPGM's projector.

use super::data::{CHUNK, Problem, rounded, set};
use super::fixture::{Fixture, Tolerance};
use crate::backend::Backend;
use crate::constraint::{RadiusAdam, Tpgm};
use crate::element::DType;
use crate::engine::EngineOptions;
use crate::norm::Norm;
use crate::oracle;
use crate::plan;
use crate::projector::Projector;

/// Two projection updates of three iterations each, an update that is aborted, and a projection between them.
pub fn projector_matches_the_oracle<B: Backend + Clone>(backend: &B) {
    for dtype in DType::ALL {
        for norm in [Norm::L2, Norm::Mars] {
            for chunk in [CHUNK, plan::CHUNK] {
                run(backend, dtype, norm, chunk);
            }
        }
    }
}

fn run<B: Backend + Clone>(backend: &B, dtype: DType, norm: Norm, chunk: usize) {
    let set = set(dtype);
    let problem = Problem::new(set.tensors(), dtype, 8, 11);
    let tpgm = Tpgm { norm, adam: RadiusAdam { lr: 0.03, ..RadiusAdam::default() } };
    let options = EngineOptions::default().chunk(chunk);
    let mut projector = Projector::with_options(backend.clone(), &set, tpgm, options).expect("valid options");
    let mut oracle = oracle::Projector::new(&set, tpgm).expect("valid options");
    let mut fixture = Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, dtype);
    let mut expected = problem.weights.clone();
    let anchors = &problem.anchors;
    let mut grads = problem.grads.iter();

    let compare = |projector: &Projector<B>,
                   oracle: &oracle::Projector,
                   got: &[Vec<f64>],
                   expected: &[Vec<f64>],
                   at: &str| {
        let scalars = projector.scalars().expect("scalars");
        for (t, spec) in set.tensors().iter().enumerate() {
            let context =
                |what: &str| format!("{at}: {what} of {:?} {dtype}, {norm:?}, pieces of {chunk}", spec.shape);
            let expected = rounded(dtype, &expected[t]);
            Tolerance::weights(dtype).check_all(&got[t], &expected, || context("weight"));
            let (Some(radius), true) = (oracle.radius(t), spec.numel() > 0) else { continue };
            let close = Tolerance::scalars(dtype);
            close.check(scalars[t].radius, radius.value, || context("radius"));
            close.check(scalars[t].radius_m, radius.m, || context("first moment"));
            close.check(scalars[t].radius_v, radius.v, || context("second moment"));
            if let Some(trace) = oracle.trace(t) {
                let norms = projector.norms(&spec.name).expect("norms");
                close.check_all(&norms, &trace.norms, || context("norm"));
                let smallest = trace.ratios.iter().copied().fold(1.0, f64::min);
                close.check(scalars[t].ratio, smallest, || context("ratio"));
            }
        }
    };

    for round in 0..3 {
        // The oracle holds weights in compute type; here they are what the backend was left with.
        expected = expected.iter().map(|weight| rounded(dtype, weight)).collect();
        fixture.run(|io| projector.begin(io)).expect("begin");
        oracle.begin(&expected, anchors).expect("begin");
        for iteration in 0..3 {
            let at = format!("round {round} iteration {iteration}");
            fixture.run(|io| projector.apply(io)).expect("apply");
            oracle.apply(&mut expected, anchors).expect("apply");
            compare(&projector, &oracle, &fixture.weights(), &expected, &format!("{at}, applied"));
            let Some(grads) = grads.next() else { continue };
            // A tensor without elements has nothing to learn, but its empty gradient is asked for all the same.
            fixture.set_grads(grads);
            fixture.run(|io| projector.update(io)).expect("update");
            oracle.update(grads).expect("update");
            compare(&projector, &oracle, &fixture.weights(), &expected, &format!("{at}, updated"));
        }
        if round == 1 {
            let before = expected.clone();
            fixture.run(|io| projector.abort(io)).expect("abort");
            oracle.abort(&mut expected).expect("abort");
            assert_ne!(before, expected, "an abort that restores nothing tests nothing");
            compare(&projector, &oracle, &fixture.weights(), &expected, "aborted");
            fixture.run(|io| projector.project(io)).expect("project");
            oracle.project(&mut expected, anchors).expect("project");
            compare(&projector, &oracle, &fixture.weights(), &expected, "projected");
        } else {
            fixture.run(|io| projector.finish(io)).expect("finish");
            oracle.finish(&mut expected, anchors).expect("finish");
            compare(&projector, &oracle, &fixture.weights(), &expected, "finished");
        }
    }
}
