//! The CPU backend, run through the conformance suite.
#![allow(clippy::unwrap_used)]

mod suite {
    tpgm_core::conformance_suite!(tpgm_core::Cpu::new());
}

/// The same kernels without the CPU's own vector instructions.
mod baseline {
    tpgm_core::conformance_suite!(tpgm_core::Cpu::new().baseline());
}

// Found by reading: the pass that only projects took norms of an anchor that nobody had loaded.
#[test]
fn a_deferred_projection_leaves_tensors_without_gradients_alone() {
    use tpgm_core::{Cpu, DType, Optimizer, ParamSet, Projection, Sgd, StepOptions, TensorIo, Tpgm};

    let set = ParamSet::builder().tensor("w", [2, 3], DType::F32).build().unwrap();
    let mut optimizer = Optimizer::new(Cpu::new(), &set, Sgd::default(), Tpgm::default()).unwrap();
    let (mut weight, anchor) = ([0.5f32; 6], [0.25f32; 6]);
    let options = StepOptions { projection: Projection::Defer, ..StepOptions::default() };
    optimizer.step(&mut [TensorIo::new(&mut weight).anchor(&anchor)], &options).unwrap();
    assert_eq!(weight, [0.5; 6]);
}
