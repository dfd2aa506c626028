//! What is bound: strided, half-precision, mapped and missing operands, averages and interpolations.

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::weight_space::{Interpolation, wise};
use tpgm_candle::{
    AdamW, Anchor, AuditPolicy, Ema, Error, Ftp, OptimizerBuilder, Param, Params, RobustOptimizer,
    keep_freed_memory,
};

use crate::{Model, agree, device, flat, values};

/// Has a GPU say at once what it refused. The CPU does so anyway.
fn at_once(builder: OptimizerBuilder) -> OptimizerBuilder {
    #[cfg(feature = "cuda")]
    let builder = builder.reports(tpgm_candle::Reports::AtOnce);
    builder
}

#[test]
fn strided_gradients_and_those_of_other_types_are_read() {
    let Some(device) = device() else { return };
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
    agree("strided gradients", &device, &step(&device), &step(&Device::Cpu), 1e-9);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let Some(device) = device() else { return };
    for accumulate in [1, 2] {
        let model = Model::new(DType::F32, &device);
        let builder = RobustOptimizer::builder(&model.params).constraint(Ftp::default());
        let builder = builder.accumulate(accumulate).audit(AuditPolicy::Off);
        let mut optimizer = at_once(builder).build().unwrap();
        let mut grads = model.loss(1).unwrap().backward().unwrap();
        let mut bad = vec![0.5f32; 33 * 17];
        bad[560] = f32::INFINITY;
        grads.insert(&model.vars[5], Tensor::from_vec(bad, (33, 17), &device).unwrap());
        let before = model.values();
        let error = Error::from(optimizer.step(&grads).unwrap_err());
        let core = tpgm_candle::core::Error::NonFiniteGradient { tensor: "weight".to_owned(), count: 1 };
        assert!(matches!(&error, Error::Core(error) if *error == core), "{error}");
        assert_eq!((model.values(), optimizer.pending_batches()), (before, 0));
    }
}

#[test]
fn anchors_of_a_mapped_checkpoint_are_used() {
    let Some(device) = device() else { return };
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
    agree("mapped anchors", &device, &run(&device), &run(&Device::Cpu), 1.6e-2);
}

#[test]
fn averages_and_interpolations_agree() {
    let Some(device) = device() else { return };
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let run = |device: &Device| {
            let model = Model::new(dtype, device);
            let mut ema = Ema::new(&model.params, 0.75).unwrap();
            // candle's products of nothing are the variable itself, to which it cannot be set.
            let vars = || model.vars.iter().filter(|var| var.elem_count() > 0);
            let double = || vars().for_each(|var| var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap());
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
        agree(&format!("{dtype:?}"), &device, &run(&device), &run(&Device::Cpu), limit);
    }
}

#[test]
fn only_cuda_devices_keep_freed_memory() {
    let error = keep_freed_memory(&Device::Cpu).unwrap_err();
    assert!(
        matches!(error, tpgm_candle::memory::Error::NotCuda { device: candle_core::DeviceLocation::Cpu, .. }),
        "{error}"
    );
    assert!(error.to_string().starts_with("`keep_freed_memory` is for CUDA devices, but got Cpu"), "{error}");
}
