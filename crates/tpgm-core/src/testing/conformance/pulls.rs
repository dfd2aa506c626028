//! Pulls, and the importance that they are weighted by.

use super::data::{CHUNK, Problem, build, rounded, set, specs};
use super::fixture::{Fixture, Tolerance};
use super::methods;
use super::promises::assert_same;
use crate::backend::Backend;
use crate::constraint::{Constraint, Coupling, L2Sp, Pull, PullScale, PullWeights, Spd};
use crate::element::DType;
use crate::engine::EngineOptions;
use crate::error::Error;
use crate::optimizer::Optimizer;
use crate::oracle;
use crate::params::{Group, ParamSet};
use crate::plan;
use crate::rule::{AdamW, Rule, Sgd};
use crate::state::Masters;
use crate::step::StepOptions;

const STEPS: usize = 4;

/// All four penalties at once: what one of them does wrong is seen.
const ALL_FOUR: Pull = Pull {
    strength: 0.5,
    anchor_l2: 0.7,
    anchor_l1: 0.03,
    zero_l2: 0.2,
    zero_l1: 0.05,
    scale: PullScale::Sum,
    coupling: Coupling::Coupled,
    weights: PullWeights::One,
};

/// Every kind of weights under both couplings and all scales, and each penalty alone.
fn pulls() -> Vec<Pull> {
    let mut pulls: Vec<Pull> = methods::weights()
        .into_iter()
        .flat_map(|weights| {
            let pull = Pull { weights, ..ALL_FOUR };
            [pull, Pull { coupling: Coupling::Decoupled, ..pull }]
        })
        .collect();
    let none = Pull { strength: 2.0, ..Pull::default() };
    pulls.extend([
        Pull { scale: PullScale::TensorMean, strength: 3.0, ..ALL_FOUR },
        Pull { scale: PullScale::SetMean, strength: 30.0, ..ALL_FOUR },
        Pull { anchor_l1: 0.2, ..none },
        Pull { anchor_l2: 0.2, scale: PullScale::TensorMean, ..none },
        Pull { zero_l1: 0.2, coupling: Coupling::Decoupled, ..none },
        Pull { zero_l2: 0.2, ..none },
        Pull { zero_l2: 0.2, coupling: Coupling::Decoupled, weights: PullWeights::Fisher, ..none },
    ]);
    pulls
}

/// Takes steps with importance updated before some of them, and compares weights and importance with the oracle's. `missing`
/// says which tensors have no gradient in an update.
fn compare<B: Backend + Clone>(
    backend: &B,
    (set, anchor_dtype): (&ParamSet, DType),
    rule: Rule,
    pull: Constraint,
    options: EngineOptions,
    missing: impl Fn(usize, usize) -> bool,
) {
    let specs = set.tensors();
    let problem = Problem::new(specs, anchor_dtype, STEPS, 31);
    let others = Problem::new(specs, anchor_dtype, STEPS, 77);
    let mut fixture = Fixture::new(backend, specs, &problem.weights, &problem.anchors, anchor_dtype);
    let mut optimizer =
        Optimizer::with_options(backend.clone(), set, rule, pull, options).expect("valid options");
    let mut oracle = oracle::Optimizer::new(set, rule, pull).expect("valid options");
    let kept: Vec<bool> =
        oracle.settings().iter().map(|settings| settings.constraint.importance().is_some()).collect();
    let mut expected = problem.weights.clone();
    for step in 0..STEPS {
        // The first step goes without, and the third keeps what it has.
        if kept.contains(&true) && step % 2 == 1 {
            let mut grads = others.grads[step].clone();
            (0..specs.len()).filter(|&t| missing(step, t)).for_each(|t| grads[t] = None);
            fixture.set_grads(&grads);
            fixture.run(|io| optimizer.update_importance(io)).expect("importance");
            oracle.update_importance(&grads).expect("importance of the oracle");
        }
        fixture.set_grads(&problem.grads[step]);
        if options.masters == Masters::Off {
            expected = fixture.weights();
        }
        fixture.run(|io| optimizer.step(io, &StepOptions::default())).expect("step");
        let grads = &problem.grads[step];
        oracle.step(&mut expected, grads, &problem.anchors, None, 1.0, None).expect("oracle step");
        let got = fixture.weights();
        for (t, spec) in specs.iter().enumerate() {
            let context =
                |what: &str| format!("step {step}, {rule:?} under {pull:?}: {what} of {spec:?}, {options:?}");
            let tolerance = match options.masters {
                Masters::Auto => Tolerance::weights(spec.dtype),
                Masters::Off => Tolerance::without_masters(spec.dtype),
            };
            tolerance.check_all(&got[t], &rounded(spec.dtype, &expected[t]), || context("weight"));
            if kept[t] {
                let importance = optimizer.importance(&spec.name).expect("kept");
                let expected = oracle.importance(t).expect("in the set");
                Tolerance::weights(spec.dtype.compute())
                    .check_all(&importance, expected, || context("importance"));
            }
        }
    }
}

