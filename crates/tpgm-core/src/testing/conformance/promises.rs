//! What [`Backend`] promises beside numbers.

use super::data::{CHUNK, Problem, build, set, specs};
use super::fixture::Fixture;
use super::methods;
use crate::backend::{Backend, TensorIo};
use crate::constraint::{Constraint, Ftp, Spd, Tpgm};
use crate::element::{Buffer, DType};
use crate::engine::EngineOptions;
use crate::error::Error;
use crate::optimizer::Optimizer;
use crate::params::ParamSet;
use crate::projector::Projector;
use crate::rule::{AdamW, Rule, Sgd};
use crate::state::StateDict;
use crate::step::{Gradients, StepOptions};

fn optimizer<B: Backend + Clone>(
    backend: &B,
    set: &ParamSet,
    rule: Rule,
    constraint: Constraint,
) -> Optimizer<B> {
    let options = EngineOptions::default().chunk(CHUNK);
    Optimizer::with_options(backend.clone(), set, rule, constraint, options).expect("valid options")
}

/// Takes steps and returns the weights and state that they lead to.
fn trajectory<B: Backend + Clone>(
    backend: &B,
    set: &ParamSet,
    problem: &Problem,
    rule: Rule,
    constraint: Constraint,
) -> (Vec<Vec<f64>>, StateDict) {
    trajectory_with(backend, set, problem, rule, constraint, &StepOptions::default())
}

fn trajectory_with<B: Backend + Clone>(
    backend: &B,
    set: &ParamSet,
    problem: &Problem,
    rule: Rule,
    constraint: Constraint,
    options: &StepOptions,
) -> (Vec<Vec<f64>>, StateDict) {
    let dtype = set.tensors()[0].dtype;
    let mut fixture = Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, dtype);
    let mut optimizer = optimizer(backend, set, rule, constraint);
    for grads in &problem.grads {
        fixture.set_grads(grads);
        fixture.run(|io| optimizer.step(io, options)).expect("step");
    }
    (fixture.weights(), optimizer.state().expect("state"))
}

/// Same bits: NaN would compare unequal, so no value may be NaN either.
#[track_caller]
pub(super) fn assert_same<T: PartialEq + std::fmt::Debug>(a: &T, b: &T, context: &str) {
    assert!(a == b, "{context}: results differ");
}

/// Trusting finite gradients changes no bit.
pub fn trusted_gradients_give_the_same_bits<B: Backend + Clone>(backend: &B) {
    let set = set(DType::F32);
    let problem = Problem::new(set.tensors(), DType::F32, 4, 3);
    for (rule, constraint) in methods::all() {
        for max_grad_norm in [None, Some(1.0)] {
            let run = |gradients| {
                let options = StepOptions { gradients, max_grad_norm, ..StepOptions::default() };
                trajectory_with(backend, &set, &problem, rule, constraint, &options)
            };
            let same = run(Gradients::Check) == run(Gradients::Trust);
            assert!(same, "{rule:?} under {constraint:?}: results differ");
        }
    }
}

/// Twice the same call, twice the same bits.
pub fn the_same_call_gives_the_same_bits<B: Backend + Clone>(backend: &B) {
    for dtype in DType::ALL {
        let set = set(dtype);
        let problem = Problem::new(set.tensors(), dtype, 4, 3);
        for (rule, constraint) in methods::all() {
            let first = trajectory(backend, &set, &problem, rule, constraint);
            let second = trajectory(backend, &set, &problem, rule, constraint);
            assert_same(&first, &second, &format!("{rule:?} under {constraint:?}"));
        }
    }
}

