//! Saving and loading take no copy of the model. One test, because it counts the memory of the whole process.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::{Anchor, Checkpoint, Checkpointer, Param, Params, TrainState};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that `run` held beyond those held before.
fn peak<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let out = run();
    (out, PEAK.load(Ordering::Relaxed) - before)
}

#[test]
fn weights_are_not_copied() {
    const TENSORS: usize = 16;
    const BYTES: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let param = |i: usize| {
        let values = Tensor::full(i as f32, BYTES / 4, &Device::Cpu).unwrap();
        Param::new(format!("w{i}"), Var::from_tensor(&values).unwrap(), Anchor::None)
    };
    let params = Params::from_params((0..TENSORS).map(param)).unwrap();
    let checkpoints = Checkpointer::new(dir.path());

    let save = || checkpoints.save(&TrainState::new(1).weights(params.tensors()).unwrap()).unwrap();
    let (path, saving) = peak(save);
    assert!(saving < 1 << 17, "saving {} MiB took {} KiB", (TENSORS * BYTES) >> 20, saving >> 10);

    for param in params.all() {
        param.var().set(&Tensor::zeros(BYTES / 4, DType::F32, &Device::Cpu).unwrap()).unwrap();
    }
    let ((), loading) = peak(|| Checkpoint::load(&path).unwrap().restore(&params).unwrap());
    // One tensor as bytes and as elements, and the block that is checksummed.
    assert!(loading < 2 * BYTES + (1 << 19), "loading took {} KiB", loading >> 10);
    let value =
        |i: usize| params.get(&format!("w{i}")).unwrap().var().to_vec1::<f32>().unwrap()[BYTES / 4 - 1];
    assert!((0..TENSORS).all(|i| value(i) == i as f32));
}
