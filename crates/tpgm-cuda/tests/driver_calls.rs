//! What a step asks of the driver, counted by the stand-in for it: `cargo xtask emulate --driver`. With NVIDIA's driver, or
//! without one, these tests say that they do nothing.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

use std::ffi::{CString, c_char};

use tpgm_core::{AdamW, Backend, Buffer, DType, Ftp, Optimizer, ParamSet, StepOptions, TensorIo};
use tpgm_cuda::{Cuda, Reports};

/// How often the calling thread has called a function of the driver.
struct Calls {
    count: unsafe extern "C" fn(*const c_char) -> u64,
}

impl Calls {
    /// `None` with another driver.
    fn of_the_stand_in() -> Option<Self> {
        // SAFETY: the driver's library runs initializers that every CUDA program runs.
        let library = unsafe { libloading::Library::new("libcuda.so.1") }.ok()?;
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        // SAFETY: the type is that of the declaration in `kernels/emulator/driver/cuda.h`.
        let count = unsafe { library.get(b"tpgm_driver_calls") }.ok()?;
        Some(Self { count: *count })
    }

    fn of(&self, function: &str) -> u64 {
        let name = CString::new(function).unwrap();
        // SAFETY: the name ends with 0.
        unsafe { (self.count)(name.as_ptr()) }
    }
}

/// A step on the backend's own stream: two launches, the copy of its outcome and the event behind that. Nothing else, since
/// every wait and record is work for the device between the kernels.
#[test]
fn calls_of_a_step() {
    const STEPS: u64 = 10;
    let expected = [
        ("cuLaunchKernel", 2),
        ("cuMemcpyDtoHAsync_v2", 1),
        ("cuEventRecord", 1),
        ("cuMemcpyHtoDAsync_v2", 0),
        ("cuMemcpyDtoDAsync_v2", 0),
        ("cuMemsetD8Async", 0),
        ("cuMemAllocAsync", 0),
        ("cuMemFreeAsync", 0),
        ("cuMemHostAlloc", 0),
        ("cuEventCreate", 0),
        ("cuEventDestroy_v2", 0),
        ("cuStreamWaitEvent", 0),
        ("cuStreamSynchronize", 0),
        ("cuCtxSynchronize", 0),
        ("cuModuleLoadData", 0),
    ];
    let Some(calls) = Calls::of_the_stand_in() else {
        eprintln!(
            "skipped: only the stand-in for the driver counts calls; `cargo xtask emulate --driver` runs this"
        );
        return;
    };
    let cuda = Cuda::new(0).unwrap().reports(Reports::Late);
    let set =
        ParamSet::builder().tensor("w", [24, 40], DType::F32).tensor("b", [40], DType::F32).build().unwrap();
    let upload = |len: usize| cuda.upload(&Buffer::from_f64(DType::F32, &vec![0.25; len])).unwrap();
    let (mut weights, grads, anchors) =
        ([upload(960), upload(40)], [upload(960), upload(40)], [upload(960), upload(40)]);
    let mut optimizer = Optimizer::new(cuda.clone(), &set, AdamW::default(), Ftp::default()).unwrap();
    let mut step = || {
        let mut io: Vec<TensorIo<'_, Cuda>> = weights
            .iter_mut()
            .zip(grads.iter().zip(&anchors))
            .map(|(weight, (grad, anchor))| TensorIo {
                weight: Cuda::as_mut(weight),
                grad: Some(Cuda::as_ref(grad)),
                anchor: Some(Cuda::as_ref(anchor)),
                variance: None,
            })
            .collect();
        optimizer.step(&mut io, &StepOptions::lr(1e-3)).unwrap();
    };
    // The first steps load kernels and send tables.
    step();
    step();
    let before = expected.map(|(function, _)| calls.of(function));
    (0..STEPS).for_each(|_| step());
    let counted: Vec<(&str, u64)> = expected
        .iter()
        .zip(before)
        .map(|((function, _), before)| (*function, calls.of(function) - before))
        .collect();
    let expected = expected.map(|(function, count)| (function, count * STEPS));
    assert_eq!(counted, expected, "calls of {STEPS} steps");
}
