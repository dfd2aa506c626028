//! The program as people run it: standard output, standard error, exit codes, files.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

// The modules of the program with tests of their own: a program is not a library that a test could use.
#[path = "../../src/args.rs"]
#[allow(dead_code)]
mod args;
#[path = "../../src/bars.rs"]
mod bars;
#[path = "../../src/failure.rs"]
#[allow(dead_code)]
mod failure;
#[path = "../../src/kind/mod.rs"]
mod kind;
#[path = "../../src/output.rs"]
#[allow(dead_code)]
mod output;
#[path = "../../src/progress.rs"]
#[allow(dead_code)]
mod progress;
#[path = "../../src/report.rs"]
#[allow(dead_code)]
mod report;
#[path = "../../src/table.rs"]
mod table;

mod common;
mod conversions;
mod failures;
mod kinds;
mod merges;
mod real_files;
