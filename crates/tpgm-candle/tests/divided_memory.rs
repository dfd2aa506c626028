//! Divided state takes the share of a rank: bytes of the real allocations, on the shapes of ViT-B/16.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::thread;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::distributed::{Communicator, InProcess};
use tpgm_candle::{AdamW, Ftp, Param, Params, RobustOptimizer};

/// The system's allocator, counting what each thread holds, now and at most.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends still frees.
    let live = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        live.get()
    });
    let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.unwrap_or(0))));
}

// SAFETY: every call is the system allocator's own; counting touches no memory but cells of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above, for `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above, for `GlobalAlloc::realloc`.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above, for `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// timm's `vit_base_patch16_224`.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let width = 768;
    let mut shapes =
        vec![("cls_token".to_owned(), vec![1, 1, width]), ("pos_embed".to_owned(), vec![1, 197, width])];
    let mut affine = |name: String, shape: Vec<usize>| {
        shapes.push((format!("{name}.bias"), vec![shape[0]]));
        shapes.push((format!("{name}.weight"), shape));
    };
    affine("patch_embed.proj".to_owned(), vec![width, 3, 16, 16]);
    for i in 0..12 {
        affine(format!("blocks.{i}.norm1"), vec![width]);
        affine(format!("blocks.{i}.attn.qkv"), vec![3 * width, width]);
        affine(format!("blocks.{i}.attn.proj"), vec![width, width]);
        affine(format!("blocks.{i}.norm2"), vec![width]);
        affine(format!("blocks.{i}.mlp.fc1"), vec![4 * width, width]);
        affine(format!("blocks.{i}.mlp.fc2"), vec![width, 4 * width]);
    }
    affine("norm".to_owned(), vec![width]);
    affine("head".to_owned(), vec![1000, width]);
    shapes
}

/// Bytes of a rank beside weights and gradients.
#[derive(Debug, Clone, Copy)]
struct Bytes {
    /// Held from step to step: anchors, moments, displacements, scalars.
    state: isize,
    /// At most while it takes a step.
    peak: isize,
}

fn live() -> isize {
    LIVE.with(Cell::get)
}

/// Makes a model and an optimizer on this thread, and takes two steps.
fn measure(communicator: Option<InProcess>) -> Bytes {
    let zeros = |shape: &Vec<usize>| Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu).unwrap();
    let shapes = shapes();
    let vars: Vec<Var> = shapes.iter().map(|(_, shape)| Var::from_tensor(&zeros(shape)).unwrap()).collect();
    let mut grads: GradStore = vars[0].sum_all().unwrap().backward().unwrap();
    vars.iter().zip(&shapes).for_each(|(var, (_, shape))| drop(grads.insert(var, zeros(shape))));
    let before = live();

    // Anchors in memory, as those of a GPU: those that an optimizer does not keep end with the parameters.
    let params = shapes.iter().zip(&vars);
    let params = params.map(|((name, _), var)| Param::anchored_here(name, var.clone()).unwrap());
    let params = Params::from_params(params).unwrap();
    let builder = RobustOptimizer::builder(&params).rule(AdamW::default()).constraint(Ftp::default());
    let mut optimizer = match communicator {
        Some(communicator) => builder.communicator(Arc::new(communicator)).divide_state().build().unwrap(),
        None => builder.build().unwrap(),
    };
    drop(params);
    PEAK.with(|peak| peak.set(live()));
    (0..2).for_each(|_| assert!(optimizer.step(&grads).unwrap().taken));
    Bytes { state: live() - before, peak: PEAK.with(Cell::get) - before }
}

/// One test, so that its memory is there once.
#[test]
fn a_rank_holds_its_share_of_the_state_of_vit_b_16() {
    let numel: usize = shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!((shapes().len(), numel), (152, 86_567_656));
    let whole = thread::spawn(|| measure(None)).join().unwrap();
    // An anchor, two moments and a displacement of f32.
    assert!(whole.state > 16 * numel as isize && whole.state < 17 * numel as isize, "{whole:?}");
    let megabytes = |bytes: isize| bytes as f64 / 1e6;
    println!("undivided: {:.1} MB, at most {:.1} MB", megabytes(whole.state), megabytes(whole.peak));
    for ranks in [2, 3, 4] {
        let group = InProcess::group(ranks).into_iter();
        let threads: Vec<_> = group.map(|end| thread::spawn(|| (end.rank(), measure(Some(end))))).collect();
        let share = whole.state as f64 / ranks as f64;
        for thread in threads {
            let (rank, bytes) = thread.join().unwrap();
            let (state, peak) = (bytes.state as f64 / share, bytes.peak as f64 / share);
            println!(
                "{ranks} ranks, rank {rank}: {:.1} MB, at most {:.1} MB: {state:.3} and {peak:.3} of undivided / ranks",
                megabytes(bytes.state),
                megabytes(bytes.peak)
            );
            assert!(state <= 1.1, "{ranks} ranks, rank {rank}: {bytes:?} of {whole:?}");
            // A copy of weights and state of the largest block comes on top while a step is tried: 64 pieces of 16384 elements.
            let largest = 16 * 64 * 16384;
            assert!(bytes.peak <= bytes.state + largest + (1 << 20), "{ranks} ranks, rank {rank}: {bytes:?}");
            assert!(peak <= 1.1, "{ranks} ranks, rank {rank}: {bytes:?} of {whole:?}");
        }
    }
}
