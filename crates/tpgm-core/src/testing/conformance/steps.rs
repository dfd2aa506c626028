//! Steps of every rule under every constraint.

use super::data::{CHUNK, Problem, build, rounded, set, specs, uniform};
use super::fixture::{Fixture, Tolerance};
use super::methods;
use crate::backend::Backend;
use crate::constraint::{Constraint, FixedScale, Ftp, Spd, Tpgm};
use crate::element::DType;
use crate::engine::EngineOptions;
use crate::norm::Norm;
use crate::optimizer::Optimizer;
use crate::oracle;
use crate::params::{Group, ParamSet, TensorSpec};
use crate::plan;
use crate::rule::{AdamW, Rule, Sgd};
use crate::state::Masters;
use crate::step::StepOptions;

const STEPS: usize = 5;

/// One comparison: a method, a set, and how operands are held.
struct Case<'a> {
    set: &'a ParamSet,
    rule: Rule,
    constraint: Constraint,
    anchor_dtype: DType,
    options: EngineOptions,
    /// Options of step `i`.
    step: &'a dyn Fn(usize) -> StepOptions,
    /// Tensors that have no gradient in step `i`.
    missing: &'a dyn Fn(usize, usize) -> bool,
    variances: bool,
}

impl<'a> Case<'a> {
    fn new(set: &'a ParamSet, rule: Rule, constraint: Constraint) -> Self {
        Self {
            set,
            rule,
            constraint,
            anchor_dtype: set.tensors()[0].dtype,
            options: EngineOptions::default().chunk(CHUNK),
            step: &|_| StepOptions::default(),
            missing: &|_, _| false,
            variances: false,
        }
    }

    fn run<B: Backend + Clone>(&self, backend: &B) {
        let specs = self.set.tensors();
        let mut problem = Problem::new(specs, self.anchor_dtype, STEPS, 7);
        let mut fixture = Fixture::new(backend, specs, &problem.weights, &problem.anchors, self.anchor_dtype);
        let mut optimizer =
            Optimizer::with_options(backend.clone(), self.set, self.rule, self.constraint, self.options)
                .expect("valid options");
        let mut oracle = oracle::Optimizer::new(self.set, self.rule, self.constraint).expect("valid options");
        if self.variances {
            let variances = variances(specs);
            fixture.set_variances(&variances);
            let of = |(current, anchor)| oracle::Variances { current, anchor };
            oracle.set_variances(variances.into_iter().map(|v| v.map(of)).collect()).expect("right lengths");
        }
        let mut expected = problem.weights.clone();
        for step in 0..STEPS {
            let grads = &mut problem.grads[step];
            (0..specs.len()).filter(|&t| (self.missing)(step, t)).for_each(|t| grads[t] = None);
            fixture.set_grads(grads);
            let options = (self.step)(step);
            if self.options.masters == Masters::Off {
                // Without masters rounding errors are part of the trajectory: compare steps, not trajectories.
                expected = fixture.weights();
            }
            let report = fixture.run(|io| optimizer.step(io, &options)).expect("step");
            let norm = oracle
                .step(
                    &mut expected,
                    grads,
                    &problem.anchors,
                    options.lr,
                    options.grad_scale,
                    options.max_grad_norm,
                )
                .expect("oracle step");
            if let Some(got) = report.grad_norm {
                Tolerance::scalars(specs[0].dtype).check(got, norm, || self.context(step, "gradient norm"));
            }
            self.compare(step, &optimizer, &oracle, &fixture.weights(), &expected);
        }
    }

    fn context(&self, step: usize, what: &str) -> String {
        format!("step {step}, {:?} under {:?}, {:?}: {what}", self.rule, self.constraint, self.options)
    }

    fn compare<B: Backend>(
        &self,
        step: usize,
        optimizer: &Optimizer<B>,
        oracle: &oracle::Optimizer,
        got: &[Vec<f64>],
        expected: &[Vec<f64>],
    ) {
        let scalars = optimizer.scalars().expect("scalars");
        for (t, spec) in self.set.tensors().iter().enumerate() {
            let context = |what: &str| {
                self.context(step, &format!("{what} of {} {:?} {}", spec.name, spec.shape, spec.dtype))
            };
            let expected = rounded(spec.dtype, &expected[t]);
            let tolerance = match self.options.masters {
                Masters::Auto => Tolerance::weights(spec.dtype),
                Masters::Off => Tolerance::without_masters(spec.dtype),
            };
            tolerance.check_all(&got[t], &expected, || context("weight"));
            if spec.numel() == 0 {
                continue;
            }
            let close = Tolerance::scalars(spec.dtype);
            if let Some(radius) = oracle.radius(t) {
                close.check(scalars[t].radius, radius.value, || context("radius"));
                close.check(scalars[t].radius_m, radius.m, || context("first moment of the radius"));
                close.check(scalars[t].radius_v, radius.v, || context("second moment of the radius"));
            }
            assert_eq!(scalars[t].step, oracle.steps(t) as f64, "{}", context("step count"));
        }
    }
}

