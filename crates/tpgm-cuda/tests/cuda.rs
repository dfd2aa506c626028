//! The kernels on a GPU, through the suite that every backend runs. Without one these tests say why they do nothing, or fail
//! if `TPGM_REQUIRE_GPU` is set.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod common;

use tpgm_core::{AdamW, Backend, Buffer, DType, Error, Ftp, Optimizer, ParamSet, StepOptions, TensorIo};
use tpgm_cuda::{Cuda, Reports};

fn backend() -> Option<Cuda> {
    take_turn();
    match Cuda::new(0) {
        Ok(cuda) => Some(cuda.reports(Reports::AtOnce)),
        Err(error) => {
            assert!(std::env::var_os("TPGM_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// One test at a time, to the end of its thread: a new context waits for the device, which ends what others capture.
fn take_turn() {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    thread_local! {
        static MINE: std::cell::RefCell<Option<std::sync::MutexGuard<'static, ()>>> = const { std::cell::RefCell::new(None) };
    }
    MINE.with_borrow_mut(|mine| {
        mine.get_or_insert_with(|| TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    });
}

mod suite {
    tpgm_core::conformance_suite!(optional super::backend());
}

mod device {
    use super::{backend, common};
    crate::device_suite!(backend());
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = Cuda::new(4096).unwrap_err();
    assert!(matches!(&error, Error::Device { device, .. } if device == "CUDA device 4096"), "{error}");
}

/// A step can be captured in a CUDA graph: what changes from step to step is in device memory.
#[test]
fn a_captured_step_replays() {
    use cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
    use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

    let Some(cuda) = backend().map(|cuda| cuda.reports(Reports::Late)) else { return };
    let stream = cuda.device().stream().clone();
    let set = ParamSet::builder().tensor("w", [64, 96], DType::F32).build().unwrap();
    let values = |seed: u64| -> Vec<f64> {
        (0..6144u64).map(|i| ((i * 7919 + seed) % 1000) as f64 / 1000.0 - 0.5).collect()
    };
    let upload = |seed| cuda.upload(&Buffer::from_f64(DType::F32, &values(seed))).unwrap();
    let run = |captured: bool| {
        let (mut weight, grad, anchor) = (upload(1), upload(2), upload(3));
        let mut optimizer = Optimizer::new(cuda.clone(), &set, AdamW::default(), Ftp::default()).unwrap();
        let mut call = |lr: f64, prepare: bool| {
            let io = TensorIo {
                weight: Cuda::as_mut(&mut weight),
                grad: Some(Cuda::as_ref(&grad)),
                anchor: Some(Cuda::as_ref(&anchor)),
                variance: None,
            };
            if prepare {
                optimizer.prepare_step(&mut [io], &StepOptions::lr(lr)).unwrap();
            } else {
                optimizer.step(&mut [io], &StepOptions::lr(lr)).unwrap();
            }
        };
        // The first step loads kernels and sends tables.
        call(1e-3, false);
        stream.synchronize().unwrap();
        let schedule = [1e-3, 2e-3, 3e-3, 1e-3, 5e-4];
        if captured {
            stream.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
            call(1e-3, false);
            let graph =
                stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap().unwrap();
            for lr in schedule {
                call(lr, true);
                graph.launch().unwrap();
            }
            stream.synchronize().unwrap();
        } else {
            schedule.into_iter().for_each(|lr| call(lr, false));
        }
        (cuda.download(&weight).unwrap().to_f64(), optimizer.scalars().unwrap())
    };
    assert_eq!(run(true), run(false));
}