/// Pulls of every kind, in every element type, with small pieces and with the usual ones; importance that is given late, kept for a
/// while, and not given to some tensors.
pub fn pulls_match_the_oracle<B: Backend + Clone>(backend: &B) {
    let [adamw, sgd]: [Rule; 2] = [AdamW::default().lr(0.01).into(), Sgd::default().lr(0.02).into()];
    for dtype in DType::ALL {
        let set = set(dtype);
        for (i, pull) in pulls().into_iter().enumerate() {
            let (rule, chunk) = if i % 2 == 0 { (adamw, CHUNK) } else { (sgd, plan::CHUNK) };
            for (rule, chunk) in [(rule, chunk), (adamw, plan::CHUNK)] {
                let options = EngineOptions::default().chunk(chunk);
                compare(backend, (&set, dtype), rule, pull.into(), options, |step, t| step == 1 && t == 4);
            }
        }
    }
    for dtype in [DType::F16, DType::BF16] {
        let options = EngineOptions::default().chunk(CHUNK).masters(Masters::Off);
        let pull = Pull { weights: PullWeights::Fisher, ..ALL_FOUR };
        compare(backend, (&set(dtype), dtype), sgd, pull.into(), options, |_, _| false);
    }
}

/// Pulls with and without importance beside other constraints in one set of mixed element types.
pub fn pulls_in_groups_match_the_oracle<B: Backend + Clone>(backend: &B) {
    let mut mixed = specs(DType::F32);
    for (t, spec) in mixed.iter_mut().enumerate() {
        spec.dtype = DType::ALL[t % 4];
    }
    let running = Pull { weights: PullWeights::Running { decay: 0.6 }, ..ALL_FOUR };
    let set = ParamSet::builder()
        .tensors(mixed)
        .group(Group::new("block3.*").constraint(Spd::default()))
        .group(Group::new("block4.*").strength(2.0).lr(0.05))
        .group(Group::new("block5.*").excluded())
        .group(Group::new("block6.*").no_anchor())
        .group(Group::any(["block7.*", "block9.*"]).zero_anchor())
        .group(Group::new("block10.*").constraint(ALL_FOUR))
        .build()
        .expect("patterns match");
    for rule in methods::rules() {
        let options = EngineOptions::default().chunk(CHUNK);
        compare(backend, (&set, DType::F32), rule, running.into(), options, |step, t| step == 3 && t == 9);
    }
}

/// Half the squared distance alone is L2-SP, and half the square alone weight decay, to the bit; so is an importance of ones within
/// rounding.
pub fn pulls_of_squares_are_l2_sp<B: Backend + Clone>(backend: &B) {
    for dtype in [DType::F32, DType::BF16] {
        let set = set(dtype);
        let problem = Problem::new(set.tensors(), dtype, 3, 41);
        let run = |rule: Rule, constraint: Constraint, ones: bool| {
            let mut fixture = Fixture::new(backend, set.tensors(), &problem.weights, &problem.anchors, dtype);
            let mut optimizer =
                Optimizer::new(backend.clone(), &set, rule, constraint).expect("valid options");
            for spec in set.tensors().iter().filter(|_| ones) {
                optimizer.set_importance(&spec.name, &vec![1.0; spec.numel()]).expect("ones");
            }
            for grads in &problem.grads {
                fixture.set_grads(grads);
                fixture.run(|io| optimizer.step(io, &StepOptions::default())).expect("step");
            }
            fixture.weights()
        };
        for coupling in [Coupling::Coupled, Coupling::Decoupled] {
            let rule = AdamW::default().lr(0.01);
            let pull = Pull { anchor_l2: 0.3, coupling, ..Pull::default() };
            let l2_sp = run(rule.into(), L2Sp { alpha: 0.3, coupling }.into(), false);
            assert_same(&run(rule.into(), pull.into(), false), &l2_sp, "L2-SP");
            let weighed = run(rule.into(), Pull { weights: PullWeights::Fisher, ..pull }.into(), true);
            for (spec, (got, expected)) in set.tensors().iter().zip(weighed.iter().zip(&l2_sp)) {
                Tolerance::weights(dtype).check_all(got, expected, || format!("ones, {spec:?}"));
            }
        }
        let (plain, decay) = (Sgd::default().lr(0.02), Sgd::default().lr(0.02).weight_decay(0.3));
        let pull = Pull { zero_l2: 0.3, ..Pull::default() };
        assert_same(
            &run(plain.into(), pull.into(), false),
            &run(decay.into(), Constraint::None, false),
            "weight decay",
        );
    }
}