/// The order in which a set lists its tensors changes no bit of any of them (without a global norm, which adds them up).
pub fn order_of_tensors_does_not_matter<B: Backend + Clone>(backend: &B) {
    let dtype = DType::F32;
    let order: Vec<usize> = (0..specs(dtype).len()).map(|i| (i * 7 + 3) % specs(dtype).len()).collect();
    let permuted = build(order.iter().map(|&i| specs(dtype)[i].clone()).collect());
    let problem = Problem::new(&specs(dtype), dtype, 4, 5);
    let reordered = Problem {
        anchors: order.iter().map(|&i| problem.anchors[i].clone()).collect(),
        weights: order.iter().map(|&i| problem.weights[i].clone()).collect(),
        grads: problem.grads.iter().map(|g| order.iter().map(|&i| g[i].clone()).collect()).collect(),
    };
    for (rule, constraint) in methods::all() {
        let (weights, state) = trajectory(backend, &set(dtype), &problem, rule, constraint);
        let (permuted_weights, permuted_state) = trajectory(backend, &permuted, &reordered, rule, constraint);
        let context = format!("{rule:?} under {constraint:?}");
        for (position, &i) in order.iter().enumerate() {
            assert_same(&weights[i], &permuted_weights[position], &context);
        }
        assert_same(&state, &permuted_state, &context);
    }
}

/// State taken out after two steps and put into a fresh optimizer: the third step gives the bits of an uninterrupted run.
pub fn saved_state_continues_with_the_same_bits<B: Backend + Clone>(backend: &B) {
    for dtype in DType::ALL {
        let set = set(dtype);
        let problem = Problem::new(set.tensors(), dtype, 4, 9);
        for (rule, constraint) in methods::all() {
            let (uninterrupted, final_state) = trajectory(backend, &set, &problem, rule, constraint);
            let mut fixture = Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, dtype);
            let mut current = optimizer(backend, &set, rule, constraint);
            for grads in &problem.grads {
                let saved = current.state().expect("state");
                current = optimizer(backend, &set, rule, constraint);
                current.load_state(&saved).expect("its own state");
                fixture.set_grads(grads);
                fixture.run(|io| current.step(io, &StepOptions::default())).expect("step");
            }
            let context = format!("{rule:?} under {constraint:?}, {dtype}");
            assert_same(&fixture.weights(), &uninterrupted, &context);
            assert_same(&current.state().expect("state"), &final_state, &context);
        }
    }

    let set = set(DType::F32);
    let mut other = optimizer(backend, &set, AdamW::default().into(), Ftp::default().into());
    let saved = other.state().expect("state");
    let mut missing = saved.clone();
    missing.remove("block4.weight/row_scale");
    assert_eq!(other.load_state(&missing), Err(Error::MissingSlot { key: "block4.weight/row_scale".into() }));
    let mut longer = saved.clone();
    longer.insert("block4.weight/exp_avg".into(), Buffer::zeros(DType::F32, 5));
    assert!(matches!(other.load_state(&longer), Err(Error::LengthMismatch { what: "exp_avg", got: 5, .. })));
    let mut wider = saved.clone();
    wider.insert("block4.weight/exp_avg".into(), Buffer::zeros(DType::F64, 123));
    assert!(matches!(other.load_state(&wider), Err(Error::DTypeMismatch { what: "exp_avg", .. })));
    let mut more = saved.clone();
    more.insert("block4.weight/momentum_buffer".into(), Buffer::zeros(DType::F32, 123));
    assert_eq!(
        other.load_state(&more),
        Err(Error::UnexpectedSlot { key: "block4.weight/momentum_buffer".into() })
    );
    let mut broken = saved;
    broken.insert("block4.weight/scalars".into(), Buffer::F64(vec![f64::NAN; 9]));
    assert!(matches!(other.load_state(&broken), Err(Error::NonFiniteValue { .. })));
}

