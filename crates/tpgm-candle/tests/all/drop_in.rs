//! The optimizer behind candle's own trait, which gives it variables without names.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer;
use tpgm_candle::optim::{Error, PositionProblem};
use tpgm_candle::{AdamW, Constraint, Ftp, Group, OptimizerConfig, RobustOptimizer, StateDict};

const CPU: Device = Device::Cpu;

/// Six variables, four of one shape; before training the biases are all zero, as in any model.
fn pretrained() -> Vec<Var> {
    let ramp = |shape: &[usize], seed: f32| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37 + seed).sin()).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &CPU).unwrap()).unwrap()
    };
    let bias = || Var::from_tensor(&Tensor::zeros(4, DType::F32, &CPU).unwrap()).unwrap();
    vec![ramp(&[4, 4], 0.1), bias(), ramp(&[4, 4], 0.2), bias(), ramp(&[4, 4], 0.3), ramp(&[4, 4], 0.4)]
}

/// A loss with another slope for every variable. The list is in the order of [`pretrained`].
fn loss(vars: &[Var], step: usize) -> Tensor {
    let terms = vars.iter().enumerate().map(|(i, var)| {
        let wave = var.affine(1.0, 0.1 * (step + i) as f64).unwrap().sin().unwrap();
        (wave.sum_all().unwrap() * (1.0 + i as f64)).unwrap()
    });
    terms.reduce(|a, b| (a + b).unwrap()).unwrap()
}

