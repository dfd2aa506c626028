//! Teachers: what they promise. Their numbers against published code are in `tests/family`.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::core::Buffer;
use tpgm_candle::teacher::{Momentum, Teacher};
use tpgm_candle::{Anchor, Checkpoint, Checkpointer, Param, Params, TrainState};

use crate::common::numbers;

/// `w` from its anchor [0.1, 2] to [4.3, -2], a factor with the zero anchor at [8], a head at [5].
fn student() -> (Params, Var) {
    let of = |values: &[f32]| Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
    let var = of(&[0.1, 2.0]);
    let w = Param::anchored_here("w", var.clone()).unwrap();
    var.set(&Tensor::new(&[4.3f32, -2.0], &Device::Cpu).unwrap()).unwrap();
    let others = [Param::new("lora", of(&[8.0]), Anchor::Zero), Param::new("head", of(&[5.0]), Anchor::None)];
    (Params::from_params(others.into_iter().chain([w])).unwrap(), var)
}

fn bits(params: &Params) -> Vec<u64> {
    params.all().iter().flat_map(|param| numbers(param.var())).map(f64::to_bits).collect()
}

/// All parameters, as the model has them.
fn values(params: &Params) -> candle_core::Result<Vec<Tensor>> {
    Ok(params.all().iter().map(|param| param.var().as_tensor().clone()).collect())
}

#[test]
fn a_frozen_teacher_is_at_the_anchors() {
    let (params, _) = student();
    let live = bits(&params);
    let mut teacher = Teacher::frozen(&params).unwrap();
    assert_eq!(teacher.update().unwrap(), None);
    let weights = teacher.with(|| values(&params)).unwrap();
    let weights: Vec<_> = weights.iter().map(|weight| weight.to_vec1::<f32>().unwrap()).collect();
    assert_eq!(weights, [vec![5.0], vec![0.0], vec![0.1, 2.0]], "head, factor, weight");
    assert_eq!(bits(&params), live);
    assert!(teacher.state().unwrap().is_empty());

    let head = Var::new(&[1f32], &Device::Cpu).unwrap();
    let none = Params::from_params([Param::new("head", head, Anchor::None)]).unwrap();
    let error = Teacher::frozen(&none).err().unwrap().to_string();
    assert!(error.contains("none of the 1 parameters has an anchor"), "{error}");
}

#[test]
fn nothing_is_trained_through_a_teacher() {
    let (params, w) = student();
    let teachers =
        [Teacher::frozen(&params).unwrap(), Teacher::average(&params, Momentum::constant(0.5), 1).unwrap()];
    for mut teacher in teachers {
        // The student's graph is made before its weights are away, and is used after.
        let outputs = (w.as_tensor() * 3.0).unwrap();
        let (answer, both, weight) =
            teacher.with(|| Ok((w.sqr()?, vec![w.exp()?], w.reshape((2, 1))?))).unwrap();
        assert!(!answer.track_op() && !both[0].track_op() && !weight.track_op());
        let loss = (outputs.sqr().unwrap() * answer).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let expected = ((&w.as_tensor().detach() * 18.0).unwrap()
            * weight.sqr().unwrap().flatten_all().unwrap())
        .unwrap();
        for (got, expected) in numbers(grads.get(&w).unwrap()).into_iter().zip(numbers(&expected)) {
            assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1e-3), "{got}, not {expected}");
        }
    }
}

#[test]
fn the_student_returns_after_an_error_and_a_panic() {
    let (params, w) = student();
    let live = bits(&params);
    for kind in ["frozen", "average"] {
        let mut teacher = match kind {
            "frozen" => Teacher::frozen(&params).unwrap(),
            _ => {
                let mut teacher = Teacher::average(&params, Momentum::constant(0.9), 1).unwrap();
                let there = w.as_tensor().copy().unwrap();
                w.set(&(&there * 2.0).unwrap()).unwrap();
                teacher.update().unwrap();
                w.set(&there).unwrap();
                teacher
            }
        };
        let mut seen = Vec::new();
        let error = teacher
            .with(|| {
                seen = bits(&params);
                candle_core::bail!("no data") as candle_core::Result<()>
            })
            .unwrap_err();
        assert!(error.to_string().contains("no data") && seen != live, "{kind}: {error}");
        assert_eq!(bits(&params), live, "{kind}");
        let mut stops = || drop(teacher.with(|| -> candle_core::Result<()> { panic!("stop") }));
        let panic = catch_unwind(AssertUnwindSafe(&mut stops));
        assert!(panic.is_err());
        assert_eq!(bits(&params), live, "{kind}");
    }
}

