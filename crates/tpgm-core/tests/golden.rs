//! The golden cases through every implementation.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use tpgm_core::Cpu;
use tpgm_core::testing::golden::{BackendSubject, OracleSubject, Subject, run_folder};

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect()
}

#[track_caller]
fn expect_all_pass(subject: &dyn Subject) {
    let report = run_folder(&folder(), subject, None).unwrap();
    assert!(report.passed(), "{report}");
    assert_eq!(report.counts(), (51, 0));
}

#[test]
fn the_oracle_matches_every_case() {
    expect_all_pass(&OracleSubject);
}

#[test]
fn the_cpu_backend_matches_every_case() {
    expect_all_pass(&BackendSubject::new("cpu", Cpu::new()));
}