/// Infinity or NaN anywhere in a gradient: an error that names the tensor, and not one bit of weights or state changed.
pub fn a_gradient_that_is_not_finite_changes_nothing<B: Backend + Clone>(backend: &B) {
    for dtype in DType::ALL {
        let set = set(dtype);
        let problem = Problem::new(set.tensors(), dtype, 3, 13);
        for (rule, constraint) in methods::all() {
            for clip in [None, Some(1.0)] {
                let mut fixture =
                    Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, dtype);
                let mut optimizer = optimizer(backend, &set, rule, constraint);
                for (step, bad) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().enumerate() {
                    let options = StepOptions { max_grad_norm: clip, ..StepOptions::default() };
                    let before = (fixture.weights(), optimizer.state().expect("state"));
                    // The last element of a long row, and one in the middle of a tensor with short rows.
                    let mut grads = problem.grads[step].clone();
                    for (tensor, element) in [(4, 122), (9, 20)] {
                        if let Some(grad) = &mut grads[tensor] {
                            grad[element] = bad;
                        }
                    }
                    fixture.set_grads(&grads);
                    let error = fixture.run(|io| optimizer.step(io, &options)).expect_err("not finite");
                    let named = Error::NonFiniteGradient { tensor: "block4.weight".into(), count: 2 };
                    assert_eq!(error, named, "{rule:?} under {constraint:?}");
                    let after = (fixture.weights(), optimizer.state().expect("state"));
                    assert_same(&before, &after, &format!("{bad} in {dtype}, {rule:?} under {constraint:?}"));
                    fixture.set_grads(&problem.grads[step]);
                    fixture.run(|io| optimizer.step(io, &options)).expect("a finite step goes on");
                }
            }
        }
    }

    let set = set(DType::F32);
    let problem = Problem::new(set.tensors(), DType::F32, 1, 13);
    let mut fixture = Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, DType::F32);
    let mut projector = Projector::new(backend.clone(), &set, Tpgm::default()).expect("valid options");
    fixture.run(|io| projector.begin(io)).expect("begin");
    fixture.run(|io| projector.apply(io)).expect("apply");
    let before = projector.scalars().expect("scalars");
    let mut grads = problem.grads[0].clone();
    if let Some(grad) = &mut grads[7] {
        grad[3] = f64::NAN;
    }
    fixture.set_grads(&grads);
    let error = fixture.run(|io| projector.update(io)).expect_err("not finite");
    assert_eq!(error, Error::NonFiniteGradient { tensor: "block7.weight".into(), count: 1 });
    assert_same(&before, &projector.scalars().expect("scalars"), "radii after a refused update");
    fixture.run(|io| projector.abort(io)).expect("abort");
    assert_same(&problem.weights, &fixture.weights(), "weights after an aborted update");
}

fn io<'a, B: Backend>(
    weight: &'a mut B::Buffer,
    grad: Option<B::Ref<'a>>,
    anchor: Option<B::Ref<'a>>,
) -> TensorIo<'a, B> {
    TensorIo { weight: B::as_mut(weight), grad, anchor, variance: None }
}

