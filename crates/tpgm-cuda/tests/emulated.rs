//! The kernels on the host, through the suite that every backend runs. `cargo xtask emulate` builds them and sets
//! `TPGM_EMULATOR`.
#![cfg(feature = "emulated")]

use tpgm_cuda::{Emulator, Gpu, Reports};

fn backend() -> Gpu<Emulator> {
    Gpu::on(Emulator::from_env().expect("the emulator")).reports(Reports::AtOnce)
}

tpgm_core::conformance_suite!(backend());

#[test]
fn golden_cases_pass() {
    use tpgm_core::testing::golden::{BackendSubject, run_folder};

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tpgm-core/tests/golden");
    let subject = BackendSubject::new("emulated", backend());
    let report = run_folder(folder.as_ref(), &subject, None).expect("the golden folder");
    assert!(report.passed() && report.cases.len() >= 50, "{report}");
}
