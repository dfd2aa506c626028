//! The kernels on a GPU, through the suite that every backend runs. Without one these tests say why they do nothing, or fail
//! if `TPGM_REQUIRE_GPU` is set.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod common;
mod layers;

use std::thread;

use cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use cudarc::driver::{CudaContext, CudaSlice};
use tpgm_core::{
    AdamW, Backend, Buffer, DType, Error, Ftp, Optimizer, ParamSet, StepOptions, StepReport, TensorIo,
};
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

    mod layers {
        use super::backend;
        crate::layers_suite!(backend());
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = Cuda::new(4096).unwrap_err();
    assert!(matches!(&error, Error::Device { device, .. } if device == "CUDA device 4096"), "{error}");
}

const ELEMENTS: usize = 64 * 96;

/// Evenly spread numbers in `[-0.5, 0.5)`.
fn values(seed: u64) -> Vec<f64> {
    (0..ELEMENTS as u64).map(|i| ((i * 7919 + seed) % 1000) as f64 / 1000.0 - 0.5).collect()
}

/// A gradient with two elements that are not finite.
fn bad_values() -> Vec<f64> {
    let mut values = values(2);
    (values[17], values[4000]) = (f64::NAN, f64::INFINITY);
    values
}

fn optimizer(cuda: &Cuda) -> Optimizer<Cuda> {
    let set = ParamSet::builder().tensor("w", [64, 96], DType::F32).build().unwrap();
    Optimizer::new(cuda.clone(), &set, AdamW::default(), Ftp::default()).unwrap()
}

/// An optimizer and its operands in memory of the backend.
struct Training {
    cuda: Cuda,
    optimizer: Optimizer<Cuda>,
    weight: tpgm_cuda::Buffer<tpgm_cuda::CudaDevice>,
    grads: [tpgm_cuda::Buffer<tpgm_cuda::CudaDevice>; 2],
    anchor: tpgm_cuda::Buffer<tpgm_cuda::CudaDevice>,
}

impl Training {
    fn new(cuda: &Cuda) -> Self {
        let upload = |values: &[f64]| cuda.upload(&Buffer::from_f64(DType::F32, values)).unwrap();
        Self {
            cuda: cuda.clone(),
            optimizer: optimizer(cuda),
            weight: upload(&values(1)),
            grads: [upload(&values(2)), upload(&bad_values())],
            anchor: upload(&values(3)),
        }
    }