/// Importance by its definition: mean 1, zeros of a gradient that is all zero (0 / 0 in the published code), gates that stay open,
/// an average that starts at its first value, the scale of the gradient without effect even where its squares leave f32; saved
/// and put back.
pub fn importance_keeps_its_promises<B: Backend + Clone>(backend: &B) {
    let set = ParamSet::builder()
        .tensor("a", [2, 2], DType::F32)
        .tensor("b", [3], DType::BF16)
        .build()
        .expect("names differ");
    let make = |weights| {
        let pull = Pull { anchor_l2: 1.0, weights, ..Pull::default() };
        Optimizer::new(backend.clone(), &set, Sgd::default(), pull).expect("valid options")
    };
    let start = [vec![0.5; 4], vec![0.5; 3]];
    let anchors = [Some(vec![0.0; 4]), Some(vec![0.0; 3])];
    let mut fixture = Fixture::new(backend, set.tensors(), &start, &anchors, DType::F32);
    let mut update = |optimizer: &mut Optimizer<B>, a: [f64; 4], b: Option<[f64; 3]>| {
        fixture.set_grads(&[Some(a.to_vec()), b.map(|b| b.to_vec())]);
        fixture.run(|io| optimizer.update_importance(io)).expect("importance");
        ["a", "b"].map(|name| optimizer.importance(name).expect("kept"))
    };

    let mut fisher = make(PullWeights::Fisher);
    for scale in [1.0, -1e-30, 1e25] {
        let [a, b] = update(&mut fisher, [3.0, -1.0, 0.0, 2.0].map(|x| x * scale), Some([2.0, -2.0, 0.0]));
        let expected = [9.0, 1.0, 0.0, 4.0].map(|x| x * 4.0 / 14.0);
        Tolerance::weights(DType::F32).check_all(&a, &expected, || format!("Fisher of {scale:e}"));
        Tolerance::weights(DType::F32).check_all(&b, &[1.5, 1.5, 0.0], || "Fisher of bf16".into());
    }
    let [a, b] = update(&mut fisher, [0.0; 4], None);
    assert_eq!((a, b), (vec![0.0; 4], vec![1.5, 1.5, 0.0]), "all zero; and no gradient");

    let mut running = make(PullWeights::Running { decay: 0.75 });
    let [a, _] = update(&mut running, [2.0, 0.0, 0.0, 0.0], None);
    assert_eq!(a, [4.0, 0.0, 0.0, 0.0], "the first counts in full");
    let [a, b] = update(&mut running, [0.0, 1.0, 1.0, 0.0], Some([1.0, 1.0, -1.0]));
    assert_eq!((a, b), (vec![3.0, 0.5, 0.5, 0.0], vec![1.0; 3]));
    let saved = running.state().expect("state");
    let mut resumed = make(PullWeights::Running { decay: 0.75 });
    resumed.load_state(&saved).expect("its own state");
    let next = [0.0, 0.0, 0.0, 1.0];
    assert_eq!(update(&mut resumed, next, None), update(&mut running, next, None), "resumed");
    assert_eq!(resumed.importance("a"), Ok(vec![2.25, 0.375, 0.375, 1.0]));

    let mut gates = make(PullWeights::Gate { threshold: 1.0 });
    let [a, b] = update(&mut gates, [1.0, -1.0, 0.0, 0.5], None);
    assert_eq!((a, b), (vec![1.0, 1.0, 0.0, 0.0], vec![0.0; 3]));
    let [a, _] = update(&mut gates, [0.0, 0.0, 0.0, 9.0], None);
    assert_eq!(a, [1.0, 1.0, 0.0, 1.0], "open gates stay open");
    let [a, _] = update(&mut gates, [0.0; 4], None);
    assert_eq!(a, [1.0, 1.0, 0.0, 1.0], "no gradient opens none");
}

