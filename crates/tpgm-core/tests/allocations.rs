//! Steps and projection updates on the CPU allocate nothing of parameter size after the first.
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Problem, methods, set, tpgm};
use tpgm_core::plan::CHUNK;
use tpgm_core::{Cpu, DType, Norm, Optimizer, Projector, StepOptions};

/// The system's allocator, counting every byte that is asked for on any thread.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own; counting touches no memory but an atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above, for `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(size, Ordering::Relaxed);
        // SAFETY: as above, for `GlobalAlloc::realloc`.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above, for `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes allocated by `work`, on all threads.
fn allocated<R>(work: impl FnOnce() -> R) -> usize {
    let before = ALLOCATED.load(Ordering::Relaxed);
    work();
    ALLOCATED.load(Ordering::Relaxed) - before
}

/// One test, so that no other allocates at the same time.
#[test]
fn nothing_of_parameter_size_is_allocated_after_the_first_call() {
    assert!(allocated(|| vec![0u8; 4096]) >= 4096, "the allocator does not count");
    let cpu = Cpu::with_threads(2).unwrap();
    let shapes = [vec![1000, 67], vec![2, 2 * CHUNK + 515], vec![300], vec![]];
    for dtype in [DType::F32, DType::BF16] {
        let set = set(&shapes, dtype);
        let allowed = set.numel() * dtype.size() / 100;
        for (rule, constraint) in methods() {
            let mut problem = Problem::new(&set, 3, 1);
            let mut optimizer = Optimizer::new(cpu.clone(), &set, rule, constraint).unwrap();
            for step in 0..3 {
                let options = StepOptions { max_grad_norm: Some(1.0), ..StepOptions::default() };
                let mut io = problem.io(step);
                let bytes = allocated(|| optimizer.step(&mut io, &options).unwrap());
                assert!(
                    step == 0 || bytes < allowed,
                    "{bytes} B: {rule:?} under {constraint:?}, {dtype}, step {step}"
                );
            }
        }
        for norm in [Norm::Mars, Norm::L2] {
            let mut problem = Problem::new(&set, 1, 2);
            let mut projector = Projector::new(cpu.clone(), &set, tpgm(norm)).unwrap();
            for round in 0..2 {
                let mut io = problem.io(0);
                let begin = allocated(|| projector.begin(&mut io).unwrap());
                let apply = allocated(|| projector.apply(&mut io).unwrap());
                let update = allocated(|| projector.update(&mut io).unwrap());
                let finish = allocated(|| projector.finish(&mut io).unwrap());
                let project = allocated(|| projector.project(&mut io).unwrap());
                let bytes = [begin, apply, update, finish, project];
                // The first update makes room for what later ones use again.
                assert!(
                    round == 0 || bytes.iter().all(|&bytes| bytes < allowed),
                    "{bytes:?} B: {norm:?}, {dtype}"
                );
            }
        }
    }
}
