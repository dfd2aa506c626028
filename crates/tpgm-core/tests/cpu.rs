//! The CPU backend, run through the conformance suite.

mod suite {
    tpgm_core::conformance_suite!(tpgm_core::Cpu::new());
}

/// The same kernels without the CPU's own vector instructions.
mod baseline {
    tpgm_core::conformance_suite!(tpgm_core::Cpu::new().baseline());
}
