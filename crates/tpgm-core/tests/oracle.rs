//! The oracle against values worked out by hand, finite differences and identities between its parts.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tpgm_core::oracle::{self, Moments, Optimizer, Projector, Variances};
use tpgm_core::{
    AdamW, Constraint, Coupling, DType, Decay, Digrap, DigrapTest, Error, FixedRadius, FixedScale, Ftp,
    FtpMemory, Group, L2Sp, Norm, ParamSet, RadiusAdam, Rule, Sgd, Spd, Tpgm,
};

#[track_caller]
fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "[{i}] is {a}, expected {b}");
    }
}

fn sgd(lr: f64) -> Sgd {
    Sgd::default().lr(lr).momentum(0.0)
}

/// One tensor `w` and what happens to it.
struct One {
    optimizer: Optimizer,
    weights: Vec<Vec<f64>>,
    anchors: Vec<Option<Vec<f64>>>,
}

impl One {
    fn new(
        weight: &[f64],
        anchor: Option<&[f64]>,
        rule: impl Into<Rule>,
        constraint: impl Into<Constraint>,
    ) -> Self {
        let set = ParamSet::builder().tensor("w", [weight.len()], DType::F64).build().unwrap();
        Self {
            optimizer: Optimizer::new(&set, rule, constraint).unwrap(),
            weights: vec![weight.to_vec()],
            anchors: vec![anchor.map(<[f64]>::to_vec)],
        }
    }

    fn step(&mut self, grad: &[f64]) -> &[f64] {
        self.optimizer
            .step(&mut self.weights, &[Some(grad.to_vec())], &self.anchors, None, 1.0, None)
            .unwrap();
        &self.weights[0]
    }
}

