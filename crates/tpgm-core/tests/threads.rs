//! The CPU backend gives the same bits on any number of threads and with any instruction set.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Problem, constraints, methods, rules, set, tpgm};
use tpgm_core::plan::CHUNK;
use tpgm_core::{
    Buffer, Constraint, Cpu, DType, Norm, Optimizer, ParamSet, Projector, Rule, StateDict, StepOptions,
    TensorScalars,
};

const STEPS: usize = 3;

/// Rows shorter and longer than a piece, several pieces to a tensor, a remainder in every loop, and a small tensor.
fn shapes() -> Vec<Vec<usize>> {
    vec![vec![301, 67], vec![2, CHUNK + 515], vec![CHUNK + 1], vec![7]]
}

/// Backends that must agree: each number of threads, with and without the CPU's own vector instructions.
fn backends() -> Vec<(String, Cpu)> {
    let threads = [1, 2, 3, 8].map(|threads| (threads, Cpu::with_threads(threads).unwrap()));
    let mut backends = vec![];
    for (threads, cpu) in threads {
        backends.push((format!("baseline, {threads} threads"), cpu.clone().baseline()));
        backends.push((format!("detected, {threads} threads"), cpu));
    }
    backends
}

/// Bit patterns, so that NaN and the sign of zero count.
fn bits(buffer: &Buffer) -> Vec<u64> {
    buffer.to_f64().iter().map(|x| x.to_bits()).collect()
}

/// Everything a run leaves behind: weights, state, telemetry, norms.
#[derive(PartialEq)]
struct Outcome {
    weights: Vec<Vec<u64>>,
    state: Vec<(String, Vec<u64>)>,
    scalars: Vec<TensorScalars>,
    norms: Vec<Vec<f64>>,
}

impl Outcome {
    fn new(problem: &Problem, state: &StateDict, scalars: Vec<TensorScalars>, norms: Vec<Vec<f64>>) -> Self {
        let state = state.iter().map(|(key, buffer)| (key.clone(), bits(buffer))).collect();
        Self { weights: problem.weights.iter().map(bits).collect(), state, scalars, norms }
    }
}

fn steps(cpu: &Cpu, set: &ParamSet, problem: &Problem, rule: Rule, constraint: Constraint) -> Outcome {
    let mut problem = problem.clone();
    let mut optimizer = Optimizer::new(cpu.clone(), set, rule, constraint).unwrap();
    for step in 0..STEPS {
        // The global norm is a sum over everything.
        let options = StepOptions { max_grad_norm: (step > 0).then_some(20.0), ..StepOptions::default() };
        optimizer.step(&mut problem.io(step), &options).unwrap();
    }
    let norms = set.tensors().iter().map(|spec| optimizer.norms(&spec.name).unwrap()).collect();
    Outcome::new(&problem, &optimizer.state().unwrap(), optimizer.scalars().unwrap(), norms)
}

fn projection_update(cpu: &Cpu, set: &ParamSet, problem: &Problem, norm: Norm) -> Outcome {
    let mut problem = problem.clone();
    let mut projector = Projector::new(cpu.clone(), set, tpgm(norm)).unwrap();
    projector.begin(&mut problem.io(0)).unwrap();
    for step in 0..STEPS {
        projector.apply(&mut problem.io(step)).unwrap();
        projector.update(&mut problem.io(step)).unwrap();
    }
    projector.finish(&mut problem.io(0)).unwrap();
    projector.project(&mut problem.io(0)).unwrap();
    let norms = set.tensors().iter().map(|spec| projector.norms(&spec.name).unwrap()).collect();
    Outcome::new(&problem, &projector.state().unwrap(), projector.scalars().unwrap(), norms)
}

#[test]
fn steps_have_the_same_bits_on_any_threads_and_instruction_set() {
    let backends = backends();
    for dtype in [DType::F32, DType::BF16] {
        let set = set(&shapes(), dtype);
        let problem = Problem::new(&set, STEPS, 1);
        for (i, (rule, constraint)) in methods().enumerate() {
            let expected = steps(&backends[0].1, &set, &problem, rule, constraint);
            for (j, (name, cpu)) in backends.iter().enumerate() {
                // Every backend twice.
                for repeat in 0..2 {
                    if j == 0 && repeat == 0 {
                        continue;
                    }
                    let got = steps(cpu, &set, &problem, rule, constraint);
                    assert!(
                        got == expected,
                        "{i}: {rule:?} under {constraint:?}, {dtype}, {name}, run {repeat}"
                    );
                }
            }
        }
        assert_eq!(methods().count(), rules().len() * constraints().len());
    }
}

#[test]
fn projection_updates_have_the_same_bits_on_any_threads_and_instruction_set() {
    let backends = backends();
    for dtype in [DType::F32, DType::BF16] {
        let set = set(&shapes(), dtype);
        let problem = Problem::new(&set, STEPS, 2);
        for norm in [Norm::Mars, Norm::L2] {
            let expected = projection_update(&backends[0].1, &set, &problem, norm);
            for (name, cpu) in &backends {
                for repeat in 0..2 {
                    let got = projection_update(cpu, &set, &problem, norm);
                    assert!(got == expected, "TPGM with {norm:?}, {dtype}, {name}, run {repeat}");
                }
            }
        }
    }
}
