//! What projections, steps and patterns do for any set: laws instead of examples.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::{Problem, rules, set, tpgm};
use proptest::prelude::*;
use tpgm_core::{
    AdamW, Buffer, Constraint, Coupling, Cpu, DType, Error, FixedRadius, Ftp, Group, L2Sp, Norm, Optimizer,
    ParamSet, Projector, Rule, Spd, StepOptions, TensorSpec, oracle,
};

const STEPS: usize = 5;

/// A set with numbers for it, and a rule.
#[derive(Debug, Clone)]
struct Case {
    set: ParamSet,
    seed: u64,
    rule: Rule,
}

fn cases() -> impl Strategy<Value = Case> {
    let short = prop::collection::vec(1usize..7, 0..4);
    // Rows longer than a block of the kernels.
    let long = (1usize..3, 1000usize..1100).prop_map(|(rows, len)| vec![rows, len]);
    let shapes = prop::collection::vec(prop_oneof![6 => short, 1 => long], 1..5);
    let dtypes = prop_oneof![Just(DType::F32), Just(DType::F64)];
    (shapes, dtypes, 0u64..1 << 40, prop::sample::select(rules()))
        .prop_map(|(shapes, dtype, seed, rule)| Case { set: set(&shapes, dtype), seed, rule })
}

fn norms() -> impl Strategy<Value = Norm> {
    prop_oneof![Just(Norm::Mars), Just(Norm::L2)]
}

impl Case {
    fn problem(&self) -> Problem {
        Problem::new(&self.set, STEPS, self.seed)
    }

    fn optimizer(&self, constraint: impl Into<Constraint>) -> Optimizer<Cpu> {
        Optimizer::new(Cpu::new(), &self.set, self.rule, constraint).unwrap()
    }

    /// The weights after all steps.
    fn run(&self, constraint: impl Into<Constraint>) -> Vec<Buffer> {
        let (mut problem, mut optimizer) = (self.problem(), self.optimizer(constraint));
        for step in 0..STEPS {
            optimizer.step(&mut problem.io(step), &StepOptions::default()).unwrap();
        }
        problem.weights
    }
}

/// Norm of the displacement of every unit, by the oracle.
fn measure(spec: &TensorSpec, weight: &Buffer, anchor: &Buffer, norm: Norm) -> Vec<f64> {
    let displacement = oracle::displacement(&weight.to_f64(), Some(&anchor.to_f64()));
    oracle::norms(&displacement, &spec.shape, norm)
}

/// The elements of the units that a norm is taken over.
fn units(spec: &TensorSpec, values: &Buffer, norm: Norm) -> Vec<Vec<u64>> {
    let values = values.to_f64();
    let units = oracle::blocks(&values, &spec.shape, norm);
    units.iter().map(|unit| unit.iter().map(|x| x.to_bits()).collect()).collect()
}

/// How far storing weights (below 1 here) may move the norm of a unit: half an ulp per element, once for the product and
/// once for the sum.
fn rounding(spec: &TensorSpec) -> f64 {
    let ulp = if spec.dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    (spec.numel() + 2) as f64 * ulp
}

fn same_bits(a: &[Buffer], b: &[Buffer]) -> bool {
    let bits = |buffers: &[Buffer]| -> Vec<Vec<u64>> {
        buffers.iter().map(|buffer| buffer.to_f64().iter().map(|x| x.to_bits()).collect()).collect()
    };
    bits(a) == bits(b)
}