#[test]
fn zero_dimensional_and_one_dimensional_tensors_are_one_mars_row() {
    let d = [1.0, -2.0, 3.0, -4.0];
    assert_eq!(oracle::norms(&d, &[4], Norm::Mars), [10.0]);
    assert_eq!(oracle::norms(&d, &[2, 2], Norm::Mars), [3.0, 7.0]);
    assert_eq!(oracle::norms(&d, &[4, 1, 1], Norm::Mars), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(oracle::norms(&[-5.0], &[], Norm::Mars), [5.0]);
    assert_eq!(oracle::norms(&[3.0, 4.0], &[2], Norm::L2), [5.0]);
    assert_eq!(oracle::norms(&[], &[3, 0], Norm::Mars), [0.0; 3]);
    assert_eq!(oracle::norms(&[], &[0, 3], Norm::Mars), [0.0; 0]);
    assert_eq!(oracle::smallest(&[]), 0.0);
}

#[test]
fn a_fixed_radius_shortens_only_the_rows_beyond_it() {
    let weight = [3.0, 1.0, 0.5, -0.5];
    let projected = oracle::fixed_radius(&weight, None, &[2, 2], Norm::Mars, 2.0);
    close(&projected, &[1.5, 0.5, 0.5, -0.5]);
    let projected = oracle::fixed_radius(&[4.0, 4.0], Some(&[1.0, 0.0]), &[2], Norm::L2, 1.0);
    close(&projected, &[1.6, 0.8]);
}

#[test]
fn a_fixed_scale_is_bounded_per_element_relative_to_the_running_variances() {
    // sqrt(var + 1e-6) is 2 now and 1 in the anchor: t = 6 / 2 - 1 = 2 is cut to 0.5, and (0.5 + 1) * 2 = 3.
    let variances = Variances { current: vec![4.0 - 1e-6; 2], anchor: vec![1.0 - 1e-6; 2] };
    let (weight, anchor) = ([6.0, 2.5], [1.0, 1.0]);
    close(&oracle::fixed_scale(&weight, Some(&anchor), Some(&variances), 0.5), &[3.0, 2.5]);
    close(&oracle::fixed_scale(&weight, Some(&anchor), None, 0.5), &[1.5, 1.5]);

    let mut one = One::new(&weight, Some(&anchor), sgd(0.0), FixedScale { radius: 0.5 });
    one.optimizer.set_variances(vec![Some(variances)]).unwrap();
    close(one.step(&[0.0, 0.0]), &[3.0, 2.5]);
}

#[test]
fn l2sp_is_part_of_the_gradient_or_of_the_update() {
    let l2sp = |coupling| L2Sp { alpha: 0.5, coupling };
    let rule = Sgd { weight_decay: 0.25, ..sgd(0.1) };
    // g + 0.5 * (3 - 1) + 0.25 * 3 = 2 + 1 + 0.75
    for coupling in [Coupling::Coupled, Coupling::Decoupled] {
        let mut one = One::new(&[3.0], Some(&[1.0]), rule, l2sp(coupling));
        close(one.step(&[2.0]), &[3.0 - 0.375]);
    }
    // At its first step Adam moves by lr whatever the gradient; the decoupled pull comes on top: 0.1 * 0.5 * 2.
    let adam = AdamW { eps: 0.0, ..AdamW::default().lr(0.1) };
    let mut one = One::new(&[3.0], Some(&[1.0]), adam, l2sp(Coupling::Coupled));
    close(one.step(&[2.0]), &[2.9]);
    let mut one = One::new(&[3.0], Some(&[1.0]), adam, l2sp(Coupling::Decoupled));
    close(one.step(&[2.0]), &[2.8]);
}

#[test]
fn digrap_removes_a_learned_share_of_the_outward_component() {
    let mut one = One::new(&[0.0, 0.0], Some(&[0.0, 0.0]), sgd(0.1), Digrap::default());
    close(one.step(&[-1.0, 0.0]), &[0.1, 0.0]);
    // p_1 = 0, so the strength stays 0; p_2 = (-0.1 / 0.01) * [0.1, 0] = [-1, 0].
    close(one.step(&[-1.0, -1.0]), &[0.2, 0.1]);
    assert_eq!(one.optimizer.radius(0).unwrap().value, 0.0);
    // The gradient turned against p_2, q = -1 / sqrt(10) < 0: the strength grows by Adam with the correction of t = 3,
    // 0.01 * (0.1 / (1 - 0.9^3)) / sqrt(0.001 / (1 - 0.999^3)). <g, D> = -0.1: p_3 = (-0.1 / 0.05) * [0.2, 0.1].
    let omega = 0.006_388_135_994;
    let weight = one.step(&[1.0, -3.0]);
    let expected = [0.2 - 0.1 * (1.0 + omega * 0.4), 0.1 - 0.1 * (-3.0 + omega * 0.2)];
    for (got, expected) in weight.iter().zip(expected) {
        // Adam's eps of 1e-8 is left out of the number.
        assert!((got - expected).abs() < 1e-10, "{got}, expected {expected}");
    }
    let learned = one.optimizer.radius(0).unwrap().value;
    assert!((learned - omega).abs() < 1e-9, "{learned}");
}

#[test]
fn digrap_acts_on_one_sign_of_the_alignment() {
    for (dot, conflict) in [(-1.0, true), (0.0, true), (1.0, false)] {
        assert_eq!(oracle::digrap_acts(DigrapTest::Conflict, dot), conflict);
        assert_eq!(oracle::digrap_acts(DigrapTest::Agreement, dot), !conflict);
    }
    assert_eq!(oracle::digrap_component(&[1.0], &[1e-16]), [0.0]);
}

#[test]
fn spd_of_weights_that_return_to_the_anchor_is_no_nan() {
    let mut one = One::new(&[1.5], Some(&[1.0]), sgd(1.0), Spd::default());
    assert_eq!(one.step(&[0.5]), [1.0]);
    assert_eq!(one.optimizer.trace(0).unwrap().spd_ratio, Some(0.0));
}

#[test]
fn ftp_starts_at_the_anchor_and_its_low_memory_form_does_not() {
    let mut exact = One::new(&[1.0, 1.0], Some(&[1.0, 1.0]), sgd(0.1), Ftp::default());
    close(exact.step(&[0.01, -0.02]), &[1.0 - 1e-8 / 3.0, 1.0 + 2e-8 / 3.0]);

    let ftp = Ftp {
        memory: FtpMemory::Low,
        adam: RadiusAdam { lr: 0.25, ..RadiusAdam::default() },
        ..Ftp::default()
    };
    let mut low = One::new(&[1.0, 1.0], Some(&[1.0, 1.0]), sgd(0.1), ftp);
    let ratio = 0.25 / (0.3 + 1e-8);
    close(low.step(&[1.0, -2.0]), &[1.0 - 0.1 * ratio, 1.0 + 0.2 * ratio]);
    assert_eq!(low.optimizer.radius(0).unwrap().value, 0.25);
    // h = <g, W - W0> / min(0.25, 0.3 + 1e-8), and h < 0 grows the radius, at most to the largest norm.
    low.step(&[3.0, -1.0]);
    let trace = low.optimizer.trace(0).unwrap();
    close(&[trace.radius_grad.unwrap()], &[-0.5 * ratio / 0.25]);
    let n = oracle::largest(&trace.norms);
    let grown: f64 = 0.25 + 0.25 * 0.744_136_8;
    let radius = low.optimizer.radius(0).unwrap().value;
    assert!((radius - grown.min(n)).abs() < 1e-6, "{radius} {grown} {n}");
    // h > 0 shrinks it, but not below one radius step.
    let mut low = One::new(&[1.0, 1.0], Some(&[1.0, 1.0]), sgd(0.1), ftp);
    low.step(&[1.0, -2.0]);
    low.step(&[-1.0, 2.0]);
    assert!(low.optimizer.trace(0).unwrap().radius_unclipped.unwrap() < 0.1);
    assert_eq!(low.optimizer.radius(0).unwrap().value, 0.25);
}

#[test]
fn a_radius_at_its_norm_has_no_gradient_in_f32_and_one_in_f64() {
    let gradient = |norm: f64, dtype| {
        let d = [norm];
        oracle::radius_gradient(&[1.0], &d, &[1], Norm::L2, &d, norm, dtype)
    };
    assert_eq!(gradient(0.5, DType::F32), 0.0);
    assert_eq!(gradient(0.5, DType::BF16), 0.0);
    assert!(gradient(0.5, DType::F64) > 0.999);
    // Below about 0.25 adding 1e-8 still changes an f32.
    assert!(gradient(0.12, DType::F32) > 0.999);
    assert!(gradient(0.0, DType::F64) == 0.0, "no displacement: the ratio is 0 and so is its gradient");
}

#[test]
fn the_radius_clip_ends_at_the_largest_norm_even_if_that_is_below_its_floor() {
    assert_eq!(oracle::clip_radius(5.0, &[1.0, 2.0], DType::F64), 2.0);
    assert_eq!(oracle::clip_radius(-5.0, &[1.0, 2.0], DType::F64), 1e-8);
    assert_eq!(oracle::clip_radius(-5.0, &[0.0], DType::F64), 0.0);
    assert_eq!(oracle::clip_radius(-5.0, &[1.0], DType::F32), f64::from(1e-8f32));
}

#[test]
fn gradients_are_clipped_by_their_norm_over_all_tensors() {
    let set = ParamSet::builder()
        .tensor("a", [1], DType::F64)
        .tensor("b", [1], DType::F64)
        .tensor("c", [1], DType::F64)
        .build()
        .unwrap();
    let mut optimizer = Optimizer::new(&set, sgd(1.0), Constraint::None).unwrap();
    let mut weights = vec![vec![0.0]; 3];
    let grads = [Some(vec![6.0]), None, Some(vec![-8.0])];
    let norm = optimizer.step(&mut weights, &grads, &[None, None, None], None, 0.5, Some(1.0)).unwrap();
    assert_eq!(norm, 5.0);
    let factor = 1.0 / 5.000_001;
    close(&weights.concat(), &[-3.0 * factor, 0.0, 4.0 * factor]);
    assert_eq!((optimizer.steps(0), optimizer.steps(1)), (1, 0));
}

#[test]
fn groups_give_learning_rates_decays_anchors_and_constraints() {
    let set = ParamSet::builder()
        .tensors(["a", "b", "c"].map(|name| tpgm_core::TensorSpec {
            name: name.into(),
            shape: vec![1],
            dtype: DType::F64,
        }))
        .group(Group::new("b").lr(0.3).weight_decay(0.0).no_anchor())
        .group(Group::new("c").zero_anchor())
        .build()
        .unwrap();
    let rule = Sgd { weight_decay: 1.0, decay: Decay::Decoupled, ..sgd(0.1) };
    let fixed = FixedRadius { radius: 0.5, norm: Norm::L2 };
    let mut optimizer = Optimizer::new(&set, rule, fixed).unwrap();
    let mut weights = vec![vec![2.0]; 3];
    let grads = vec![Some(vec![1.0]); 3];
    let anchors = [Some(vec![2.0]), None, Some(vec![2.0])];
    optimizer.step(&mut weights, &grads, &anchors, Some(0.2), 1.0, None).unwrap();
    // a: 2 - 0.2 * 1 - 0.2 * 2 = 1.4 is 0.6 from 2. b: three times the learning rate. c: half from zero.
    close(&weights.concat(), &[1.5, 2.0 - 0.6, 0.5]);
}

#[test]
fn a_tensor_counts_only_its_own_steps() {
    let mut one = One::new(&[1.0], Some(&[0.0]), sgd(0.1), Ftp::default());
    one.optimizer.step(&mut one.weights, &[None], &one.anchors, None, 1.0, None).unwrap();
    assert_eq!(one.weights[0], [1.0]);
    assert!(one.step(&[1.0])[0] < 2e-8, "its own first step returns to the anchor");
}

#[test]
fn refusals_name_the_tensor_and_change_nothing() {
    let set = ParamSet::builder().tensor("a", [2], DType::F64).tensor("b", [2], DType::F64).build().unwrap();
    let mut optimizer = Optimizer::new(&set, AdamW::default(), Tpgm::default()).unwrap();
    let good = vec![vec![1.0, 2.0]; 2];
    let grads = [Some(vec![1.0, 1.0]), Some(vec![1.0, f64::NAN])];
    let anchors = [Some(vec![0.0, 0.0]), Some(vec![0.0, 0.0])];
    let before = optimizer.clone();
    let mut weights = good.clone();
    let mut refused =
        |weights: &mut Vec<Vec<f64>>, grads: &[Option<Vec<f64>>], anchors: &[Option<Vec<f64>>]| {
            let error = optimizer.step(weights, grads, anchors, None, 1.0, None).unwrap_err();
            assert_eq!(*weights, good);
            assert_eq!(optimizer, before);
            error
        };
    let error = refused(&mut weights, &grads, &anchors);
    assert_eq!(error, Error::NonFiniteGradient { tensor: "b".into(), count: 1 });
    let error = refused(&mut weights, &[None, Some(vec![1.0])], &anchors);
    assert!(
        matches!(&error, Error::LengthMismatch { tensor, what: "gradient", .. } if tensor == "b"),
        "{error}"
    );
    let error = refused(&mut weights, &[None, None], &[Some(vec![0.0, 0.0]), None]);
    assert!(matches!(&error, Error::MissingAnchor { tensor, .. } if tensor == "b"), "{error}");
    let error = refused(&mut weights, &[None], &anchors);
    assert!(matches!(error, Error::CountMismatch { what: "gradients", .. }), "{error}");
    let error = refused(
        &mut weights,
        &[Some(vec![1.0, 1.0]), Some(vec![1.0, 1.0])],
        &[Some(vec![0.0, f64::INFINITY]), Some(vec![0.0, 0.0])],
    );
    assert!(matches!(&error, Error::NonFiniteValue { tensor, .. } if tensor == "a"), "{error}");
}

#[test]
fn projector_calls_have_an_order() {
    let set = ParamSet::builder().tensor("a", [1], DType::F64).build().unwrap();
    let mut projector = Projector::new(&set, Tpgm::default()).unwrap();
    let mut weights = vec![vec![1.0]];
    let anchors = [Some(vec![0.0])];
    let early = projector.update(&[None]).unwrap_err();
    assert!(matches!(early, Error::OutOfOrder { call: "update", .. }), "{early}");
    projector.begin(&weights, &anchors).unwrap();
    projector.apply(&mut weights, &anchors).unwrap();
    assert_eq!(weights[0], [0.5 * 1.0 / (1.0 + 1e-8)]);
    assert!(projector.begin(&weights, &anchors).is_err());
    assert!(projector.project(&mut weights, &anchors).is_err());
    projector.abort(&mut weights).unwrap();
    assert_eq!(weights[0], [1.0]);
    assert!(projector.finish(&mut weights, &anchors).is_err());
}

#[test]
fn averages_and_interpolations() {
    close(&oracle::ema(&[1.0, 0.0], &[0.0, 1.0], 0.75), &[0.75, 0.25]);
    close(&oracle::wise(&[1.0], &[3.0], 0.25), &[1.5]);
    // f0 = 0.5 * 0.1 (raised), f1 = 0.5 * 1 (absent): (0.05 * 1 + 0.5 * 12) / 0.55
    let merged = oracle::wise_fisher(&[1.0], &[12.0], Some(&[0.0]), None, 0.5, 0.1);
    close(&merged, &[6.05 / 0.55]);
}

fn tensor(len: usize) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-2.0..2.0f64, len)
}