fn values(vars: &[Var]) -> Vec<Vec<f32>> {
    vars.iter().map(|var| var.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

fn config(constraint: Constraint) -> OptimizerConfig {
    OptimizerConfig::new(AdamW::default().lr(0.05), constraint)
}

fn ordered(vars: &[Var], order: &[usize]) -> Vec<Var> {
    order.iter().map(|&i| vars[i].clone()).collect()
}

fn train(opt: &mut RobustOptimizer, vars: &[Var], steps: std::ops::Range<usize>) {
    for step in steps {
        opt.backward_step(&loss(vars, step)).unwrap();
    }
}

/// Weights and state after five steps in the order of [`pretrained`], and weights after ten.
fn saved(constraint: Constraint) -> (Vec<Tensor>, StateDict, Vec<Vec<f32>>) {
    let vars = pretrained();
    let mut opt = <RobustOptimizer as Optimizer>::new(vars.clone(), config(constraint)).unwrap();
    train(&mut opt, &vars, 0..5);
    let weights = vars.iter().map(|var| var.copy().unwrap()).collect();
    let state = opt.state().unwrap();
    train(&mut opt, &vars, 5..10);
    (weights, state, values(&vars))
}

fn put(vars: &[Var], weights: &[Tensor]) {
    vars.iter().zip(weights).for_each(|(var, weight)| var.set(weight).unwrap());
}

#[track_caller]
fn problem(result: Result<(), Error>) -> PositionProblem {
    match result.unwrap_err() {
        Error::Position { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

#[test]
fn a_resumed_state_finds_its_variables_in_any_order() {
    for constraint in [Constraint::None, Ftp::default().into()] {
        let (weights, state, expected) = saved(constraint);
        for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 3, 0, 1, 5, 4], [4, 0, 3, 5, 1, 2]] {
            let vars = pretrained();
            let mut opt =
                <RobustOptimizer as Optimizer>::new(ordered(&vars, &order), config(constraint)).unwrap();
            put(&vars, &weights);
            opt.load_state(&state).unwrap();
            train(&mut opt, &vars, 5..10);
            assert_eq!(values(&vars), expected, "{order:?}");
        }
    }
}

#[test]
fn a_state_that_belongs_elsewhere_is_refused() {
    let (weights, state, _) = saved(Ftp::default().into());
    let vars = pretrained();
    let make =
        |vars: Vec<Var>| <RobustOptimizer as Optimizer>::new(vars, config(Ftp::default().into())).unwrap();
    let mut opt = make(vars.clone());
    let before = opt.state().unwrap();
    // The saved weights are not there yet.
    let error = opt.load_state(&state).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("variable 0 of shape [4, 4]") && text.contains("`RobustOptimizer::builder`"),
        "{text}"
    );
    assert_eq!(problem(Err(error)), PositionProblem::OtherWeight);
    assert_eq!(opt.state().unwrap(), before);
    // The optimizer is made after the weights were loaded: its anchors are where training stopped.
    let late = pretrained();
    put(&late, &weights);
    assert_eq!(problem(make(late).load_state(&state)), PositionProblem::OtherAnchor);
    // Without a constraint nobody reads an anchor.
    let (weights, free, _) = saved(Constraint::None);
    put(&vars, &weights);
    <RobustOptimizer as Optimizer>::new(vars.clone(), config(Constraint::None))
        .unwrap()
        .load_state(&free)
        .unwrap();

    // Two variables of one shape whose values are exchanged, one that is not there, one that is there too much.
    let mut exchanged = weights.clone();
    exchanged[4] = (&exchanged[4] + 1.0).unwrap();
    put(&vars, &exchanged);
    let mut plain = <RobustOptimizer as Optimizer>::new(vars.clone(), config(Constraint::None)).unwrap();
    assert_eq!(problem(plain.load_state(&free)), PositionProblem::OtherWeight);
    put(&vars, &weights);
    let mut few = <RobustOptimizer as Optimizer>::new(vars[..5].to_vec(), config(Constraint::None)).unwrap();
    assert!(few.load_state(&free).is_err());
    let more = [&vars[..], &[Var::zeros(3, DType::F32, &CPU).unwrap()]].concat();
    let mut many = <RobustOptimizer as Optimizer>::new(more, config(Constraint::None)).unwrap();
    assert_eq!(problem(many.load_state(&free)), PositionProblem::NotSaidWhich);
    // State of an optimizer that knows names, and the other way round.
    let named = tpgm_candle::Params::from_params(
        vars.iter()
            .enumerate()
            .map(|(i, var)| tpgm_candle::Param::anchored_here(format!("{i:04}"), var.clone()).unwrap()),
    );
    let named = named.unwrap();
    let mut named = RobustOptimizer::builder(&named).config(config(Constraint::None)).build().unwrap();
    assert_eq!(problem(plain.load_state(&named.state().unwrap())), PositionProblem::NotSaidWhich);
    let text = named.load_state(&free).unwrap_err().to_string();
    assert!(text.contains("identity"), "{text}");
}

#[test]
fn twins_are_told_apart_or_refused() {
    let twin = || Var::new(&[0.5f32, 0.25], &CPU).unwrap();
    let rule = config(Constraint::None);
    let make = |vars: &[Var]| <RobustOptimizer as Optimizer>::new(vars.to_vec(), rule.clone()).unwrap();
    let grads = |vars: &[Var], slopes: [f64; 2]| {
        let terms =
            vars.iter().zip(slopes).map(|(var, slope)| (var.as_tensor() * slope).unwrap().sum_all().unwrap());
        terms.reduce(|a, b| (a + b).unwrap()).unwrap()
    };
    for (slopes, alike) in [([1.0, 1.0], true), ([1.0, 2.0], false)] {
        let vars = [twin(), twin()];
        let mut opt = make(&vars);
        opt.backward_step(&grads(&vars, slopes)).unwrap();
        // Adam's first step has nearly one length whatever the slope: let the weights be twins, and their moments not.
        vars[1].set(&vars[0]).unwrap();
        let state = opt.state().unwrap();
        let again = [twin(), twin()];
        let mut resumed = make(&again);
        again.iter().for_each(|var| var.set(&vars[0]).unwrap());
        match alike {
            true => resumed.load_state(&state).unwrap(),
            false => assert_eq!(problem(resumed.load_state(&state)), PositionProblem::Ambiguous),
        }
    }
}

#[test]
fn groups_that_name_positions_do_not_move_with_the_variables() {
    let vars = pretrained();
    let grouped = || {
        let mut config = config(Constraint::None);
        config.groups = vec![Group::new("0000").lr(0.5)];
        config
    };
    let mut opt = <RobustOptimizer as Optimizer>::new(vars.clone(), grouped()).unwrap();
    opt.backward_step(&loss(&vars, 0)).unwrap();
    let state = opt.state().unwrap();
    opt.load_state(&state).unwrap();
    let mut turned =
        <RobustOptimizer as Optimizer>::new(ordered(&vars, &[2, 1, 0, 3, 4, 5]), grouped()).unwrap();
    assert_eq!(problem(turned.load_state(&state)), PositionProblem::OtherSettings);
}