/// Laws of one projection from `before` to `once` to `twice`; `slack` is what the ratio's 1e-8 adds to a norm.
fn check_projection(
    set: &ParamSet,
    [before, once, twice]: [&[Buffer]; 3],
    anchors: &[Buffer],
    norm: Norm,
    slack: f64,
    radius: impl Fn(usize) -> f64,
) -> Result<(), TestCaseError> {
    for (t, spec) in set.tensors().iter().enumerate() {
        let radius = radius(t);
        let pairs = units(spec, &before[t], norm).into_iter().zip(units(spec, &once[t], norm));
        for (n, (old, new)) in measure(spec, &before[t], &anchors[t], norm).iter().zip(pairs) {
            if (n + slack) * (1.0 + 1e-6) <= radius {
                prop_assert_eq!(old, new, "{} of norm {} inside {}", spec.name, n, radius);
            } else if *n > 2.0 * radius + rounding(spec) {
                prop_assert_ne!(old, new, "{} of norm {} outside {}", spec.name, n, radius);
            }
        }
        for n in measure(spec, &once[t], &anchors[t], norm) {
            prop_assert!(n <= radius * (1.0 + 1e-6) + rounding(spec), "{}: {n} above {radius}", spec.name);
        }
        for (a, b) in once[t].to_f64().iter().zip(twice[t].to_f64()) {
            prop_assert!((a - b).abs() <= rounding(spec) + slack, "{}: {a}, then {b}", spec.name);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn learned_radii_project_idempotently_and_leave_rows_inside_alone(case in cases(), norm in norms()) {
        let mut problem = case.problem();
        let mut projector = Projector::new(Cpu::new(), &case.set, tpgm(norm)).unwrap();
        // Radii start at half of the smallest norm; a few updates first, so that some rows are inside.
        projector.begin(&mut problem.io(0)).unwrap();
        for step in 0..STEPS {
            projector.apply(&mut problem.io(step)).unwrap();
            projector.update(&mut problem.io(step)).unwrap();
        }
        projector.abort(&mut problem.io(0)).unwrap();
        let before = problem.weights.clone();
        projector.project(&mut problem.io(0)).unwrap();
        let radii = projector.scalars().unwrap();
        let once = problem.weights.clone();
        projector.project(&mut problem.io(0)).unwrap();
        let weights = [&before[..], &once, &problem.weights];
        check_projection(&case.set, weights, &problem.anchors, norm, 1e-8, |t| radii[t].radius)?;
    }

    #[test]
    fn a_fixed_radius_projects_idempotently_and_leaves_rows_inside_alone(
        case in cases(), norm in norms(), radius in 0.005f64..0.3,
    ) {
        let mut problem = case.problem();
        let mut optimizer = case.optimizer(FixedRadius { radius, norm });
        let before = problem.weights.clone();
        // Without a learning rate only the projection is left of a step.
        optimizer.step(&mut problem.io(0), &StepOptions::lr(0.0)).unwrap();
        let once = problem.weights.clone();
        optimizer.step(&mut problem.io(1), &StepOptions::lr(0.0)).unwrap();
        let weights = [&before[..], &once, &problem.weights];
        check_projection(&case.set, weights, &problem.anchors, norm, 0.0, |_| radius)?;
    }

    #[test]
    fn after_a_step_no_unit_is_outside_its_radius(case in cases(), norm in norms(), radius in 0.005f64..0.3) {
        let constraints: [(Constraint, Norm); 3] = [
            (FixedRadius { radius, norm }.into(), norm),
            (tpgm(norm).into(), norm),
            (Ftp::default().into(), Norm::Mars),
        ];
        for (constraint, norm) in constraints {
            let (mut problem, mut optimizer) = (case.problem(), case.optimizer(constraint));
            for step in 0..STEPS {
                optimizer.step(&mut problem.io(step), &StepOptions::default()).unwrap();
                let scalars = optimizer.scalars().unwrap();
                for (t, spec) in case.set.tensors().iter().enumerate() {
                    let fixed = matches!(constraint, Constraint::FixedRadius(_));
                    let radius = if fixed { radius } else { scalars[t].radius };
                    for n in measure(spec, &problem.weights[t], &problem.anchors[t], norm) {
                        let allowed = radius * (1.0 + 1e-6) + rounding(spec);
                        prop_assert!(n <= allowed, "{constraint:?}, step {step}: {n} above {radius}");
                    }
                }
            }
        }
    }

    #[test]
    fn constraints_that_cannot_act_give_the_bits_of_the_plain_rule(case in cases(), norm in norms()) {
        let plain = case.run(Constraint::None);
        let constraints: [Constraint; 4] = [
            FixedRadius { radius: 1e6, norm }.into(),
            Spd { strength: 0.0 }.into(),
            L2Sp { alpha: 0.0, coupling: Coupling::Coupled }.into(),
            L2Sp { alpha: 0.0, coupling: Coupling::Decoupled }.into(),
        ];
        for constraint in constraints {
            prop_assert!(same_bits(&plain, &case.run(constraint)), "{constraint:?}");
        }
        // The same constraints do act once they have strength.
        let small = case.run(FixedRadius { radius: 1e-3, norm });
        let strong = case.run(L2Sp { alpha: 1.0, coupling: Coupling::Decoupled });
        prop_assert!(!same_bits(&plain, &small) && !same_bits(&plain, &strong));
    }

    #[test]
    fn without_shrinking_the_radius_of_ftp_falls_only_to_the_largest_norm(case in cases()) {
        let mut problem = case.problem();
        let mut optimizer = case.optimizer(Ftp { k: 0.0, ..Ftp::default() });
        let mut before = vec![0.0f64; case.set.len()];
        for step in 0..STEPS {
            optimizer.step(&mut problem.io(step), &StepOptions::default()).unwrap();
            for ((spec, scalars), before) in
                case.set.tensors().iter().zip(optimizer.scalars().unwrap()).zip(&mut before)
            {
                let cap = oracle::largest(&optimizer.norms(&spec.name).unwrap()) + 1e-8;
                let cap = if spec.dtype == DType::F64 { cap } else { f64::from(cap as f32) };
                prop_assert!(
                    scalars.radius >= before.min(cap),
                    "step {step}: from {before} to {}, capped at {cap}", scalars.radius
                );
                *before = scalars.radius;
            }
        }
    }
}

/// `*` is any number of characters, `?` is one: by trying all ways.
fn matches(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], name) => name.is_empty(),
        (['*', pattern @ ..], name) => (0..=name.len()).any(|skip| matches(pattern, &name[skip..])),
        (['?', pattern @ ..], [_, name @ ..]) => matches(pattern, name),
        ([p, pattern @ ..], [n, name @ ..]) => p == n && matches(pattern, name),
        (_, []) => false,
    }
}