#[test]
fn a_resumed_teacher_has_the_same_bits() {
    let step = |var: &Var, i: usize| {
        var.set(&(var.as_tensor() * (0.9 + 0.01 * i as f64)).unwrap()).unwrap();
    };
    let make = || {
        let (params, var) = student();
        (Teacher::average(&params, Momentum::carot(30), 3).unwrap(), params, var)
    };
    let (mut straight, params, var) = make();
    for i in 0..20 {
        step(&var, i);
        straight.update().unwrap();
    }
    let expected = straight.state().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (mut first, first_params, var) = make();
    for i in 0..8 {
        step(&var, i);
        first.update().unwrap();
    }
    let state = TrainState::new(8).weights(first_params.values()).unwrap();
    let state = state.state("teacher", first.state().unwrap()).unwrap();
    let path = Checkpointer::new(dir.path()).save(&state).unwrap();

    let (mut second, second_params, var) = make();
    let checkpoint = Checkpoint::load(path).unwrap();
    checkpoint.restore(&second_params).unwrap();
    second.load_state(&checkpoint.state("teacher").unwrap()).unwrap();
    for i in 8..20 {
        step(&var, i);
        second.update().unwrap();
    }
    assert_eq!(bits(&second_params), bits(&params));
    assert_eq!(second.state().unwrap(), expected);
}

#[test]
fn a_teacher_of_another_model_is_named() {
    let (params, _) = student();
    let mut teacher = Teacher::average(&params, Momentum::constant(0.5), 1).unwrap();
    let saved = teacher.state().unwrap();
    let refused = |teacher: &mut Teacher, change: &dyn Fn(&mut tpgm_candle::StateDict)| {
        let mut state = saved.clone();
        change(&mut state);
        let error = teacher.load_state(&state).unwrap_err().to_string();
        assert_eq!(teacher.state().unwrap(), saved, "nothing has changed after {error}");
        error
    };
    for (error, name) in [
        (refused(&mut teacher, &|state| drop(state.remove("w/ema"))), "w/ema"),
        (refused(&mut teacher, &|state| drop(state.insert("v/ema".into(), Buffer::F32(vec![1.0])))), "v/ema"),
        (refused(&mut teacher, &|state| drop(state.insert("w/ema".into(), Buffer::F32(vec![1.0])))), "w"),
        (refused(&mut teacher, &|state| drop(state.remove("steps"))), "steps"),
    ] {
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
    assert!(Teacher::frozen(&params).unwrap().load_state(&saved).is_err());

    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, tensors: &[(&str, &[f32])]| {
        let tensors: HashMap<String, Tensor> = tensors
            .iter()
            .map(|(name, values)| ((*name).to_owned(), Tensor::new(*values, &Device::Cpu).unwrap()))
            .collect();
        let path = dir.path().join(name);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        path
    };
    let good = file("good", &[("w", &[7.0, 8.0]), ("head", &[9.0]), ("unused", &[0.0])]);
    let mut teacher = Teacher::open(&params, good).unwrap();
    let weights = teacher.with(|| values(&params)).unwrap();
    let weights: Vec<_> = weights.iter().map(|weight| weight.to_vec1::<f32>().unwrap()).collect();
    assert_eq!(weights, [vec![9.0], vec![0.0], vec![7.0, 8.0]]);
    for (path, expected) in [
        (file("less", &[("w", &[7.0, 8.0])]), "tensor `head`: the teacher's weights in"),
        (
            file("wide", &[("w", &[7.0]), ("head", &[9.0])]),
            "tensor `w` has shape [1], but the student's is [2]",
        ),
    ] {
        let error = Teacher::open(&params, path).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let integers = HashMap::from([
        ("w".to_owned(), Tensor::zeros(2, DType::I64, &Device::Cpu).unwrap()),
        ("head".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap()),
    ]);
    let path = dir.path().join("integers");
    candle_core::safetensors::save(&integers, &path).unwrap();
    let error = Teacher::open(&params, path).err().unwrap().to_string();
    assert!(error.contains("tensor `w` is I64"), "{error}");
}

#[test]
fn options_outside_their_range_are_named() {
    let (params, _) = student();
    for (momentum, every, expected) in [
        (Momentum::constant(1.5), 1, "momentum at first"),
        (Momentum::ramp(0.5, -0.1, 3.0), 1, "momentum at last"),
        (Momentum::ramp(0.5, 0.9, f64::NAN), 1, "momentum steps"),
        (Momentum::constant(0.5), 0, "teacher every"),
    ] {
        let error = Teacher::average(&params, momentum, every).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(Momentum::carot(100).at(0), 0.05);
    assert!((Momentum::carot(100).at(10) - 0.475).abs() < 1e-15);
    assert_eq!(Momentum::carot(100).at(20), 0.9);
}