/// Errors name the tensor and the operand; calls out of order are refused.
pub fn wrong_operands_are_named<B: Backend + Clone>(backend: &B) {
    let set = ParamSet::builder()
        .tensor("a", [2, 3], DType::F32)
        .tensor("b", [4], DType::F32)
        .build()
        .expect("set");
    let upload = |values: &[f64], dtype| backend.upload(&Buffer::from_f64(dtype, values)).expect("upload");
    let mut optimizer = optimizer(backend, &set, Sgd::default().into(), Spd::default().into());
    let options = StepOptions::default();
    let (mut a, mut b) = (upload(&[0.5; 6], DType::F32), upload(&[0.5; 4], DType::F32));
    let (six, four, three) =
        (upload(&[0.25; 6], DType::F32), upload(&[0.25; 4], DType::F32), upload(&[0.25; 3], DType::F32));
    macro_rules! step {
        ($($io:expr),*) => { optimizer.step(&mut [$($io),*], &options) };
    }

    let error = step!(io::<B>(&mut a, None, None));
    assert_eq!(error, Err(Error::CountMismatch { what: "tensors", expected: 2, got: 1 }));
    let error = step!(
        io::<B>(&mut a, Some(B::as_ref(&six)), Some(B::as_ref(&six))),
        io::<B>(&mut b, Some(B::as_ref(&three)), None)
    );
    let expected = Error::LengthMismatch { tensor: "b".into(), what: "gradient", expected: 4, got: 3 };
    assert_eq!(error, Err(expected));
    let error = step!(
        io::<B>(&mut a, Some(B::as_ref(&six)), Some(B::as_ref(&six))),
        io::<B>(&mut b, Some(B::as_ref(&four)), None)
    );
    assert_eq!(error, Err(Error::MissingAnchor { tensor: "b".into(), constraint: "SPD" }));
    let mut wide = upload(&[0.5; 4], DType::F64);
    let error = step!(
        io::<B>(&mut a, Some(B::as_ref(&six)), Some(B::as_ref(&six))),
        io::<B>(&mut wide, Some(B::as_ref(&four)), Some(B::as_ref(&four)))
    );
    let expected =
        Error::DTypeMismatch { tensor: "b".into(), what: "weight", expected: DType::F32, got: DType::F64 };
    assert_eq!(error, Err(expected));
    let same = [6, 4].map(|n| vec![0.5; n]);
    let weights = [&a, &b].map(|buffer| backend.download(buffer).expect("download").to_f64());
    assert_same(&weights, &same, "weights after refused steps");
    for bad in [StepOptions::lr(-1.0), StepOptions { grad_scale: 0.0, ..options }, StepOptions::lr(f64::NAN)]
    {
        let error = optimizer.step(
            &mut [
                io::<B>(&mut a, Some(B::as_ref(&six)), Some(B::as_ref(&six))),
                io::<B>(&mut b, Some(B::as_ref(&four)), Some(B::as_ref(&four))),
            ],
            &bad,
        );
        assert!(matches!(error, Err(Error::InvalidOption { .. })), "{bad:?}: {error:?}");
    }
    assert!(optimizer.projector_mut().is_none(), "SPD has no projector");

    let mut projector = Projector::new(backend.clone(), &set, Tpgm::default()).expect("valid options");
    macro_rules! io {
        ($grad:expr) => {
            &mut [
                io::<B>(&mut a, Some(B::as_ref(&six)), Some(B::as_ref(&six))),
                io::<B>(&mut b, $grad, Some(B::as_ref(&four))),
            ]
        };
    }
    let out_of_order = |result| matches!(result, Err(Error::OutOfOrder { .. }));
    assert!(out_of_order(projector.apply(io!(Some(B::as_ref(&four))))));
    assert!(out_of_order(projector.update(io!(Some(B::as_ref(&four))))));
    assert!(out_of_order(projector.finish(io!(Some(B::as_ref(&four))))));
    projector.begin(io!(Some(B::as_ref(&four)))).expect("begin");
    assert!(out_of_order(projector.begin(io!(Some(B::as_ref(&four))))));
    assert!(out_of_order(projector.project(io!(Some(B::as_ref(&four))))));
    assert!(out_of_order(projector.update(io!(Some(B::as_ref(&four))))), "no `apply` yet");
    assert!(matches!(projector.state(), Err(Error::OutOfOrder { .. })));
    projector.apply(io!(Some(B::as_ref(&four)))).expect("apply");
    assert_eq!(projector.update(io!(None)), Err(Error::MissingGradient { tensor: "b".into() }));
    projector.update(io!(Some(B::as_ref(&four)))).expect("update");
    projector.finish(io!(Some(B::as_ref(&four)))).expect("finish");
}

/// Preparing a step takes none: not a bit changes, and the next step is what it would have been.
pub fn preparing_a_step_changes_nothing<B: Backend + Clone>(backend: &B) {
    let set = set(DType::F32);
    let problem = Problem::new(set.tensors(), DType::F32, 2, 23);
    for (rule, constraint) in methods::all() {
        let run = |prepare: bool| {
            let mut fixture =
                Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, DType::F32);
            let mut optimizer = optimizer(backend, &set, rule, constraint);
            for grads in &problem.grads {
                fixture.set_grads(grads);
                if prepare {
                    let before = (fixture.weights(), optimizer.state().expect("state"));
                    fixture.run(|io| optimizer.prepare_step(io, &StepOptions::lr(0.5))).expect("prepare");
                    let after = (fixture.weights(), optimizer.state().expect("state"));
                    assert_same(&before, &after, &format!("{rule:?} under {constraint:?}, prepared"));
                }
                fixture.run(|io| optimizer.step(io, &StepOptions::default())).expect("step");
            }
            (fixture.weights(), optimizer.state().expect("state"))
        };
        assert_same(&run(true), &run(false), &format!("{rule:?} under {constraint:?}"));
    }
}
