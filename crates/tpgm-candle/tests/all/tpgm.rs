//! The trainer's promises beyond the published trajectories.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::Optimizer;
use tpgm_candle::core::RadiusAdam;
use tpgm_candle::core::element::bf16;
use tpgm_candle::{
    AdamW, Every, Group, Norm, Param, Params, Projection, RobustOptimizer, Sgd, Tpgm, TpgmConfig,
};

const CONFIG: TpgmConfig =
    TpgmConfig { norm: Norm::Mars, adam: RadiusAdam { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8 } };

/// A 2 x 2 variable that has left its anchor `[[1, 2], [3, 4]]` by `[[0.3, -0.1], [0.2, 0.6]]`.
fn moved() -> (Var, Params) {
    let var = Var::new(&[[1.0f64, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
    let params = Params::from_params([Param::anchored_here("w", var.clone()).unwrap()]).unwrap();
    var.set(&Tensor::new(&[[1.3f64, 1.9], [3.2, 4.6]], &Device::Cpu).unwrap()).unwrap();
    (var, params)
}

fn values(var: &Var) -> Vec<f64> {
    var.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Its gradient is `[[1, -2], [0.5, -1.5]]` everywhere.
fn linear_loss(var: &Var) -> Result<Tensor> {
    (var.as_tensor() * Tensor::new(&[[1.0f64, -2.0], [0.5, -1.5]], &Device::Cpu)?)?.sum_all()
}

#[test]
fn an_update_by_hand() {
    // Row norms 0.4 and 0.8, so the radius starts at 0.4 / 2 = 0.2, the ratios at 0.5 and 0.25.
    // Its gradient: (1 * 0.3 + 2 * 0.1) / 0.4 + (0.5 * 0.2 - 1.5 * 0.6) / 0.8 = 1.25 - 1 = 0.25 > 0,
    // so the first Adam step takes 0.01 off: ratios 0.475 and 0.2375.
    let (var, params) = moved();
    let mut tpgm = Tpgm::new(&params, CONFIG).unwrap();
    let loss = tpgm.update(|| linear_loss(&var)).unwrap();
    let projected = [1.15, 1.95, 3.05, 4.15];
    assert!(
        (loss - (projected[0] - 2.0 * projected[1] + 0.5 * projected[2] - 1.5 * projected[3])).abs() < 1e-6
    );
    let expected = [1.0 + 0.3 * 0.475, 2.0 - 0.1 * 0.475, 3.0 + 0.2 * 0.2375, 4.0 + 0.6 * 0.2375];
    for (got, expected) in values(&var).iter().zip(expected) {
        assert!((got - expected).abs() < 1e-6, "{got} {expected}");
    }
    let (name, scalars) = tpgm.scalars().unwrap()[0].clone();
    assert_eq!(name, "w");
    assert!((scalars.radius - 0.19).abs() < 1e-6 && (scalars.radius_grad - 0.25).abs() < 1e-6);
    assert!((scalars.norm - 0.8).abs() < 1e-12 && (scalars.ratio - 0.2375).abs() < 1e-6);
}

#[test]
fn a_failing_update_leaves_the_weights_as_they_were() {
    let (var, params) = moved();
    let mut tpgm = Tpgm::new(&params, CONFIG).unwrap();
    let before = values(&var);
    let fail = |i: usize, at: usize, how: &str| match how {
        _ if i < at => linear_loss(&var),
        "error" => candle_core::bail!("no more batches"),
        "nan" => linear_loss(&var)? * f64::NAN,
        "slope" => linear_loss(&var)? + (var.as_tensor() - var.detach())?.sqrt()?.sum_all()?,
        "cut" => Tensor::new(1.0f64, &Device::Cpu),
        _ => var.as_tensor().sqr(),
    };
    for at in [0, 2] {
        for (how, message) in [
            ("error", "no more batches"),
            ("nan", "the loss is NaN"),
            ("slope", "`w` is not finite"),
            ("cut", "`w`: no held-out gradient"),
            ("shape", "has shape [2, 2]"),
        ] {
            let error = tpgm.update_n(3, |i| fail(i, at, how)).unwrap_err().to_string();
            assert!(error.contains(message), "{how}: {error}");
            assert_eq!(values(&var), before, "{how} at {at}");
        }
        let panicking = catch_unwind(AssertUnwindSafe(|| {
            tpgm.update_n(3, |i| match i {
                _ if i < at => linear_loss(&var),
                _ => panic!("in the closure"),
            })
        }));
        assert!(panicking.is_err());
        assert_eq!(values(&var), before);
    }
    tpgm.update(|| linear_loss(&var)).unwrap();
    assert_ne!(values(&var), before);
}

#[test]
fn it_works_beside_candles_optimizers() {
    let var = Var::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
    let params = Params::from_params([Param::anchored_here("w", var.clone()).unwrap()]).unwrap();
    let mut opt = candle_nn::AdamW::new_lr(vec![var.clone()], 0.05).unwrap();
    let mut tpgm = Tpgm::new(&params, CONFIG).unwrap();
    let every = Every::new(3);
    let mut updates = 0;
    for step in 0..9 {
        opt.backward_step(&var.sqr().unwrap().sum_all().unwrap()).unwrap();
        if every.is_due(step) {
            tpgm.update(|| (var.as_tensor() - 1.0)?.sqr()?.sum_all()).unwrap();
            updates += 1;
            let radius = tpgm.scalars().unwrap()[0].1.radius;
            for (row, anchor) in values(&var).chunks(2).zip([[1.0, 2.0], [3.0, 4.0]]) {
                let norm: f64 = row.iter().zip(anchor).map(|(w, a)| (w - a).abs()).sum();
                assert!(norm <= radius + 1e-5, "{norm} {radius}");
            }
        }
    }
    assert_eq!(updates, 3);
    assert!(!Every::new(0).is_due(0) && Every::new(1).is_due(0));
}

#[test]
fn joined_and_separate_trainers_agree() {
    // Deferred step, then update: the same as an unconstrained step beside a separate trainer.
    let train = |joined: bool| {
        let (var, params) = moved();
        let rule = AdamW::default().lr(0.05);
        let loss = |var: &Var| var.sqr().unwrap().sum_all().unwrap();
        if joined {
            let mut opt = RobustOptimizer::new(&params, rule, CONFIG).unwrap();
            opt.set_projection(Projection::Defer);
            for _ in 0..5 {
                opt.backward_step(&loss(&var)).unwrap();
                opt.tpgm().unwrap().update_n(2, |_| linear_loss(&var)).unwrap();
            }
        } else {
            let mut opt = RobustOptimizer::new(&params, rule, tpgm_candle::Constraint::None).unwrap();
            let mut tpgm = Tpgm::new(&params, CONFIG).unwrap();
            for _ in 0..5 {
                opt.backward_step(&loss(&var)).unwrap();
                tpgm.update_n(2, |_| linear_loss(&var)).unwrap();
            }
        }
        values(&var)
    };
    for (a, b) in train(true).iter().zip(train(false)) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }
}

#[test]
fn a_joined_projection_reaches_the_masters() {
    let var = Var::new(&[bf16::ONE; 8], &Device::Cpu).unwrap();
    let params = Params::from_params([Param::anchored_here("w", var.clone()).unwrap()]).unwrap();
    let rule = Sgd { momentum: 0.0, ..Sgd::default() }.lr(0.5);
    let mut opt = RobustOptimizer::new(&params, rule, CONFIG).unwrap();
    opt.set_projection(Projection::Defer);
    opt.backward_step(&var.sum_all().unwrap()).unwrap(); // every element moves by 0.5: norm 4, radius 2
    opt.tpgm().unwrap().project().unwrap();
    assert_eq!(values(&var), [0.75; 8]);
    let master = opt.state().unwrap()["w/master"].to_f64();
    assert!(master.iter().all(|x| (x - 0.75).abs() < 1e-6), "{master:?}");
}

#[test]
fn post_hoc_learns_between_two_checkpoints() {
    let (var, params) = moved();
    let report = Tpgm::post_hoc(&params, CONFIG, 4, |_| linear_loss(&var)).unwrap();
    assert_eq!((report.losses.len(), report.scalars.len()), (4, 1));
    assert!(report.losses[3] < report.losses[0]);
    // The same gradient every time: Adam takes its full rate off, four times (see `an_update_by_hand`).
    assert!((report.scalars[0].1.radius - 0.16).abs() < 1e-6);
    let expected = 1.0 + 0.3 * 0.16 / 0.4;
    assert!((values(&var)[0] - expected).abs() < 1e-6);
}

#[test]
fn state_continues_an_interrupted_training() {
    let (var, params) = moved();
    let mut tpgm = Tpgm::new(&params, CONFIG).unwrap();
    tpgm.update(|| linear_loss(&var)).unwrap();
    let (weights, state) = (var.copy().unwrap(), tpgm.state().unwrap());
    tpgm.update(|| linear_loss(&var)).unwrap();

    let (again, params) = moved();
    again.set(&weights).unwrap();
    let mut resumed = Tpgm::new(&params, CONFIG).unwrap();
    resumed.load_state(&state).unwrap();
    resumed.update(|| linear_loss(&again)).unwrap();
    assert_eq!(values(&again), values(&var));
    assert_eq!(resumed.state().unwrap(), tpgm.state().unwrap());
    assert!(resumed.load_state(&tpgm_candle::StateDict::new()).is_err());
}

#[test]
fn excluded_tensors_need_no_held_out_gradient() {
    let (var, params) = moved();
    let head = Var::new(&[1.0f64], &Device::Cpu).unwrap();
    params.insert(Param::anchored_here("head", head.clone()).unwrap()).unwrap();
    head.set(&Tensor::new(&[5.0f64], &Device::Cpu).unwrap()).unwrap();
    let mut tpgm = Tpgm::new(&params.group(Group::new("head").excluded()), CONFIG).unwrap();
    tpgm.update(|| linear_loss(&var)).unwrap();
    assert_eq!(values(&head), [5.0]);
}

#[test]
fn shared_memory_is_refused() {
    let (var, params) = moved();
    params.insert(Param::anchored_here("tied", var.clone()).unwrap()).unwrap();
    assert!(matches!(
        Tpgm::new(&params, CONFIG).err(),
        Some(tpgm_candle::optim::Error::Engine(tpgm_candle::engine::Error::SharedStorage { .. }))
    ));
}