    fn call<R>(
        &mut self,
        good: bool,
        call: impl FnOnce(&mut Optimizer<Cuda>, &mut [TensorIo<'_, Cuda>]) -> R,
    ) -> R {
        let io = TensorIo::new(self.weight.view_mut())
            .grad(self.grads[usize::from(!good)].view())
            .anchor(self.anchor.view());
        call(&mut self.optimizer, &mut [io])
    }

    fn step(&mut self, lr: f64) -> tpgm_core::Result<StepReport> {
        self.call(true, |optimizer, io| optimizer.step(io, &StepOptions::lr(lr)))
    }

    fn prepare(&mut self, lr: f64, good: bool) {
        self.call(good, |optimizer, io| optimizer.prepare_step(io, &StepOptions::lr(lr))).unwrap();
    }

    fn weights(&self) -> Vec<f64> {
        self.cuda.download(&self.weight).unwrap().to_f64()
    }
}

const SCHEDULE: [f64; 5] = [1e-3, 2e-3, 3e-3, 1e-3, 5e-4];

fn refused() -> tpgm_core::Result<StepReport> {
    Err(Error::NonFiniteGradient { tensor: "w".into(), count: 1 })
}

/// A step can be captured in a CUDA graph: what changes from step to step is in device memory, so that replays with another
/// learning rate are the steps of a schedule.
#[test]
fn a_captured_step_replays() {
    let Some(cuda) = backend() else { return };
    let run = |captured: bool| {
        let mut training = Training::new(&cuda.clone().reports(Reports::Late));
        // Outcomes that nobody has looked at when the capture starts.
        training.step(1e-3).unwrap();
        training.step(2e-3).unwrap();
        if captured {
            training.prepare(1e-3, true);
            let graph = cuda.capture(|| training.step(1e-3).map(drop)).unwrap();
            for lr in SCHEDULE {
                training.prepare(lr, true);
                // SAFETY: `training` has all memory.
                unsafe { graph.replay() }.unwrap();
            }
            assert_eq!(training.optimizer.outcome(), Ok(StepReport::default()));
        } else {
            for lr in SCHEDULE {
                training.step(lr).unwrap();
            }
        }
        (training.weights(), training.optimizer.scalars().unwrap())
    };
    assert_eq!(run(true), run(false));
}

/// The caller's own graph, without a step before, by the strictest rules of a thread's own.
#[test]
fn a_step_can_be_part_of_any_graph() {
    let Some(cuda) = backend() else { return };
    let stream = cuda.device().stream().clone();
    let mut expected = Training::new(&cuda);
    for lr in SCHEDULE {
        expected.step(lr).unwrap();
    }

    let mut training = Training::new(&cuda);
    training.prepare(SCHEDULE[0], true);
    stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    assert_eq!(training.step(SCHEDULE[0]), Ok(StepReport::default()), "captured, not taken");
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    assert_eq!(training.weights(), Buffer::from_f64(DType::F32, &values(1)).to_f64());
    for lr in SCHEDULE {
        training.prepare(lr, true);
        graph.launch().unwrap();
    }
    assert_eq!(training.weights(), expected.weights());
    // And ordinary steps go on from there.
    assert_eq!(training.step(1e-3), expected.step(1e-3));
    assert_eq!(training.weights(), expected.weights());
}

/// A replay whose gradient is not finite changes nothing, and says so when asked.
#[test]
fn a_refused_replay_is_reported_on_demand() {
    let Some(cuda) = backend() else { return };
    let mut training = Training::new(&cuda);
    training.prepare(1e-3, true);
    let graph = cuda.capture(|| training.step(1e-3).map(drop)).unwrap();
    // SAFETY: `training` has all memory.
    let replay = || unsafe { graph.replay() }.unwrap();

    replay();
    assert_eq!(training.optimizer.outcome(), Ok(StepReport::default()));
    let before = (training.weights(), training.optimizer.scalars().unwrap());
    training.prepare(1e-3, false);
    for _ in 0..2 {
        replay();
        assert_eq!(training.optimizer.outcome(), refused());
    }
    assert_eq!((training.weights(), training.optimizer.scalars().unwrap()), before);

    training.prepare(1e-3, true);
    replay();
    assert_eq!(training.optimizer.outcome(), Ok(StepReport::default()));
    assert_ne!(training.weights(), before.0);
    assert_eq!(training.optimizer.scalars().unwrap()[0].step, 2.0);
}

/// A graph keeps the memory of the optimizer, also when that is dropped and others ask for memory.
#[test]
fn a_graph_outlives_its_optimizer() {
    let Some(cuda) = backend() else { return };
    let run = |dropped: bool| {
        let mut training = Training::new(&cuda);
        training.prepare(1e-3, true);
        let graph = cuda.capture(|| training.step(1e-3).map(drop)).unwrap();
        let Training { optimizer, weight, grads, anchor, .. } = training;
        let mut rest = Some((optimizer, grads, anchor));
        let mut others = Vec::new();
        if dropped {
            drop(rest.take());
            cuda.device().stream().synchronize().unwrap();
            // Twice what was dropped, in all its sizes, with numbers that would be seen.
            let junk = |len| cuda.upload(&Buffer::from_f64(DType::F32, &vec![1e9; len])).unwrap();
            others = [ELEMENTS, 88, 16, 46, 34, 18, 10, 4, 1].repeat(4).into_iter().map(junk).collect();
        }
        for _ in 0..3 {
            // SAFETY: the weights are there, and the rest is the backend's.
            unsafe { graph.replay() }.unwrap();
        }
        let weights = cuda.download(&weight).unwrap().to_f64();
        drop((graph, rest, others));
        weights
    };
    assert_eq!(run(true), run(false));
}

/// What fails in a capture ends it, and the stream goes on as if it had not been.
#[test]
fn a_capture_that_fails_is_an_error_and_no_more() {
    let Some(cuda) = backend() else { return };
    let mut training = Training::new(&cuda);
    let error = cuda.capture(|| training.step(1e-3).map(drop)).err().unwrap().to_string();
    assert!(error.contains("`prepare_step`"), "{error}");
    let error = cuda.capture(|| training.optimizer.scalars().map(drop)).err().unwrap().to_string();
    assert!(error.contains("captured"), "{error}");
    let error = cuda.capture(|| cuda.zeros(DType::F32, 5).map(drop)).err().unwrap().to_string();
    assert!(error.contains("captured"), "{error}");
    let error = cuda.capture(|| training.optimizer.outcome().map(drop)).err().unwrap().to_string();
    assert!(error.contains("captured"), "{error}");
    let mut expected = Training::new(&cuda);
    assert_eq!(training.step(1e-3), expected.step(1e-3));
    assert_eq!(training.weights(), expected.weights());
}

/// An optimizer that is dropped right behind a step does not take the memory from under it.
#[test]
fn optimizers_are_dropped_behind_their_steps() {
    let Some(cuda) = backend() else { return };
    let mut expected = Training::new(&cuda);
    expected.step(1e-3).unwrap();
    for _ in 0..8 {
        let mut training = Training::new(&cuda.clone().reports(Reports::Late));
        training.step(1e-3).unwrap();
        let Training { weight, optimizer, .. } = training;
        drop(optimizer);
        assert_eq!(cuda.download(&weight).unwrap().to_f64(), expected.weights());
    }
}

/// The operands of a step in slices of cudarc.
struct Slices {
    weight: CudaSlice<f32>,
    grad: CudaSlice<f32>,
    anchor: CudaSlice<f32>,
}

impl Slices {
    fn new(cuda: &Cuda) -> Self {
        let floats = |seed| values(seed).into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let upload = |seed| cuda.device().stream().clone_htod(&floats(seed)).unwrap();
        Self { weight: upload(1), grad: upload(2), anchor: upload(3) }
    }

    fn step(&mut self, cuda: &Cuda, optimizer: &mut Optimizer<Cuda>) -> tpgm_core::Result<StepReport> {
        let (mut weight, grad, anchor) =
            (cuda.lend_mut(&mut self.weight)?, cuda.lend(&self.grad)?, cuda.lend(&self.anchor)?);
        let io = TensorIo::new(&mut weight).grad(&grad).anchor(&anchor);
        optimizer.step(&mut [io], &StepOptions::lr(1e-3))
    }
}

/// cudarc promises that whoever uses a slice on another stream waits for what was queued before: also for our steps.
#[test]
fn other_streams_wait_for_what_was_lent() {
    let Some(cuda) = backend().map(|cuda| cuda.reports(Reports::Late)) else { return };
    let mut expected = Training::new(&cuda);
    expected.step(1e-3).unwrap();
    expected.step(1e-3).unwrap();
    let expected: Vec<f32> = expected.weights().into_iter().map(|x| x as f32).collect();

    let other = cuda.device().stream().context().new_stream().unwrap();
    let (mut slices, mut optimizer) = (Slices::new(&cuda), optimizer(&cuda));
    slices.step(&cuda, &mut optimizer).unwrap();
    slices.step(&cuda, &mut optimizer).unwrap();
    // The other stream overwrites the gradients, and reads the weights.
    other.memset_zeros(&mut slices.grad).unwrap();
    other.memset_zeros(&mut slices.anchor).unwrap();
    other.synchronize().unwrap();
    assert_eq!(other.clone_dtoh(&slices.weight).unwrap(), expected);
    // The next step waits for the other stream, too: without a gradient, the first moment moves the weights on.
    other.memset_zeros(&mut slices.weight).unwrap();
    slices.step(&cuda, &mut optimizer).unwrap();
    let moved = cuda.device().stream().clone_dtoh(&slices.weight).unwrap();
    assert!(moved.iter().all(|x| x.abs() < 0.01), "from zero, and no longer from the weights");
    assert!(moved.iter().any(|&x| x != 0.0));
}

/// Slices may be lent while a graph is captured.
#[test]
fn slices_can_be_lent_in_a_capture() {
    let Some(cuda) = backend() else { return };
    let stream = cuda.device().stream().clone();
    let (mut expected, mut optimizer_of_expected) = (Slices::new(&cuda), optimizer(&cuda));
    let (mut slices, mut optimizer) = (Slices::new(&cuda), optimizer(&cuda));
    slices.step(&cuda, &mut optimizer).unwrap();
    let graph = cuda.capture(|| slices.step(&cuda, &mut optimizer).map(drop)).unwrap();
    for _ in 0..2 {
        // SAFETY: the slices are there.
        unsafe { graph.replay() }.unwrap();
    }
    for _ in 0..3 {
        expected.step(&cuda, &mut optimizer_of_expected).unwrap();
    }
    let read = |slices: &Slices| stream.clone_dtoh(&slices.weight).unwrap();
    assert_eq!(read(&slices), read(&expected));
}

/// The stream that every thread has its own of belongs to the thread that made the backend.
#[test]
fn another_threads_stream_is_not_taken_for_this_threads() {
    if backend().is_none() {
        return;
    }
    let cuda = Cuda::with_stream(CudaContext::new(0).unwrap().per_thread_stream()).unwrap();
    let mut training = Training::new(&cuda.reports(Reports::AtOnce));
    training.step(1e-3).unwrap();
    let mut training = thread::spawn(move || {
        let errors = [
            training.step(1e-3).map(drop),
            training.optimizer.scalars().map(drop),
            training.optimizer.outcome().map(drop),
        ];
        for error in errors {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("another thread") && error.contains("new_cuda_with_stream"), "{error}");
        }
        training
    })
    .join()
    .unwrap();
    training.step(1e-3).unwrap();
    assert_eq!(training.optimizer.scalars().unwrap()[0].step, 2.0);
    thread::spawn(move || drop(training)).join().unwrap();
}

/// An optimizer goes to a thread that has not used CUDA, and loads its kernels there.
#[test]
fn optimizers_may_change_threads() {
    let (Some(cuda), Some(other)) = (backend(), backend()) else { return };
    let (mut training, mut expected) = (Training::new(&cuda), Training::new(&other));
    expected.step(1e-3).unwrap();
    let training = thread::spawn(move || {
        training.step(1e-3).unwrap();
        training
    });
    assert_eq!(training.join().unwrap().weights(), expected.weights());
}