/// Running variances for every other tensor.
fn variances(specs: &[TensorSpec]) -> Vec<Option<(Vec<f64>, Vec<f64>)>> {
    let variance = |seed, n| -> Vec<f64> {
        rounded(DType::F32, &uniform(seed, n, 0.4).iter().map(|x| x + 0.5).collect::<Vec<_>>())
    };
    let of = |(t, spec): (usize, &TensorSpec)| {
        (t % 2 == 0).then(|| (variance(90 + t as u64, spec.numel()), variance(190 + t as u64, spec.numel())))
    };
    specs.iter().enumerate().map(of).collect()
}

/// Every rule under every constraint, in every element type, with small pieces and with the usual ones.
pub fn steps_match_the_oracle<B: Backend + Clone>(backend: &B) {
    for dtype in DType::ALL {
        let set = set(dtype);
        for (rule, constraint) in methods::all() {
            for chunk in [CHUNK, plan::CHUNK] {
                let options = EngineOptions::default().chunk(chunk);
                Case { options, ..Case::new(&set, rule, constraint) }.run(backend);
            }
        }
    }
}

/// f16 and bf16 weights that are updated themselves, without masters.
pub fn half_precision_without_masters_matches_the_oracle<B: Backend + Clone>(backend: &B) {
    for dtype in [DType::F16, DType::BF16] {
        let set = set(dtype);
        let options = EngineOptions::default().chunk(CHUNK).masters(Masters::Off);
        for rule in [AdamW::default().lr(0.05).into(), Sgd::default().lr(0.05).into()] {
            for constraint in [Constraint::None, Ftp::default().into(), Tpgm::default().into()] {
                Case { options, ..Case::new(&set, rule, constraint) }.run(backend);
            }
        }
    }
}

/// Groups: other learning rates, decays, norms, strengths and constraints; excluded tensors, no anchor, zero anchor; mixed
/// element types; anchors in another type than the weights; gradients that come late or not at all; variances.
pub fn steps_with_groups_match_the_oracle<B: Backend + Clone>(backend: &B) {
    let mut mixed = specs(DType::F32);
    for (t, spec) in mixed.iter_mut().enumerate() {
        spec.dtype = DType::ALL[t % 4];
    }
    let set = ParamSet::builder()
        .tensors(mixed)
        .group(Group::any(["block3.*", "block4.*"]).lr(0.05).weight_decay(0.3))
        .group(Group::new("block5.*").excluded())
        .group(Group::new("block6.*").no_anchor().lr(0.1))
        .group(Group::new("block7.*").zero_anchor())
        .group(Group::new("block9.*").constraint(Spd::default()).strength(0.7))
        .group(Group::new("block10.*").constraint(Tpgm::default()).norm(Norm::L2))
        .build()
        .expect("patterns match");
    for rule in methods::rules() {
        for constraint in methods::constraints() {
            for anchor_dtype in [DType::F32, DType::BF16] {
                let case = Case {
                    anchor_dtype,
                    // The third tensor never has a gradient, the fourth from the third step on, the tenth not always.
                    missing: &|step, t| t == 2 || (t == 3 && step < 2) || (t == 9 && step == 1),
                    variances: true,
                    ..Case::new(&set, rule, constraint)
                };
                case.run(backend);
            }
        }
    }
}

/// Schedules, scaled gradients and clipping by the global norm, alone and together.
pub fn steps_with_options_match_the_oracle<B: Backend + Clone>(backend: &B) {
    for dtype in [DType::F64, DType::F32] {
        let set = set(dtype);
        for (rule, constraint) in methods::all() {
            let step = |i: usize| StepOptions {
                lr: (i > 0).then_some(0.02 / (1 + i) as f64),
                grad_scale: if i.is_multiple_of(2) { 0.25 } else { 1.0 },
                // Sometimes far above the norm, sometimes far below.
                max_grad_norm: [None, Some(0.5), Some(1e6), Some(2.0), None][i % 5],
                ..StepOptions::default()
            };
            Case { step: &step, ..Case::new(&set, rule, constraint) }.run(backend);
        }
        let scale = build(specs(dtype));
        let case = Case {
            variances: true,
            ..Case::new(&scale, AdamW::default().lr(0.1).into(), FixedScale { radius: 0.02 }.into())
        };
        case.run(backend);
    }
}
