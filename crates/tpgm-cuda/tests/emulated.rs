//! The kernels on the host, through the suite that every backend runs. `cargo xtask emulate` builds them and sets
//! `TPGM_EMULATOR`.
#![cfg(feature = "emulated")]

use tpgm_cuda::{Emulator, Gpu, Reports};

fn backend() -> Gpu<Emulator> {
    Gpu::on(Emulator::from_env().expect("the emulator")).reports(Reports::AtOnce)
}

tpgm_core::conformance_suite!(backend());