fn named(names: &BTreeSet<String>) -> impl Iterator<Item = TensorSpec> {
    names.iter().map(|name| TensorSpec { name: name.clone(), shape: vec![2], dtype: DType::F32 })
}

proptest! {
    #[test]
    fn patterns_select_what_trying_all_ways_selects(
        names in prop::collection::btree_set("[ab.]{1,5}", 1..8),
        patterns in prop::collection::vec("[ab.*?]{1,5}", 1..4),
    ) {
        let set = ParamSet::builder().tensors(named(&names)).build().unwrap();
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        let hits = |pattern: &str| -> Vec<usize> {
            let hit = |(i, name): (usize, &String)| matches(&chars(pattern), &chars(name)).then_some(i);
            names.iter().enumerate().filter_map(hit).collect()
        };
        match patterns.iter().find(|pattern| hits(pattern).is_empty()) {
            Some(idle) => {
                let first = names.first().unwrap().clone();
                let expected = Error::PatternMatchesNothing { pattern: idle.clone(), tensors: names.len(), first };
                prop_assert_eq!(set.select(&patterns), Err(expected));
            }
            None => {
                let union: BTreeSet<usize> = patterns.iter().flat_map(|pattern| hits(pattern)).collect();
                prop_assert_eq!(set.select(&patterns), Ok(union.into_iter().collect()));
            }
        }
    }

    #[test]
    fn of_groups_that_set_the_same_field_the_last_wins(
        names in prop::collection::btree_set("[ab.]{1,4}", 1..8),
        groups in prop::collection::vec(("[ab.*?]{1,4}", any::<bool>(), 0.0f64..1.0), 0..6),
    ) {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        let hits = |pattern: &str, name: &str| matches(&chars(pattern), &chars(name));
        let groups: Vec<_> =
            groups.into_iter().filter(|(pattern, ..)| names.iter().any(|name| hits(pattern, name))).collect();
        let made = groups.iter().map(|(pattern, decay, x)| match decay {
            true => Group::new(pattern).weight_decay(*x),
            false => Group::new(pattern).strength(*x),
        });
        let set = ParamSet::builder().tensors(named(&names)).groups(made).build().unwrap();
        let settings = set.settings(&AdamW::default().into(), &Ftp::default().into()).unwrap();
        for (name, settings) in names.iter().zip(settings) {
            let last = |wanted: bool| {
                groups.iter().rev().find(|(pattern, decay, _)| *decay == wanted && hits(pattern, name))
            };
            prop_assert_eq!(settings.weight_decay, last(true).map_or(0.0, |group| group.2));
            let k = last(false).map_or(1.0, |group| group.2);
            prop_assert_eq!(settings.constraint, Ftp { k, ..Ftp::default() }.into());
        }
    }
}
