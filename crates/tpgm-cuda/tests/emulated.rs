//! The kernels on the host, through the suite that every backend runs. `cargo xtask emulate` builds them and names the
//! library in `TPGM_EMULATOR`; without it these tests say that they do nothing.
#![cfg(feature = "emulated")]
#![allow(clippy::print_stderr, clippy::unwrap_used)]

mod common;
mod layers;

use tpgm_cuda::{Emulator, Gpu, Reports};

fn backend() -> Option<Gpu<Emulator>> {
    if std::env::var_os("TPGM_EMULATOR").is_none() {
        eprintln!("skipped: TPGM_EMULATOR is not set; `cargo xtask emulate` runs this");
        return None;
    }
    Some(Gpu::on(Emulator::from_env().unwrap()).reports(Reports::AtOnce))
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