fn norm() -> impl Strategy<Value = Norm> {
    prop_oneof![Just(Norm::L2), Just(Norm::Mars)]
}

proptest! {
    /// Under the loss `<G, W~(radius)>` the radius gradient is the difference quotient.
    #[test]
    fn the_radius_gradient_is_the_slope_of_the_projected_loss(
        d in tensor(12), g in tensor(12), norm in norm(), share in 0.05..0.95f64,
    ) {
        let shape = [3, 4];
        let norms = oracle::norms(&d, &shape, norm);
        let radius = share * oracle::largest(&norms);
        let h = 1e-6;
        prop_assume!(norms.iter().all(|n| (n - radius).abs() > 1e-4));
        let loss = |radius| {
            let ratios = oracle::ratios(radius, &norms, DType::F64);
            oracle::dot(&g, &oracle::project(&d, None, &shape, norm, &ratios))
        };
        let slope = (loss(radius + h) - loss(radius - h)) / (2.0 * h);
        let gradient = oracle::radius_gradient(&g, &d, &shape, norm, &norms, radius, DType::F64);
        prop_assert!((slope - gradient).abs() < 1e-6, "{slope} {gradient}");
    }

    /// Coupled decay is a larger gradient, decoupled decay a smaller weight.
    #[test]
    fn weight_decay_enters_where_it_says(w in tensor(5), g in tensor(5), amsgrad: bool) {
        let rule = AdamW { amsgrad, ..AdamW::default() };
        let update = |decay, weight_decay, g: &[f64]| {
            let mut moments = Moments::default();
            let rule = AdamW { decay, ..rule };
            oracle::adamw_update(&rule, 0.1, weight_decay, 1, &w, g, &mut moments)
        };
        let plain = update(Decay::Coupled, 0.0, &g);
        let larger: Vec<f64> = g.iter().zip(&w).map(|(g, w)| g + 0.3 * w).collect();
        close(&update(Decay::Coupled, 0.3, &g), &update(Decay::Coupled, 0.0, &larger));
        let shrunk: Vec<f64> = plain.iter().zip(&w).map(|(u, w)| u + 0.1 * 0.3 * w).collect();
        close(&update(Decay::Decoupled, 0.3, &g), &shrunk);
    }

    /// A step under TPGM is the plain step, then a projection.
    #[test]
    fn tpgm_projects_after_the_step(a in tensor(6), w in tensor(6), g in tensor(6), norm in norm()) {
        let set = ParamSet::builder().tensor("w", [2, 3], DType::F64).build().unwrap();
        let tpgm = Tpgm { norm, ..Tpgm::default() };
        let mut fused = Optimizer::new(&set, AdamW::default(), tpgm).unwrap();
        let mut plain = Optimizer::new(&set, AdamW::default(), Constraint::None).unwrap();
        let mut projector = Projector::new(&set, tpgm).unwrap();
        let (mut left, mut right) = (vec![w.clone()], vec![w]);
        let (grads, anchors) = ([Some(g)], [Some(a)]);
        for _ in 0..3 {
            fused.step(&mut left, &grads, &anchors, None, 1.0, None).unwrap();
            plain.step(&mut right, &grads, &anchors, None, 1.0, None).unwrap();
            projector.project(&mut right, &anchors).unwrap();
            prop_assert_eq!(&left, &right);
            let inner = fused.projector_mut().unwrap();
            for (projector, weights) in [(inner, &mut left), (&mut projector, &mut right)] {
                projector.begin(weights, &anchors).unwrap();
                projector.apply(weights, &anchors).unwrap();
                projector.update(&grads).unwrap();
                projector.finish(weights, &anchors).unwrap();
            }
            prop_assert_eq!(&left, &right);
            prop_assert_eq!(fused.radius(0), projector.radius(0));
        }
    }
}
