//! Optimizers of the parts of a set do what one optimizer of the whole does, to the bit.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Problem, methods, rules, set};
use tpgm_core::plan::CHUNK;
use tpgm_core::{
    Buffer, Constraint, Cpu, DType, Error, Group, Optimizer, ParamSet, Projection, Pull, PullScale,
    PullWeights, Rule, StateDict, StepOptions, TensorIo,
};

const STEPS: usize = 4;
const MAX_NORM: f64 = 0.7;

fn sets() -> Vec<ParamSet> {
    let shapes = [vec![5, 3], vec![2, CHUNK + 9], vec![7], vec![], vec![0, 3], vec![4, 4]];
    let build = |dtype| {
        let plain = set(&shapes, dtype);
        let groups = [
            Group::new("t1").lr(0.05),
            Group::any(["t0", "t5"]).weight_decay(0.3),
            Group::new("t2").excluded(),
        ];
        ParamSet::builder().tensors(plain.tensors().iter().cloned()).groups(groups).build().unwrap()
    };
    DType::ALL.map(build).into()
}

fn bits(buffers: &[Buffer]) -> Vec<Vec<u64>> {
    buffers.iter().map(|buffer| buffer.to_f64().iter().map(|x| x.to_bits()).collect()).collect()
}

fn whole(set: &ParamSet, rule: Rule, constraint: Constraint) -> (Vec<Vec<u64>>, StateDict) {
    let mut problem = Problem::new(set, STEPS, 3);
    let mut optimizer = Optimizer::new(Cpu::new(), set, rule, constraint).unwrap();
    for step in 0..STEPS {
        let max_grad_norm = (step > 1).then_some(MAX_NORM);
        let options = StepOptions { max_grad_norm, grad_scale: 0.5, ..StepOptions::default() };
        optimizer.step(&mut problem.io(step), &options).unwrap();
    }
    (bits(&problem.weights), optimizer.state().unwrap())
}

/// The same with an optimizer for each of `parts`. Every step is previewed, and taken back, before it is taken.
fn divided(
    set: &ParamSet,
    parts: &[Vec<usize>],
    rule: Rule,
    constraint: Constraint,
) -> (Vec<Vec<u64>>, StateDict) {
    let mut problem = Problem::new(set, STEPS, 3);
    let optimizer =
        |part: &Vec<usize>| Optimizer::new(Cpu::new(), &set.part(part), rule, constraint).unwrap();
    let mut optimizers: Vec<_> = parts.iter().map(optimizer).collect();
    for step in 0..STEPS {
        let mut options = StepOptions { grad_scale: 0.5, ..StepOptions::default() };
        if step > 1 {
            let mut squares = vec![0.0; set.len()];
            for (part, optimizer) in parts.iter().zip(&mut optimizers) {
                let own = optimizer.grad_squares(&mut of(part, problem.io(step))).unwrap();
                part.iter().zip(own).for_each(|(&i, square)| squares[i] = square);
            }
            let norm = squares.into_iter().sum::<f64>().sqrt() * options.grad_scale;
            options.grad_scale *= (MAX_NORM / (norm + 1e-6)).min(1.0);
        }
        for (part, optimizer) in parts.iter().zip(&mut optimizers) {
            let (before, state) = (problem.weights.clone(), optimizer.state().unwrap());
            optimizer.preview(|opt| opt.step(&mut of(part, problem.io(step)), &options)).unwrap();
            assert_eq!(optimizer.state().unwrap(), state);
            let previewed = std::mem::replace(&mut problem.weights, before);
            optimizer.step(&mut of(part, problem.io(step)), &options).unwrap();
            assert_eq!(bits(&previewed), bits(&problem.weights), "{rule:?} under {constraint:?}");
        }
    }
    let states = optimizers.iter().flat_map(|optimizer| optimizer.state().unwrap());
    (bits(&problem.weights), states.collect())
}

fn of<'a>(part: &[usize], io: Vec<TensorIo<'a, Cpu>>) -> Vec<TensorIo<'a, Cpu>> {
    io.into_iter().enumerate().filter(|(i, _)| part.contains(i)).map(|(_, io)| io).collect()
}

#[test]
fn parts_of_a_set_take_the_steps_of_the_whole() {
    // The mean over the set is over the whole set.
    let pull = Pull { anchor_l2: 0.4, anchor_l1: 0.1, scale: PullScale::SetMean, ..Pull::default() };
    let pulls = [pull, Pull { weights: PullWeights::Fisher, ..pull }, Pull { anchor_l1: 0.0, ..pull }];
    let pulled = rules().into_iter().flat_map(|rule| pulls.map(|pull| (rule, Constraint::from(pull))));
    let methods: Vec<_> = methods().chain(pulled).collect();
    for set in sets() {
        for &(rule, constraint) in &methods {
            let expected = whole(&set, rule, constraint);
            for parts in [vec![vec![0, 1, 2, 3, 4, 5]], vec![vec![0, 3, 4], vec![1], vec![2, 5]]] {
                let got = divided(&set, &parts, rule, constraint);
                assert!(got == expected, "{rule:?} under {constraint:?}, {parts:?}: results differ");
            }
        }
    }
}

#[test]
fn a_part_keeps_its_groups_and_the_size_of_the_whole() {
    let set = &sets()[1];
    let part = set.part(&[4, 2]);
    let names: Vec<&str> = part.tensors().iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!((names, part.position("t2").unwrap(), part.numel()), (vec!["t4", "t2"], 1, 7));
    let rule = rules()[0];
    let pull = Pull { strength: 3.0, anchor_l2: 1.0, scale: PullScale::SetMean, ..Pull::default() };
    let settings = part.part(&[0]).settings(&rule, &pull.into()).unwrap();
    let Constraint::Pull(of_part) = settings[0].constraint else { panic!("{settings:?}") };
    assert_eq!(of_part.factor(1, 1), 3.0 / set.numel() as f64);
    assert_eq!(part.settings(&rule, &pull.into()).unwrap()[1].constraint, Constraint::None);
}

#[test]
fn a_preview_that_fails_takes_back_what_it_did() {
    let set = set(&[vec![4]], DType::F32);
    let mut problem = Problem::new(&set, 1, 3);
    let mut optimizer = Optimizer::new(Cpu::new(), &set, rules()[0], common::constraints()[4]).unwrap();
    let state = optimizer.state().unwrap();
    let options = StepOptions { projection: Projection::Defer, ..StepOptions::default() };
    let error = optimizer.preview(|opt| {
        opt.step(&mut problem.io(0), &options)?;
        opt.step(&mut problem.io(0), &StepOptions { lr: Some(f64::NAN), ..options })
    });
    assert!(matches!(error, Err(Error::InvalidOption { .. })), "{error:?}");
    assert_eq!(optimizer.state().unwrap(), state);

    // A projection update begins again where it was.
    optimizer.step(&mut problem.io(0), &options).unwrap();
    let projector = optimizer.projector_mut().unwrap();
    projector.preview(|projector| projector.begin(&mut problem.io(0))).unwrap();
    projector.begin(&mut problem.io(0)).unwrap();
    projector.preview(|projector| projector.finish(&mut problem.io(0))).unwrap();
    projector.finish(&mut problem.io(0)).unwrap();
}
