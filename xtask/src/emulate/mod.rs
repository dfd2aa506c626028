//! `cargo xtask emulate`: the CUDA kernels on the CPU.
//!
//! The same sources that are compiled to PTX are compiled by a C++ compiler, with the built-ins of CUDA from
//! `kernels/emulator/`, and run through the tests of every backend; on request with a sanitizer.

mod cases;
mod library;
mod numbers;
mod sanitizer;
mod self_test;

use std::path::Path;

use anyhow::{Context, Result, ensure};

pub(crate) use library::{Variant, library};

use crate::cargo;

/// Options of `emulate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compile with the address and the undefined behavior sanitizer
    #[arg(long, conflicts_with_all = ["ubsan", "tsan"])]
    asan: bool,
    /// Compile with the undefined behavior sanitizer alone
    #[arg(long, conflicts_with = "tsan")]
    ubsan: bool,
    /// Compile with the thread sanitizer: finds missing barriers and fences
    #[arg(long)]
    tsan: bool,
    /// Take the sums of GPUs with few units for f64: compensated f32
    #[arg(long, conflicts_with_all = ["asan", "ubsan", "tsan", "self_test"])]
    compensated: bool,
    /// Test the emulator itself, in all variants: right kernels must pass, planted mistakes must be found
    #[arg(long, conflicts_with_all = ["asan", "ubsan", "tsan", "test_args"])]
    self_test: bool,
    /// Run one case of the self-test in this process
    #[arg(long, hide = true, value_name = "CASE")]
    self_test_case: Option<String>,
    /// Arguments of the tests, for example a part of their names
    #[arg(last = true)]
    test_args: Vec<String>,
}

/// Parts of the names of the tests that run under the thread sanitizer, which is ten times slower: enough for every kernel
/// to run with several blocks. All of them if empty.
const TSAN_TESTS: &[&str] = &[
    "device::any_number_of_blocks",
    "device::deferred_projections",
    "device::late_reports",
    "suite::averages",
    "suite::interpolations",
    "suite::preparing_a_step",
    "suite::wrong_operands",
];

/// Why the kernels cannot be compiled for the CPU, if so.
pub(crate) fn missing() -> Result<Option<&'static str>> {
    Ok(library::compiler().is_none().then_some("there is no C++ compiler"))
}

/// Builds the library if need be and runs the tests. Says so and passes where there is no C++ compiler.
///
/// # Errors
///
/// If the kernels do not compile, or a test fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(case) = &args.self_test_case {
        return self_test::run_case(case);
    }
    if args.self_test {
        return self_test::run();
    }
    let variant = match (args.asan, args.ubsan, args.tsan) {
        (true, ..) => Variant::Asan,
        (_, true, _) => Variant::Ubsan,
        (.., true) => Variant::Tsan,
        _ if args.compensated => Variant::Compensated,
        _ => Variant::Plain,
    };
    let (Some(compiler), Some(library)) = (library::compiler(), library(variant)?) else {
        return Ok(());
    };
    let tests: &[&str] = if variant == Variant::Tsan && args.test_args.is_empty() { TSAN_TESTS } else { &[] };
    run_tests(&compiler, variant, &library, tests, &args.test_args)
}

fn run_tests(
    compiler: &Path,
    variant: Variant,
    library: &Path,
    tests: &[&str],
    test_args: &[String],
) -> Result<()> {
    let mut command = cargo(&["test", "-p", "tpgm-cuda", "--features", "emulated", "--test", "emulated"]);
    let runner = sanitizer::runner(compiler, variant)?;
    if !runner.is_empty() {
        // A sanitizer belongs into the test program, not into cargo and the compiler.
        command.arg("--config").arg(format!("target.'cfg(all())'.runner = {runner:?}"));
    }
    command.arg("--").args(tests).args(test_args).env("TPGM_EMULATOR", library);
    let success = command.status().context("cannot start cargo")?.success();
    ensure!(success, "the emulated kernels ({}) failed", variant.name());
    Ok(())
}
