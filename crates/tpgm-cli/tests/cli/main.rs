//! The program as people run it: standard output, standard error, exit codes, files.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

// Two modules of the program, as its main file has them: a program is not a library that a test could use.
#[path = "../../src/args.rs"]
#[allow(dead_code, reason = "the options are read by the program")]
mod args;
#[path = "../../src/kind/mod.rs"]
#[allow(dead_code, reason = "what is printed is asked of the program")]
mod kind;

mod common;
mod conversions;
mod failures;
mod kinds;
mod merges;
mod real_files;
