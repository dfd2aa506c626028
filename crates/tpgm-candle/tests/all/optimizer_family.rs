//! Importance, sparse projections and changes of gradients, on candle's variables.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::core::element::bf16;
use tpgm_candle::core::gradient::Concordant;
use tpgm_candle::core::sparse::{Saft, Selekt, Trained};
use tpgm_candle::optim::{SaftOptimizer, SaftSelection, selekt};
use tpgm_candle::{AdamW, Constraint, Ftp, Group, Param, Params, Pull, PullWeights, RobustOptimizer, Sgd};

use crate::optimizer::{Net, single, values};

/// Gates taken after a first task hold what it needs, while the rest learns a second one; without the pull the first is
/// forgotten. Each task looks at its own half of the weights and pushes the other half aside.
#[test]
fn importance_pull_with_gates_protects_a_first_task() {
    let target = [1.0f32, 2.0, -1.0, 0.5, 3.0, -2.0, 1.5, -0.5];
    let target = Tensor::new(&target, &Device::Cpu).unwrap();
    let distance = |w: &Tensor, start| {
        let part = |t: &Tensor| t.narrow(0, start, 4).unwrap();
        (part(w) - part(&target)).unwrap().sqr().unwrap().sum_all().unwrap()
    };
    let scalar = |loss: Tensor| loss.to_scalar::<f32>().unwrap();
    let forgotten = |strength| {
        let (var, _) = single(&[0.0; 8]);
        let rule = Sgd { lr: 0.05, momentum: 0.0, ..Sgd::default() };
        let of = |var: &Var| Params::from_params([Param::anchored_here("w", var.clone()).unwrap()]).unwrap();
        let mut first = RobustOptimizer::new(&of(&var), rule, Constraint::None).unwrap();
        for _ in 0..100 {
            first.backward_step(&distance(&var, 0)).unwrap();
        }
        let gates = PullWeights::Gate { threshold: 0.1 };
        let pull = Pull { anchor_l2: 1.0, strength, weights: gates, ..Pull::default() };
        let mut second = RobustOptimizer::new(&of(&var), rule, pull).unwrap();
        // What the first task's outputs depend on.
        second.backward_importance(&var.narrow(0, 0, 4).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
        assert_eq!(second.importance("w").unwrap(), [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        for _ in 0..100 {
            let drift = var.sum_all().unwrap().sqr().unwrap().affine(0.1, 0.0).unwrap();
            second.backward_step(&(distance(&var, 4) + drift).unwrap()).unwrap();
        }
        (scalar(distance(&var, 0)), scalar(distance(&var, 4)))
    };
    let (free, free_second) = forgotten(0.0);
    let (held, held_second) = forgotten(15.0);
    assert!(free > 1.0 && held < 0.3 * free, "the first task: {free} without a pull, {held} with");
    assert!(
        held_second < free_second + 1.0,
        "the second task: {free_second} without a pull, {held_second} with"
    );
}

/// Importance goes into the state and comes back; what is wrong with it is named.
#[test]
fn importance_is_saved_and_refused_by_name() {
    let net = Net::new(DType::BF16);
    let pull = Pull {
        anchor_l1: 0.1,
        anchor_l2: 0.5,
        weights: PullWeights::Running { decay: 0.5 },
        ..Pull::default()
    };
    let params = net.params.clone().group(Group::new("b.bias").constraint(Ftp::default()));
    let make = || RobustOptimizer::new(&params, AdamW::default().lr(1e-2), pull).unwrap();
    let mut opt = make();
    opt.backward_importance(&net.loss(0..8)).unwrap();
    opt.backward_step(&net.loss(8..16)).unwrap();
    let mut resumed = make();
    resumed.load_state(&opt.state().unwrap()).unwrap();
    let importance = opt.importance("a.weight").unwrap();
    assert!((importance.iter().sum::<f64>() / 128.0 - 1.0).abs() < 1e-5);
    assert_eq!(resumed.importance("a.weight").unwrap(), importance);

    let ones = Tensor::ones((4, 16), DType::F32, &Device::Cpu).unwrap();
    opt.set_importance("b.weight", &ones).unwrap();
    assert_eq!(opt.importance("b.weight").unwrap(), vec![1.0; 64]);
    let error = opt.set_importance("c.weight", &ones).unwrap_err().to_string();
    assert!(error.contains("`c.weight`"), "{error}");
    let error = opt.set_importance("b.bias", &ones).unwrap_err().to_string();
    assert!(error.contains("`b.bias`") && error.contains("FTP") && error.contains("Pull"), "{error}");
    let error = opt.set_importance("a.bias", &ones).unwrap_err().to_string();
    assert!(error.contains("`a.bias`") && error.contains("16"), "{error}");
    let error = opt.set_importance("b.weight", &ones.neg().unwrap()).unwrap_err().to_string();
    assert!(error.contains("`b.weight`") && error.contains("-1"), "{error}");
    let mut plain = RobustOptimizer::new(&net.params, AdamW::default(), Ftp::default()).unwrap();
    let error = plain.backward_importance(&net.loss(0..8)).unwrap_err().to_string();
    assert!(error.contains("no tensor"), "{error}");
    let infinite = (net.loss(0..8) / 0.0).unwrap();
    assert!(opt.backward_importance(&infinite).unwrap_err().to_string().contains("loss"));
}

/// SeleKT on masters: what is reset stays reset over the next step without a gradient, and kept entries keep their master's digits.
#[test]
fn selekt_projects_masters_with_the_weights() {
    let net = Net::new(DType::BF16);
    let anchors: Vec<Vec<f64>> = net.vars.iter().map(values).collect();
    let mut opt = RobustOptimizer::new(&net.params, AdamW::default().lr(1e-2), Constraint::None).unwrap();
    let options = Selekt { alpha: 0.25, ..Selekt::default() };
    // Before the first step there is nothing to keep, and no master to trust.
    selekt(&net.params, &options, Some(&mut opt)).unwrap();
    assert_eq!(net.vars.iter().map(values).collect::<Vec<_>>(), anchors);
    for _ in 0..3 {
        opt.backward_step(&net.loss(0..24)).unwrap();
    }
    let kept = selekt(&net.params, &options, Some(&mut opt)).unwrap();
    let state = opt.state().unwrap();
    for ((name, kept), (var, anchor)) in
        kept.iter().zip(net.params.all().iter().zip(anchors_by_name(&net, &anchors)))
    {
        assert_eq!(name, var.name());
        let weight = values(var.var());
        let moved = weight.iter().zip(&anchor).filter(|(w, a)| w != a).count();
        assert_eq!(*kept, Some(weight.len() / 4), "{name}");
        assert!(moved <= weight.len() / 4 && moved > 0, "{name}: {moved} of {} moved", weight.len());
        let master = state[&format!("{name}/master")].to_f64();
        for (i, (w, m)) in weight.iter().zip(&master).enumerate() {
            assert_eq!(f64::from(bf16::from_f64(*m)), *w, "{name} element {i}");
        }
    }
    let error = selekt(&net.params, &Selekt { alpha: 2.0, ..options }, None).unwrap_err();
    assert!(error.to_string().contains("Selekt::alpha"), "{error}");
}

/// The anchors in the order of names.
fn anchors_by_name(net: &Net, anchors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let of = |param: &Param| {
        let same = |var: &&Var| var.id() == param.var().id();
        anchors[net.vars.iter().position(|var| same(&var)).unwrap()].clone()
    };
    net.params.all().iter().map(of).collect()
}

/// SAFT selects by summed gradients of all parameters together, trains nothing else, and resumes to the bit.
#[test]
fn saft_trains_selected_entries_and_resumes() {
    let net = Net::new(DType::F32);
    let before: Vec<Vec<f64>> = net.vars.iter().map(values).collect();
    let mut selection = SaftSelection::new(&net.params).unwrap();
    for batch in 0..3 {
        selection.add(&net.loss(8 * batch..8 * batch + 8).backward().unwrap()).unwrap();
    }
    let mask = selection.select(&Saft { fraction: 0.1 }).unwrap();
    let trained: usize =
        mask.tensors().iter().map(|t| if let Trained::Entries(e) = t { e.len() } else { 0 }).sum();
    assert_eq!(trained, 212 / 10);
    let make = || {
        SaftOptimizer::new(&net.params, mask.clone(), AdamW::default().lr(1e-2), Constraint::None).unwrap()
    };
    let mut opt = make();
    let first = opt.backward_step(&net.loss(0..24)).unwrap();
    for _ in 0..10 {
        opt.backward_step(&net.loss(0..24)).unwrap();
    }
    assert!(f64::from(net.loss(0..24).to_scalar::<f32>().unwrap()) < first);
    let changed = |vars: &[Var]| -> usize {
        let of =
            |(var, before): (&Var, &Vec<f64>)| values(var).iter().zip(before).filter(|(a, b)| a != b).count();
        vars.iter().zip(&before).map(of).sum()
    };
    assert_eq!(changed(&net.vars), trained);
    let (state, saved) =
        (opt.state().unwrap(), net.vars.iter().map(|var| var.copy().unwrap()).collect::<Vec<_>>());
    opt.backward_step(&net.loss(0..24)).unwrap();
    let expected = net.bits();
    net.vars.iter().zip(&saved).for_each(|(var, saved)| var.set(saved).unwrap());
    let mut resumed = make();
    resumed.load_state(&state).unwrap();
    resumed.backward_step(&net.loss(0..24)).unwrap();
    assert_eq!(net.bits(), expected);
}

/// A transform that waits takes no step; its step takes what it made, here of three gradients at the same weights.
#[test]
fn a_transform_waits_and_then_steps() {
    let (var, params) = single(&[1.0, 2.0]);
    let rule = Sgd { lr: 1e-6, momentum: 0.0, ..Sgd::default() };
    let mut opt = RobustOptimizer::new(&params, rule, Constraint::None).unwrap();
    let mut transform = Concordant::new(opt.set(), 3).unwrap();
    let batch = |scale: f64| {
        let by = Tensor::new(&[1f32, scale as f32], &Device::Cpu).unwrap();
        (var.as_tensor() * by).unwrap().sum_all().unwrap().backward().unwrap()
    };
    for (scale, taken) in [(-1.0, false), (0.0, false), (1.0, true)] {
        let info = opt.step_with_transform(&batch(scale), &mut transform).unwrap();
        assert_eq!(info.taken, taken);
        assert_eq!(values(&var)[1], 2.0, "its mean is 0");
    }
    // The first element agrees: its gradient is 1 / 1e-6, times the rate.
    assert!((values(&var)[0]).abs() < 1e-4, "{:?}", values(&var));
    assert_eq!((opt.steps(), transform.variance()), (1, Some(1.0)));
}
