//! Golden cases: numbers that the authors' published code computed, and the runner that compares any implementation
//! with them.
//!
//! A folder holds an `index.json`; a case is one JSON file and a safetensors file for each of f64 and f32. Its `README.md`
//! describes the contents. [`run_folder`] runs every case four ways, in f64 and f32,
//! - *fed*: the gradients come from the file;
//! - *end to end*: the gradients come from the small model of the case, written here in f64;
//!
//! and compares **every** number in the file that the [`Subject`] exposes. A tensor of the file that nothing knows how to
//! compare fails the case, and so does one that should be there and is not.
//!
//! ```no_run
//! use tpgm_core::testing::golden::{OracleSubject, run_folder};
//! let report = run_folder("tests/golden".as_ref(), &OracleSubject, None)?;
//! assert!(report.passed(), "{report}");
//! # Ok::<(), tpgm_core::testing::golden::GoldenError>(())
//! ```

mod backend_subject;
mod case;
mod compare;
mod error;
mod evaluate;
mod file;
mod model;
mod report;
mod run;
mod run_step;
mod run_tpgm;
mod run_wise;
mod subject;

pub use backend_subject::BackendSubject;
pub use compare::Deviation;
pub use error::GoldenError;
pub use report::{CaseReport, Mode, Outcome, Report, RunReport};
pub use run::run_folder;
pub use subject::{Fisher, Observed, OptimizerSubject, OracleSubject, ProjectorSubject, Quantity, Subject};
