//! What is bound on a GPU, and what is refused.

use candle_core::{DType, Device, DeviceLocation, Tensor, Var};
use tpgm_candle::weight_space::{Interpolation, wise};
use tpgm_candle::{
    AdamW, Anchor, AuditPolicy, Ema, Error, Ftp, Param, Params, Reports, RobustOptimizer, Tpgm, TpgmConfig,
};

use crate::{Model, agree, flat, gpu, values};

fn pair(first: &Device, second: &Device) -> Params {
    let param = |name, device| Param::new(name, Var::zeros(3, DType::F32, device).unwrap(), Anchor::None);
    Params::from_params([param("a", first), param("b", second)]).unwrap()
}

#[test]
fn parameters_on_several_devices_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut pairs = vec![(Device::Cpu, gpu.clone())];
    match Device::new_cuda(1) {
        Ok(second) => pairs.push((gpu, second)),
        Err(error) => println!("skipped in part: no second GPU ({error})"),
    }
    for (first, second) in pairs {
        let params = pair(&first, &second);
        let errors = [
            RobustOptimizer::new(&params, AdamW::default(), Ftp::default()).err().unwrap(),
            Tpgm::new(&params, TpgmConfig::default()).err().unwrap(),
            Ema::new(&params, 0.5).err().unwrap(),
        ];
        for error in errors {
            let Error::Devices { tensor, device, first: name, expected } = error else { panic!("{error}") };
            assert_eq!((tensor.as_str(), name.as_str()), ("b", "a"));
            assert!(device == second.location() && expected == first.location());
        }
    }
}

#[test]
fn operands_on_another_device_are_refused() {
    let Some(gpu) = gpu() else { return };
    let params = pair(&gpu, &gpu);
    let mut optimizer = RobustOptimizer::builder(&params).audit(AuditPolicy::Off).build().unwrap();
    let var = params.get("a").unwrap().var().clone();
    let mut grads = var.sum_all().unwrap().backward().unwrap();
    grads.insert(&var, Tensor::ones(3, DType::F32, &Device::Cpu).unwrap());
    let error = optimizer.step(&grads).unwrap_err();
    let Error::OperandDevice { tensor, what: "gradient", expected, got } = error else { panic!("{error}") };
    assert_eq!(tensor, "a");
    assert!(matches!((expected, got), (DeviceLocation::Cuda { .. }, DeviceLocation::Cpu)));
}

#[test]
fn strided_gradients_and_those_of_other_types_are_read() {
    let Some(gpu) = gpu() else { return };
    let step = |device: &Device| {
        let var = Var::from_tensor(&values((5, 7), 1).to_device(device).unwrap()).unwrap();
        let params = Params::from_params([Param::anchored_here("w", var.clone()).unwrap()]).unwrap();
        let mut optimizer = RobustOptimizer::new(&params, AdamW::default(), Ftp::default()).unwrap();
        let mut grads = var.sum_all().unwrap().backward().unwrap();
        let turned = values((7, 5), 2).to_dtype(DType::F32).unwrap().to_device(device).unwrap().t().unwrap();
        for grad in
            [turned.clone(), turned.narrow(1, 1, 2).unwrap().repeat((1, 4)).unwrap().narrow(1, 1, 7).unwrap()]
        {
            grads.insert(&var, grad);
            optimizer.step(&grads).unwrap();
        }
        // The variable itself as its gradient: decay.
        grads.insert(&var, var.as_tensor().clone());
        optimizer.step(&grads).unwrap();
        flat(&var)
    };
    agree("strided gradients", &step(&gpu), &step(&Device::Cpu), 1e-9);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    for accumulate in [1, 2] {
        let model = Model::new(DType::F32, &gpu);
        let builder = RobustOptimizer::builder(&model.params).constraint(Ftp::default());
        let builder = builder.accumulate(accumulate).audit(AuditPolicy::Off);
        let mut optimizer = builder.reports(Reports::AtOnce).build().unwrap();
        let mut grads = model.loss(1).unwrap().backward().unwrap();
        let mut bad = vec![0.5f32; 33 * 17];
        bad[560] = f32::INFINITY;
        grads.insert(&model.vars[5], Tensor::from_vec(bad, (33, 17), &gpu).unwrap());
        let before = model.values();
        let error = optimizer.step(&grads).unwrap_err();
        let core = tpgm_candle::core::Error::NonFiniteGradient { tensor: "weight".to_owned(), count: 1 };
        assert!(matches!(&error, Error::Core(error) if *error == core), "{error}");
        assert_eq!((model.values(), optimizer.pending_batches()), (before, 0));
    }
}

