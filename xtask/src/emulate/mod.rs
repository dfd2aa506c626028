//! `cargo xtask emulate`: the CUDA kernels on the CPU.
//!
//! The same sources that are compiled to PTX are compiled by a C++ compiler, with the built-ins of CUDA from
//! `kernels/emulator/`, and run through the tests of every backend; on request with a sanitizer, with as many threads a block as
//! on a GPU, or under the host's code for GPUs over a stand-in for NVIDIA's driver.

mod cases;
mod driver;
mod library;
mod numbers;
mod sanitizer;
mod self_test;

use std::path::Path;

use anyhow::{Context, Result, ensure};

use self::library::{Build, FEW_THREADS, GPU_THREADS, Sources, build_if_possible};
pub(crate) use self::library::{Variant, driver as stand_in, library};
use crate::cargo;
use crate::test::FEATURES;

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
    #[arg(long, conflicts_with_all = ["asan", "ubsan", "tsan", "self_test", "driver"])]
    compensated: bool,
    /// Run the host's code for GPUs too, over a stand-in for NVIDIA's driver
    #[arg(long, conflicts_with_all = ["asan", "ubsan", "tsan", "threads"])]
    driver: bool,
    /// Run the tests of the layers that call the kernels, on candle's tensors, instead of those of the kernels
    #[arg(long, conflicts_with_all = ["self_test", "driver"])]
    layers: bool,
    /// Threads of a block: 64 unless given; 256 are those of a GPU, and take four times as long
    #[arg(long, value_name = "COUNT", value_parser = threads, conflicts_with = "self_test")]
    threads: Option<u32>,
    /// Test the emulator itself, in all variants, or the stand-in with --driver: what is right must pass, planted mistakes
    /// must be found
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
    "device::layers",
    "suite::averages",
    "suite::interpolations",
    "suite::preparing_a_step",
    "suite::wrong_operands",
];

/// A power of two, since the kernels halve blocks, of whole warps.
fn threads(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ (32 | 64 | 128 | 256 | 512 | 1024)) => Ok(count),
        _ => Err("a power of two from 32 to 1024".into()),
    }
}

/// Parts of the names of the tests that run with as many threads a block as a GPU has: what depends on the shape of a block.
const GPU_THREADS_TESTS: &[&str] = &[
    "device::any_number_of_blocks",
    "device::deferred_projections",
    "device::golden",
    "device::large_tensors",
    "device::layers",
    "device::mixed_types",
    "suite::averages",
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
    match (args.driver, args.self_test) {
        (true, true) => return driver::self_test(),
        (true, false) => return driver::run(&args.test_args),
        (false, true) => return self_test::run(),
        (false, false) => {}
    }
    let variant = match (args.asan, args.ubsan, args.tsan) {
        (true, ..) => Variant::Asan,
        (_, true, _) => Variant::Ubsan,
        (.., true) => Variant::Tsan,
        _ if args.compensated => Variant::Compensated,
        _ => Variant::Plain,
    };
    let threads = args.threads.unwrap_or(FEW_THREADS);
    let build = Build { sources: Sources::Kernels, variant, threads };
    let (Some(compiler), Some(library)) = (library::compiler(), build_if_possible(build)?) else {
        return Ok(());
    };
    if args.layers {
        return run_tests(&compiler, variant, &library, &["--lib"], &["layers::gpu::tests"], &args.test_args);
    }
    let tests: &[&str] = match (variant, threads) {
        _ if !args.test_args.is_empty() => &[],
        (Variant::Tsan, _) => TSAN_TESTS,
        (_, GPU_THREADS) => GPU_THREADS_TESTS,
        _ => &[],
    };
    run_tests(&compiler, variant, &library, &["--test", "emulated"], tests, &args.test_args)
}

fn run_tests(
    compiler: &Path,
    variant: Variant,
    library: &Path,
    target: &[&str],
    tests: &[&str],
    test_args: &[String],
) -> Result<()> {
    let runner = sanitizer::runner(compiler, variant)?;
    // As the tests are built, so that nothing is built anew.
    let mut command = cargo(&["test", "--workspace", "--features", FEATURES]);
    command.args(target);
    if !runner.is_empty() {
        // A sanitizer belongs into the test program, not into cargo and the compiler.
        command.arg("--config").arg(format!("target.'cfg(all())'.runner = {runner:?}"));
    }
    command.arg("--").args(tests).args(test_args).env("TPGM_EMULATOR", library);
    let success = command.status().context("cannot start cargo")?.success();
    ensure!(success, "the emulated kernels ({}) failed", variant.name());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_a_power_of_two_of_whole_warps() {
        assert_eq!((threads("32"), threads("256")), (Ok(32), Ok(256)));
        for text in ["0", "16", "48", "2048", "-64", "many"] {
            assert!(threads(text).unwrap_err().contains("power of two"), "{text}");
        }
    }
}
