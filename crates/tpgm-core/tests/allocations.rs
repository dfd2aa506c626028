//! Steps and projection updates on the CPU allocate nothing after the first.
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Problem, methods, set, tpgm};
use tpgm_core::plan::CHUNK;
use tpgm_core::{Cpu, DType, Gradients, Norm, Optimizer, Projector, StepOptions};

/// The system's allocator, counting every call that asks for memory on any thread.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own; counting touches no memory but an atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above, for `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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

/// How often `work` asks for memory, on all threads.
fn allocations<R>(work: impl FnOnce() -> R) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// Calls before the counted ones.
const WARM_UP: usize = 2;
/// Counted calls.
const CALLS: usize = 6;

fn shapes() -> [Vec<usize>; 4] {
    [vec![1000, 67], vec![2, 2 * CHUNK + 515], vec![300], vec![]]
}

/// How many of [`CALLS`] steps of every method ask for memory, with what it is.
fn steps(cpu: &Cpu, mut see: impl FnMut(usize, String)) {
    for dtype in [DType::F32, DType::BF16] {
        let set = set(&shapes(), dtype);
        for ((rule, constraint), gradients) in methods()
            .flat_map(|method| [Gradients::Check, Gradients::Trust].map(|gradients| (method, gradients)))
        {
            let mut problem = Problem::new(&set, 3, 1);
            let mut optimizer = Optimizer::new(cpu.clone(), &set, rule, constraint).unwrap();
            let max_grad_norm = (gradients == Gradients::Check).then_some(1.0);
            let options = StepOptions { max_grad_norm, gradients, ..StepOptions::default() };
            let mut count = 0;
            for step in 0..WARM_UP + CALLS {
                let mut io = problem.io(step % 3);
                let allocations = allocations(|| optimizer.step(&mut io, &options).unwrap());
                count += usize::from(step >= WARM_UP && allocations > 0);
            }
            see(count, format!("{rule:?} under {constraint:?}, {dtype}, {gradients:?}"));
        }
    }
}

/// The same of projection updates and projections.
fn projections(cpu: &Cpu, mut see: impl FnMut(usize, String)) {
    for dtype in [DType::F32, DType::BF16] {
        let set = set(&shapes(), dtype);
        for norm in [Norm::Mars, Norm::L2] {
            let mut problem = Problem::new(&set, 1, 2);
            let mut projector = Projector::new(cpu.clone(), &set, tpgm(norm)).unwrap();
            let mut count = 0;
            for call in 0..WARM_UP + CALLS {
                let mut io = problem.io(0);
                let allocations = allocations(|| {
                    projector.begin(&mut io).unwrap();
                    projector.apply(&mut io).unwrap();
                    projector.update(&mut io).unwrap();
                    projector.finish(&mut io).unwrap();
                    projector.project(&mut io).unwrap();
                });
                count += usize::from(call >= WARM_UP && allocations > 0);
            }
            see(count, format!("TPGM with {norm:?}, {dtype}"));
        }
    }
}

/// One test, so that no other allocates at the same time.
#[test]
fn nothing_is_allocated_after_the_first_calls() {
    assert!(allocations(|| vec![0u8; 4096]) >= 1, "the allocator does not count");

    // What a step allocates, it allocates each time. rayon does now and then: its queue takes a new block for every 63 calls
    // into the pool from outside, and a thread that steals work for the first time is registered.
    let (mut total, mut calls) = (0, 0);
    let mut see = |count: usize, what: String| {
        assert!(count <= 1, "{count} of {CALLS} calls: {what}");
        total += count;
        calls += CALLS;
    };

    // On a thread of the pool, as in a program that trains there.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        steps(&Cpu::new(), &mut see);
        projections(&Cpu::new(), &mut see);
    });
    // From outside.
    steps(&Cpu::with_threads(2).unwrap(), &mut see);
    assert!(total <= 1 + calls / 32, "{total} of {calls} calls");
}