#[test]
fn a_late_error_comes_with_the_next_step_which_does_nothing() {
    let Some(gpu) = gpu() else { return };
    let model = Model::new(DType::F32, &gpu);
    let builder = RobustOptimizer::builder(&model.params).constraint(Ftp::default());
    let mut optimizer = builder.audit(AuditPolicy::Off).build().unwrap();
    let mut grads = model.loss(1).unwrap().backward().unwrap();
    grads.insert(&model.vars[0], Tensor::new(&[f32::NAN; 37], &gpu).unwrap());
    let before = model.values();
    optimizer.step(&grads).unwrap();
    assert_eq!(model.values(), before);
    let error = optimizer.backward_step(&model.loss(2).unwrap()).unwrap_err();
    assert!(error.to_string().contains("`bias`"), "{error}");
    assert_eq!(model.values(), before);
    optimizer.backward_step(&model.loss(2).unwrap()).unwrap();
    assert_ne!(model.values(), before);
}

#[test]
fn anchors_of_a_mapped_checkpoint_are_used() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let weight = values((6, 5), 3).to_dtype(DType::BF16).unwrap();
    let tensors = [("w".to_owned(), weight)].into_iter().collect();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let run = |device: &Device| {
        let params = Params::open(&file, device).unwrap();
        params.var_builder().get((6, 5), "w").unwrap();
        let param = params.get("w").unwrap();
        assert!(matches!(param.anchor(), Anchor::Pretrained(anchor) if anchor.is_mapped()));
        let constraint = Ftp { k: 0.5, ..Ftp::default() };
        let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.05), constraint).unwrap();
        for _ in 0..4 {
            let loss = param.var().to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap();
            optimizer.backward_step(&loss).unwrap();
        }
        flat(param.var())
    };
    agree("mapped anchors", &run(&gpu), &run(&Device::Cpu), 1.6e-2);
}

#[test]
fn averages_and_interpolations_agree() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let run = |device: &Device| {
            let model = Model::new(dtype, device);
            let mut ema = Ema::new(&model.params, 0.75).unwrap();
            let double =
                || model.vars.iter().for_each(|var| var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap());
            double();
            ema.update().unwrap();
            let live = model.values();
            let averaged = ema.apply().unwrap();
            let average = model.values();
            averaged.restore().unwrap();
            assert_eq!(model.values(), live);
            let saved = ema.state().unwrap();
            double();
            ema.update().unwrap();
            ema.load_state(&saved).unwrap();
            assert_eq!(ema.state().unwrap(), saved);

            let live = model.values();
            let between = wise(&model.params, 0.25).unwrap();
            let between: Vec<f64> =
                model.params.all().iter().flat_map(|p| flat(&between[p.name()])).collect();
            let mut interpolation = Interpolation::new(&model.params).unwrap();
            interpolation.set(0.25).unwrap();
            assert_eq!(model.values(), between);
            interpolation.restore().unwrap();
            assert_eq!(model.values(), live);
            [average, between].concat()
        };
        // Rounded once, from the same arithmetic: but for a tie at most the last bit differs.
        let limit = if dtype == DType::BF16 { 8e-3 } else { 1e-6 };
        agree(&format!("{dtype:?}"), &run(&gpu), &run(&Device::Cpu), limit);
    }
}
