//! What only a real GPU, or two devices, can show.

use candle_core::cuda_backend::cudarc::driver::result;
use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;
use candle_core::{DType, Device, DeviceLocation, Tensor, Var};
use tpgm_candle::{
    AdamW, Anchor, AuditPolicy, Ema, Ftp, Param, Params, RobustOptimizer, Tpgm, TpgmConfig, engine,
    keep_freed_memory, optim,
};

use crate::{Model, device};

/// More bytes than the other tests use at a time.
const KEPT: usize = 128 << 20;

/// The GPU, unless the CPU stands in its place.
fn gpu() -> Option<Device> {
    let device = device()?;
    if device.is_cuda() {
        return Some(device);
    }
    println!("skipped: only a real GPU can show this");
    None
}

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
            let optim::Error::Engine(engine::Error::Devices { tensor, device, first: name, expected }) =
                error
            else {
                panic!("{error}")
            };
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
    let optim::Error::Engine(engine::Error::OperandDevice { tensor, what: "gradient", expected, got }) =
        error
    else {
        panic!("{error}")
    };
    assert_eq!(tensor, "a");
    assert!(matches!((expected, got), (DeviceLocation::Cuda { .. }, DeviceLocation::Cpu)));
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
fn a_device_keeps_freed_memory() {
    let Some(gpu) = gpu() else { return };
    keep_freed_memory(&gpu).unwrap();
    drop(Tensor::zeros(KEPT / 4, DType::F32, &gpu).unwrap());
    gpu.synchronize().unwrap(); // here the pool would give everything back
    let stream = gpu.as_cuda_device().unwrap().cuda_stream();
    let mut reserved = 0u64;
    // SAFETY: the context is alive, and this attribute of its device's pool is 64 bits without a sign.
    unsafe {
        let pool = result::device::get_mem_pool(stream.context().cu_device()).unwrap();
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut reserved).cast()).unwrap();
    }
    assert!(reserved >= KEPT as u64, "{reserved} bytes");
}
