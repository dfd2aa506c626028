//! Steps and projections copy neither weights nor gradients, losses no features.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::nn::losses::{contrastive, energy_gap};
use tpgm_candle::nn::matmul_transposed;
use tpgm_candle::{AdamW, Constraint, Ftp, Param, Params, RobustOptimizer, TpgmConfig};

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

/// One test, so that nothing else allocates at the same time.
#[test]
fn nothing_large_is_copied() {
    assert!(allocated(|| vec![0u8; 4096]) >= 4096, "the allocator does not count");
    a_step_allocates_nothing_of_parameter_size();
    // On one thread: a thread's first share of a product takes buffers that stay.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    one.install(losses_copy_no_features);
}

fn a_step_allocates_nothing_of_parameter_size() {
    const NUMEL: usize = 1 << 18;
    for dtype in [DType::F32, DType::BF16] {
        let ones = Tensor::ones(NUMEL, dtype, &Device::Cpu).unwrap();
        let vars: Vec<Var> = (0..4).map(|_| Var::from_tensor(&ones).unwrap()).collect();
        let params = vars.iter().enumerate();
        let params = params.map(|(i, var)| Param::anchored_here(format!("{i}"), var.clone()).unwrap());
        let params = Params::from_params(params).unwrap();
        let mut grads = ones.sum_all().unwrap().backward().unwrap();
        vars.iter().for_each(|var| drop(grads.insert(var, ones.copy().unwrap())));
        for constraint in [Constraint::None, Ftp::default().into(), TpgmConfig::default().into()] {
            for accumulate in [1, 2] {
                let mut opt = RobustOptimizer::builder(&params)
                    .rule(AdamW::default())
                    .constraint(constraint)
                    .accumulate(accumulate)
                    .threads(2)
                    .build()
                    .unwrap();
                let mut step = || (0..accumulate).for_each(|_| assert!(opt.step(&grads).is_ok()));
                step();
                // Room for lists of pointers; one copy of one tensor would be half a megabyte or more.
                let bytes = allocated(step);
                assert!(bytes < NUMEL / 8, "{constraint:?}, {accumulate} batches, {dtype:?}: {bytes} bytes");
                if let Ok(mut tpgm) = opt.tpgm() {
                    tpgm.project().unwrap();
                    let bytes = allocated(|| tpgm.project().unwrap());
                    assert!(bytes < NUMEL / 8, "projection, {dtype:?}: {bytes} bytes");
                }
            }
        }
    }
}

/// Features are 8 MiB, everything else is small. Forward and backward take what they take for the product of features alone.
fn losses_copy_no_features() {
    const SHAPE: (usize, usize) = (16, 1 << 17);
    const FEATURES: usize = 4 * SHAPE.0 * SHAPE.1;
    let features = || Var::from_tensor(&Tensor::full(1e-3f32, SHAPE, &Device::Cpu).unwrap()).unwrap();
    let (image, text, scale) = (features(), features(), Tensor::new(10f32, &Device::Cpu).unwrap());
    let anchor = Tensor::zeros(SHAPE, DType::F32, &Device::Cpu).unwrap();
    let product = |image: &Tensor, text: &Tensor| matmul_transposed(image, text).unwrap().sum_all().unwrap();
    let (pairs, pairs_alone) =
        (|| contrastive(&image, &text, &scale, 0.1).unwrap().loss, || product(&image, &text));
    // The difference is a factor of the product.
    let (gap, gap_alone) = (
        || energy_gap(&image, &anchor, &text, 10.0).unwrap(),
        || product(&(image.as_tensor() - &anchor).unwrap(), &text.detach()),
    );
    for (name, loss, alone, forward) in [
        ("contrastive", &pairs as &dyn Fn() -> Tensor, &pairs_alone as &dyn Fn() -> Tensor, 0),
        ("energy gap", &gap, &gap_alone, 1),
    ] {
        loss().backward().unwrap(); // buffers of products
        let bytes = allocated(loss);
        assert!(bytes < forward * FEATURES + FEATURES / 8, "{name}: {bytes} bytes");
        let [bytes, alone] = [loss(), alone()].map(|loss| allocated(|| loss.backward().unwrap()));
        assert!(
            alone > FEATURES && bytes < alone + FEATURES / 8,
            "{name}, backward: {bytes} and {alone} bytes"
        );
    }
}