/// What importance refuses, by name, with nothing changed.
pub fn importance_refuses_by_name<B: Backend + Clone>(backend: &B) {
    let set = ParamSet::builder()
        .tensor("a", [2, 2], DType::F32)
        .tensor("b", [3], DType::F32)
        .group(Group::new("b").constraint(Spd::default()))
        .build()
        .expect("names differ");
    let make =
        |pull: Pull| Optimizer::new(backend.clone(), &set, Sgd::default(), pull).expect("valid options");
    let pull = Pull { anchor_l2: 1.0, weights: PullWeights::Fisher, ..Pull::default() };
    let mut optimizer = make(pull);
    optimizer.set_importance("a", &[1.0, 0.0, 2.5, 0.0]).expect("right values");
    let unknown = Error::UnknownTensor { tensor: "c".into() };
    assert_eq!(optimizer.set_importance("c", &[1.0]), Err(unknown.clone()));
    assert_eq!(optimizer.importance("c"), Err(unknown));
    let none = Error::NoImportance { tensor: "b".into(), constraint: "SPD" };
    assert_eq!(optimizer.set_importance("b", &[1.0; 3]), Err(none.clone()));
    assert_eq!(optimizer.importance("b"), Err(none));
    let short = Error::LengthMismatch { tensor: "a".into(), what: "importance", expected: 4, got: 3 };
    assert_eq!(optimizer.set_importance("a", &[1.0; 3]), Err(short));
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let error = optimizer.set_importance("a", &[0.0, bad, 1.0, 1.0]);
        assert!(matches!(error, Err(Error::InvalidImportance { index: 1, .. })), "{bad}: {error:?}");
    }
    let mut gates = make(Pull { weights: PullWeights::Gate { threshold: 1.0 }, ..pull });
    gates.set_importance("a", &[0.0, 1.0, 1.0, 0.0]).expect("gates");
    let error = gates.set_importance("a", &[0.0, 1.0, 0.5, 0.0]);
    assert!(matches!(error, Err(Error::InvalidImportance { index: 2, .. })), "{error:?}");

    let start = [vec![0.5; 4], vec![0.5; 3]];
    let mut fixture = Fixture::new(backend, set.tensors(), &start, &[None, None], DType::F32);
    fixture.set_grads(&[Some(vec![1.0, f64::NAN, 1.0, 1.0]), Some(vec![1.0; 3])]);
    let error = fixture.run(|io| optimizer.update_importance(io));
    assert_eq!(error, Err(Error::NonFiniteGradient { tensor: "a".into(), count: 1 }));
    assert_eq!(optimizer.importance("a"), Ok(vec![1.0, 0.0, 2.5, 0.0]), "after what was refused");
    // A tensor that keeps no importance may have any gradient.
    fixture.set_grads(&[Some(vec![1.0; 4]), Some(vec![f64::NAN; 3])]);
    fixture.run(|io| optimizer.update_importance(io)).expect("importance");
    assert_eq!(optimizer.importance("a"), Ok(vec![1.0; 4]));

    let mut plain = make(Pull { weights: PullWeights::One, ..pull });
    let error = fixture.run(|io| plain.update_importance(io));
    assert_eq!(error, Err(Error::NoImportances));
    assert_same(&fixture.weights(), &start.to_vec(), "weights");

    // Only what pulls to the anchor needs one.
    let set = build(set.tensors()[..1].to_vec());
    let mut fixture = Fixture::new(backend, set.tensors(), &start[..1], &[None], DType::F32);
    fixture.set_grads(&[Some(vec![0.0; 4])]);
    let zero = Pull { zero_l1: 0.5, ..Pull::default() };
    let rule = Sgd { lr: 0.5, momentum: 0.0, ..Sgd::default() };
    let mut optimizer = Optimizer::new(backend.clone(), &set, rule, zero).expect("valid options");
    fixture.run(|io| optimizer.step(io, &StepOptions::default())).expect("no anchor is needed");
    assert_eq!(fixture.weights(), [vec![0.25; 4]]);
    let mut optimizer = Optimizer::new(backend.clone(), &set, rule, pull).expect("valid options");
    let error = fixture.run(|io| optimizer.step(io, &StepOptions::default()).map(drop));
    assert_eq!(error, Err(Error::MissingAnchor { tensor: "a".into(), constraint: "pull" }));
}

/// The slope of the absolute value at 0 is 0: what is at its goal stays.
pub fn a_weight_at_its_goal_is_not_pulled<B: Backend + Clone>(backend: &B) {
    let set = build(specs(DType::F32)[3..4].to_vec());
    let anchor = vec![0.25, 0.0, -0.5];
    let mut fixture = Fixture::new(
        backend,
        set.tensors(),
        std::slice::from_ref(&anchor),
        &[Some(anchor.clone())],
        DType::F32,
    );
    fixture.set_grads(&[Some(vec![0.0; 3])]);
    let rule = Sgd { lr: 1.0, momentum: 0.0, ..Sgd::default() };
    for coupling in [Coupling::Coupled, Coupling::Decoupled] {
        let pull = Pull { anchor_l1: 0.5, coupling, ..Pull::default() };
        let mut optimizer = Optimizer::new(backend.clone(), &set, rule, pull).expect("valid options");
        fixture.run(|io| optimizer.step(io, &StepOptions::default())).expect("step");
        assert_eq!(fixture.weights(), std::slice::from_ref(&anchor), "{coupling:?}");
    }
}
