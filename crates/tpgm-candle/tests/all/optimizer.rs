//! What the optimizer promises beyond the arithmetic of `tpgm-core`.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::core::element::bf16;
use tpgm_candle::{
    AdamW, Anchor, AuditPolicy, Constraint, FixedScale, Ftp, Group, Masters, OptimizerConfig, Param, Params,
    RobustOptimizer, Sgd, StateDict, TpgmConfig, audit, optim,
};

/// Deterministic numbers in (-1, 1).
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(numbers(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// A two-layer network with weights that depend on nothing but `dtype`.
pub(crate) struct Net {
    pub(crate) params: Params,
    pub(crate) vars: Vec<Var>,
}

impl Net {
    pub(crate) fn new(dtype: DType) -> Self {
        let shapes: [(&str, &[usize]); 4] =
            [("a.weight", &[16, 8]), ("a.bias", &[16]), ("b.weight", &[4, 16]), ("b.bias", &[4])];
        let var = |(i, (_, shape)): (usize, &(&str, &[usize]))| {
            Var::from_tensor(&tensor(i as u64 + 1, shape).to_dtype(dtype).unwrap()).unwrap()
        };
        let vars: Vec<Var> = shapes.iter().enumerate().map(var).collect();
        let params = shapes
            .iter()
            .zip(&vars)
            .map(|((name, _), var)| Param::anchored_here(*name, var.clone()).unwrap());
        Self { params: Params::from_params(params).unwrap(), vars }
    }

    /// Mean squared error on rows `range` of a fixed data set of 24.
    pub(crate) fn loss(&self, range: std::ops::Range<usize>) -> Tensor {
        let dtype = self.vars[0].dtype();
        let rows = |t: Tensor| t.narrow(0, range.start, range.len()).unwrap().to_dtype(dtype).unwrap();
        let (x, y) = (rows(tensor(11, &[24, 8])), rows(tensor(12, &[24, 4])));
        let linear = |h: &Tensor, i: usize| {
            h.matmul(&self.vars[i].t().unwrap()).unwrap().broadcast_add(&self.vars[i + 1]).unwrap()
        };
        let out = linear(&linear(&x, 0).tanh().unwrap(), 2);
        (out - y).unwrap().sqr().unwrap().mean_all().unwrap()
    }

    pub(crate) fn bits(&self) -> Vec<u64> {
        self.vars.iter().flat_map(bits).collect()
    }
}

fn bits(var: &Var) -> Vec<u64> {
    let wide = var.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    wide.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
}

pub(crate) fn values(var: &Var) -> Vec<f64> {
    var.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn single(value: &[f32]) -> (Var, Params) {
    let var = Var::new(value, &Device::Cpu).unwrap();
    let params = Params::from_params([Param::anchored_here("w", var.clone()).unwrap()]).unwrap();
    (var, params)
}

#[test]
fn accumulated_batches_equal_one_big_batch() {
    for dtype in [DType::F32, DType::F64] {
        let (parts, whole) = (Net::new(dtype), Net::new(dtype));
        let builder = |net: &Net| {
            RobustOptimizer::builder(&net.params).rule(AdamW::default().lr(0.01)).constraint(Ftp::default())
        };
        let mut small = builder(&parts).accumulate(3).max_grad_norm(0.5).build().unwrap();
        let mut big = builder(&whole).max_grad_norm(0.5).build().unwrap();
        for _ in 0..4 {
            for i in 0..3 {
                let info = small.backward_step(&parts.loss(8 * i..8 * i + 8)).unwrap();
                assert_eq!(info.taken, i == 2);
                assert_eq!(small.pending_batches(), (i + 1) % 3);
            }
            big.backward_step(&whole.loss(0..24)).unwrap();
        }
        assert_eq!((small.steps(), big.steps()), (4, 4));
        let limit = if dtype == DType::F64 { 1e-12 } else { 1e-5 };
        for (a, b) in parts.vars.iter().zip(&whole.vars) {
            for (a, b) in values(a).iter().zip(values(b)) {
                assert!((a - b).abs() < limit, "{a} {b}");
            }
        }
    }
}

#[test]
fn gradients_are_clipped_to_the_global_norm() {
    // Gradients 3 and 4 of two tensors: global norm 5, clipped to 1 they are 0.6 and 0.8 (up to the 1e-6 of the formula).
    let (a, b) = (Var::new(0.0f64, &Device::Cpu).unwrap(), Var::new(0.0f64, &Device::Cpu).unwrap());
    let params = [("a", &a), ("b", &b)].map(|(name, var)| Param::new(name, var.clone(), Anchor::None));
    let params = Params::from_params(params).unwrap();
    let rule = Sgd { momentum: 0.0, ..Sgd::default() }.lr(1.0);
    let mut opt = RobustOptimizer::builder(&params).rule(rule).max_grad_norm(1.0).build().unwrap();
    let loss = ((a.as_tensor() * 3.0).unwrap() + (b.as_tensor() * 4.0).unwrap()).unwrap();
    let info = opt.backward_step(&loss).unwrap();
    assert!((info.grad_norm.unwrap() - 5.0).abs() < 1e-12);
    let scale = 1.0 / (5.0 + 1e-6);
    assert!((values(&a)[0] + 3.0 * scale).abs() < 1e-12 && (values(&b)[0] + 4.0 * scale).abs() < 1e-12);
}

#[test]
fn the_loss_scale_cancels_out() {
    let (plain, scaled) = (Net::new(DType::F64), Net::new(DType::F64));
    let mut a = RobustOptimizer::new(&plain.params, AdamW::default(), Constraint::None).unwrap();
    let mut b = RobustOptimizer::builder(&scaled.params).loss_scale(1024.0).build().unwrap();
    for _ in 0..3 {
        let (a, b) = (a.backward_step(&plain.loss(0..24)), b.backward_step(&scaled.loss(0..24)));
        assert_eq!(a.unwrap().loss, b.unwrap().loss);
    }
    // A power of two changes no digit.
    assert_eq!(plain.bits(), scaled.bits());
}

#[test]
fn a_tensor_without_gradient_is_named_at_the_first_step() {
    let net = Net::new(DType::F32);
    let unused = Var::new(&[1.0f32], &Device::Cpu).unwrap();
    net.params.insert(Param::anchored_here("unused", unused.clone()).unwrap()).unwrap();
    let before = net.bits();
    let mut opt = RobustOptimizer::new(&net.params, AdamW::default(), Ftp::default()).unwrap();
    let error = opt.backward_step(&net.loss(0..8)).unwrap_err();
    assert!(
        matches!(&error, optim::Error::Audit(audit::Error::NoGradient { missing, trainable: 5 }) if missing.len() == 1 && missing[0].name == "unused"),
        "{error}"
    );
    assert_eq!((net.bits(), opt.steps()), (before, 0));

    let allow = AuditPolicy::Except(vec!["unus*".to_owned()]);
    let mut opt = RobustOptimizer::builder(&net.params).audit(allow).build().unwrap();
    opt.backward_step(&net.loss(0..8)).unwrap();
    assert_eq!(values(&unused), [1.0]);
    let typo = AuditPolicy::Except(vec!["unsued".to_owned()]);
    assert!(RobustOptimizer::builder(&net.params).audit(typo).build().is_err());
    RobustOptimizer::builder(&net.params).audit(AuditPolicy::Off).build().unwrap();
}

#[test]
fn a_gradient_may_come_late_and_stay_away_later() {
    let (a, b) = (Var::new(&[1.0f32], &Device::Cpu).unwrap(), Var::new(&[1.0f32], &Device::Cpu).unwrap());
    let params = [("a", &a), ("b", &b)].map(|(name, var)| Param::anchored_here(name, var.clone()).unwrap());
    let params = Params::from_params(params).unwrap();
    let mut opt = RobustOptimizer::builder(&params).accumulate(2).build().unwrap();
    // The audit looks at both batches of the first step together.
    assert!(!opt.backward_step(&a.sqr().unwrap().sum_all().unwrap()).unwrap().taken);
    assert!(opt.backward_step(&b.sqr().unwrap().sum_all().unwrap()).unwrap().taken);
    let b_before = bits(&b);
    for _ in 0..2 {
        opt.backward_step(&a.sqr().unwrap().sum_all().unwrap()).unwrap();
    }
    assert_eq!(bits(&b), b_before);
    let steps: Vec<f64> = opt.scalars().unwrap().iter().map(|(_, scalars)| scalars.step).collect();
    assert_eq!(steps, [2.0, 1.0]);
}

#[test]
fn nan_changes_nothing() {
    for accumulate in [1, 2] {
        let net = Net::new(DType::F32);
        let mut opt = RobustOptimizer::builder(&net.params)
            .constraint(Ftp::default())
            .accumulate(accumulate)
            .build()
            .unwrap();
        for _ in 0..3 {
            opt.backward_step(&net.loss(0..8)).unwrap();
        }
        let before = (net.bits(), opt.state().unwrap(), opt.steps());
        let nan_loss = (net.loss(0..8) * f64::NAN).unwrap();
        assert!(matches!(
            opt.backward_step(&nan_loss),
            Err(optim::Error::Audit(audit::Error::NonFiniteLoss { .. }))
        ));
        // A finite loss with an infinite slope at 0.
        let slope =
            (net.vars[3].as_tensor() - net.vars[3].detach()).unwrap().sqrt().unwrap().sum_all().unwrap();
        let error = opt.backward_step(&(net.loss(0..8) + slope).unwrap()).unwrap_err();
        assert!(error.to_string().contains("`b.bias`"), "{error}");
        let vector = net.vars[3].as_tensor().clone();
        assert!(matches!(
            opt.backward_step(&vector),
            Err(optim::Error::Audit(audit::Error::LossShape { .. }))
        ));
        assert_eq!((net.bits(), opt.state().unwrap(), opt.steps()), before);
        opt.backward_step(&net.loss(0..8)).unwrap();
    }
}

#[test]
fn a_gradient_of_another_shape_is_named_and_a_strided_one_is_read_right() {
    let var = Var::from_tensor(&tensor(1, &[2, 3])).unwrap();
    let params = Params::from_params([Param::new("w", var.clone(), Anchor::None)]).unwrap();
    let rule = Sgd { momentum: 0.0, ..Sgd::default() }.lr(1.0);
    let mut opt = RobustOptimizer::new(&params, rule, Constraint::None).unwrap();
    let mut grads = var.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (before, grad) = (values(&var), tensor(2, &[3, 2]));
    grads.insert(&var, grad.clone());
    let error = opt.step(&grads).unwrap_err();
    assert!(error.to_string().contains("`w`: its gradient has shape [3, 2]"), "{error}");
    grads.insert(&var, grad.t().unwrap());
    opt.step(&grads).unwrap();
    let grad =
        grad.t().unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    for ((after, before), grad) in values(&var).iter().zip(before).zip(grad) {
        assert!((after - (before - grad)).abs() < 1e-6);
    }
    // A variable as its own gradient: the step must not wait for itself.
    grads.insert(&var, var.as_tensor().clone());
    opt.step(&grads).unwrap();
    assert!(values(&var).iter().all(|x| *x == 0.0));
}

#[test]
fn tensors_without_elements_are_left_alone() {
    let net = Net::new(DType::F32);
    let empty = Var::from_tensor(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap()).unwrap();
    net.params.insert(Param::anchored_here("empty", empty.clone()).unwrap()).unwrap();
    for constraint in [Constraint::from(Ftp::default()), TpgmConfig::default().into()] {
        let mut opt = RobustOptimizer::new(&net.params, AdamW::default(), constraint).unwrap();
        opt.backward_step(&net.loss(0..8)).unwrap();
        let loss = (net.loss(0..8) + empty.sum_all().unwrap()).unwrap();
        opt.backward_step(&loss).unwrap();
        assert_eq!(empty.dims(), [0, 3]);
    }
}

#[test]
fn half_precision_weights_are_roundings_of_their_masters() {
    let step = |masters: Masters| {
        let var = Var::new(&[bf16::ONE; 4], &Device::Cpu).unwrap();
        let params = Params::from_params([Param::new("w", var.clone(), Anchor::None)]).unwrap();
        let rule = AdamW::default().lr(1e-4);
        let mut opt = RobustOptimizer::builder(&params).rule(rule).masters(masters).build().unwrap();
        for _ in 0..100 {
            opt.backward_step(&var.sum_all().unwrap()).unwrap();
        }
        (values(&var)[0], opt.state().unwrap())
    };
    // AdamW on a constant gradient of 1 moves by lr each step (up to eps): 1 - 100 * 1e-4 = 0.99, in bf16 0.98828125 or
    // 0.9921875. Without masters every step is lost to rounding.
    let (weight, state) = step(Masters::Auto);
    let Some(tpgm_candle::core::Buffer::F32(master)) = state.get("w/master") else { panic!("no master") };
    assert!((master[0] - 0.99).abs() < 1e-5, "{}", master[0]);
    assert_eq!(weight, f64::from(bf16::from_f32(master[0]).to_f32()));
    assert_eq!(step(Masters::Off).0, 1.0);
}

#[test]
fn it_stands_in_for_candles_optimizers() {
    fn train<O: candle_nn::Optimizer>(var: &Var, config: O::Config, steps: usize) -> f64 {
        let mut opt = O::new(vec![var.clone()], config).unwrap();
        opt.set_learning_rate(0.05);
        for _ in 0..steps {
            let loss = (var.as_tensor() - 3.0).unwrap().sqr().unwrap().sum_all().unwrap();
            opt.backward_step(&loss).unwrap();
        }
        opt.learning_rate()
    }
    let ours = Var::new(&[1.0f64, -2.0], &Device::Cpu).unwrap();
    let theirs = Var::new(&[1.0f64, -2.0], &Device::Cpu).unwrap();
    let config = OptimizerConfig::new(AdamW::default().weight_decay(0.01), Constraint::None);
    assert_eq!(train::<RobustOptimizer>(&ours, config, 20), 0.05);
    train::<candle_nn::AdamW>(&theirs, candle_nn::ParamsAdamW::default(), 20);
    for (a, b) in values(&ours).iter().zip(values(&theirs)) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }
}

fn resume(accumulate: usize, stop_after: usize) {
    let methods = [Constraint::from(Ftp::default()), TpgmConfig::default().into(), Constraint::None];
    for (constraint, dtype) in methods.into_iter().zip([DType::F32, DType::F16, DType::F64]) {
        let make = |net: &Net| {
            RobustOptimizer::builder(&net.params)
                .rule(AdamW { amsgrad: true, ..AdamW::default() }.lr(0.01))
                .constraint(constraint)
                .accumulate(accumulate)
                .build()
                .unwrap()
        };
        let run = |net: &Net, opt: &mut RobustOptimizer, range: std::ops::Range<usize>| {
            for i in range {
                opt.set_learning_rate(0.01 / (1.0 + opt.steps() as f64));
                opt.backward_step(&net.loss(i..i + 8)).unwrap();
            }
        };
        let straight = Net::new(dtype);
        let mut opt = make(&straight);
        run(&straight, &mut opt, 0..stop_after);
        let saved: (StateDict, Vec<Tensor>) =
            (opt.state().unwrap(), straight.vars.iter().map(|var| var.copy().unwrap()).collect());
        let config = serde_json::to_string(opt.config()).unwrap();
        run(&straight, &mut opt, stop_after..12);

        let resumed = Net::new(dtype);
        let mut again = make(&resumed);
        resumed.vars.iter().zip(&saved.1).for_each(|(var, saved)| var.set(saved).unwrap());
        again.resume(&serde_json::from_str(&config).unwrap(), &saved.0).unwrap();
        assert_eq!(again.state().unwrap(), saved.0);
        run(&resumed, &mut again, stop_after..12);
        assert_eq!(resumed.bits(), straight.bits());
        assert_eq!(again.state().unwrap(), opt.state().unwrap());
    }
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    resume(1, 5);
}

#[test]
fn a_run_resumed_between_two_steps_has_the_same_bits() {
    resume(4, 6);
}

#[test]
fn state_that_does_not_fit_is_refused() {
    let net = Net::new(DType::F32);
    let make =
        |config: OptimizerConfig| RobustOptimizer::builder(&net.params).config(config).build().unwrap();
    let mut opt = make(OptimizerConfig::new(AdamW::default(), Ftp::default()));
    opt.backward_step(&net.loss(0..8)).unwrap();
    let before = opt.state().unwrap();

    let other = make(OptimizerConfig::new(AdamW::default(), Ftp { k: 0.5, ..Ftp::default() }));
    let error = opt.resume(other.config(), &other.state().unwrap()).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::optim::Error::ConfigDiffers { option, .. } if option == "constraint.ftp.k"),
        "{error}"
    );
    for key in ["optimizer/lr", "optimizer/steps", "optimizer/batches", "a.bias/exp_avg", "b.bias/scalars"] {
        let mut state = before.clone();
        state.remove(key).unwrap();
        let error = opt.load_state(&state).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    let mut state = before.clone();
    state.insert("a.bias/accumulated".into(), tpgm_candle::core::Buffer::F32(vec![0.0; 16]));
    assert!(opt.load_state(&state).unwrap_err().to_string().contains("a.bias/accumulated"));
    state.remove("a.bias/accumulated");
    state.insert("optimizer/batches".into(), tpgm_candle::core::Buffer::F64(vec![7.0]));
    assert!(opt.load_state(&state).is_err());
    assert_eq!(opt.state().unwrap(), before);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let run = |threads: usize| {
        let net = Net::new(DType::F32);
        let big = Var::from_tensor(&tensor(9, &[300, 500])).unwrap();
        net.params.insert(Param::anchored_here("big", big.clone()).unwrap()).unwrap();
        let mut opt = RobustOptimizer::builder(&net.params)
            .constraint(Ftp::default())
            .max_grad_norm(0.1)
            .threads(threads)
            .build()
            .unwrap();
        for _ in 0..3 {
            opt.backward_step(&(net.loss(0..8) + big.sqr().unwrap().sum_all().unwrap()).unwrap()).unwrap();
        }
        (net.bits(), bits(&big), opt.state().unwrap())
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn mistakes_are_named() {
    let (var, params) = single(&[1.0, 2.0]);
    let tied = Params::from_params([
        Param::new("head", var.clone(), Anchor::None),
        Param::new("embedding", var.clone(), Anchor::None),
    ]);
    let error = RobustOptimizer::new(&tied.unwrap(), AdamW::default(), Constraint::None).err().unwrap();
    assert!(error.to_string().contains("`embedding` and `head`"), "{error}");

    let build = |params: &Params| RobustOptimizer::new(params, AdamW::default(), Ftp::default());
    let error = build(&params.clone().group(Group::new("haed.*").lr(1.0))).err().unwrap();
    assert!(error.to_string().contains("haed.*"), "{error}");

    let (_, params) = single(&[1.0, 2.0]);
    let builder = || RobustOptimizer::builder(&params);
    for (option, wrong) in [
        ("accumulate", builder().accumulate(0)),
        ("loss_scale", builder().loss_scale(0.0)),
        ("max_grad_norm", builder().max_grad_norm(f64::NAN)),
        ("AdamW::beta1", builder().rule(AdamW { beta1: 1.0, ..AdamW::default() })),
    ] {
        let error = wrong.build().err().unwrap().to_string();
        assert!(error.contains(option), "{error}");
    }
    assert!(matches!(build(&params).unwrap().tpgm().err(), Some(tpgm_candle::optim::Error::NoRadii)));

    let integers = Var::from_tensor(&Tensor::zeros(3, DType::U32, &Device::Cpu).unwrap()).unwrap();
    let integers = Params::from_params([Param::new("ids", integers, Anchor::None)]).unwrap();
    let error = tpgm_candle::Error::from(build(&integers).err().unwrap());
    assert!(
        matches!(&error, tpgm_candle::Error::Memory(tpgm_candle::memory::Error::ElementType { tensor, .. }) if tensor == "ids"),
        "{error}"
    );
}

#[test]
fn thousands_of_tensors_fit_a_small_stack() {
    let work = || {
        let vars: Vec<Var> = (0..3000).map(|i| Var::new(&[i as f32], &Device::Cpu).unwrap()).collect();
        let params = vars.iter().enumerate();
        let params = params.map(|(i, var)| Param::new(format!("{i:05}"), var.clone(), Anchor::None));
        let params = Params::from_params(params).unwrap();
        let rule = Sgd { momentum: 0.0, ..Sgd::default() }.lr(0.5);
        let mut opt = RobustOptimizer::new(&params, rule, Constraint::None).unwrap();
        let mut grads = vars[0].sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for var in &vars {
            grads.insert(var, var.ones_like().unwrap());
        }
        opt.step(&grads).unwrap();
        assert!(vars.iter().enumerate().all(|(i, var)| values(var) == [i as f64 - 0.5]));
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap();
}

#[test]
fn running_variances_reach_the_constraint() {
    // s = sqrt(3 + 1e-6), s0 = sqrt(1 + 1e-6); t = W / s - W0 / s0 is limited to 0.1 and W = (t + W0 / s0) * s.
    let var = Var::new(&[1.0f64], &Device::Cpu).unwrap();
    let params = Params::from_params([Param::anchored_here("bn.weight", var.clone()).unwrap()]).unwrap();
    let (current, anchor) =
        (Tensor::new(&[3.0f64], &Device::Cpu).unwrap(), Tensor::new(&[1.0f64], &Device::Cpu).unwrap());
    let rule = Sgd { momentum: 0.0, ..Sgd::default() }.lr(1.0);
    let builder = || RobustOptimizer::builder(&params).rule(rule).constraint(FixedScale { radius: 0.1 });
    let mut opt = builder().variance("bn.weight", &current, &anchor).build().unwrap();
    opt.backward_step(&(var.as_tensor() * -4.0).unwrap().sum_all().unwrap()).unwrap(); // W = 5 before the constraint
    let (s, s0) = (3.000001f64.sqrt(), 1.000001f64.sqrt());
    let expected = (0.1 + 1.0 / s0) * s;
    assert!((values(&var)[0] - expected).abs() < 1e-12, "{} {expected}", values(&var)[0]);
    assert!(builder().variance("bn.wieght", &current, &anchor).build().is_err());
}
