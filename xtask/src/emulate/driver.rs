//! `cargo xtask emulate --driver`: the host's side of the CUDA backend over a stand-in for NVIDIA's driver, without a GPU.
//!
//! The stand-in is a `libcuda.so.1` from `kernels/emulator/driver/`: the tests that a GPU runs load it in place of the real one.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use super::library::{self, Build, GPU_THREADS, Sources, Variant};
use crate::cargo;
use crate::test::FEATURES;

/// Parts of the names of the tests that do not run when none are asked for: they compute much, and ask nothing of the host that
/// others do not. A block of 256 threads takes the emulator four times as long as one of 64.
const SKIPPED: &[&str] = &[
    "device::any_number_of_blocks",
    "device::golden_cases",
    "device::large_tensors",
    "suite::a_gradient_that_is_not_finite",
    "suite::half_precision",
    "suite::order_of_tensors",
    "suite::projector",
    "suite::saved_state",
    "suite::steps_",
    "suite::the_same_call",
    "suite::trusted_gradients",
];

/// Builds the stand-in if need be and runs the tests of the CUDA backend over it.
///
/// # Errors
///
/// If it does not compile, a test fails or finds no GPU, or the stand-in has found a mistake that a driver would not tell of.
pub(crate) fn run(test_args: &[String]) -> Result<()> {
    let Some(folder) = library::driver()? else { return Ok(()) };
    let counts = folder.join(format!("counts.{}", std::process::id()));
    let mut command = cargo(&["test", "--workspace", "--features", FEATURES, "--no-fail-fast"]);
    command.args(["--test", "gpu", "--test", "driver_calls"]);
    // The driver belongs to the test program, not to cargo and the compiler.
    let runner = [
        "env".to_string(),
        format!("LD_LIBRARY_PATH={}", search_path(&folder)),
        format!("TPGM_DRIVER_COUNTS={}", counts.display()),
    ];
    command.arg("--config").arg(format!("target.'cfg(all())'.runner = {runner:?}"));
    command.arg("--").args(test_args).env("TPGM_REQUIRE_GPU", "1");
    if test_args.is_empty() {
        command.args(SKIPPED.iter().flat_map(|test| ["--skip", test]));
    }
    let success = command.status().context("cannot start cargo")?.success();
    let called = read_counts(&counts);
    ensure!(
        success,
        "the CUDA backend failed over the stand-in for the driver; lines above that start with `libcuda stand-in:` say what \
         it had to find fault with"
    );
    let called = called?;
    let count = |name: &str| called.get(name).copied().unwrap_or(0);
    println!(
        "driver calls: {} launches, {} launches of graphs, {} copies, {} waits for events, {} records of events",
        count("cuLaunchKernel"),
        count("cuGraphLaunch"),
        count("cuMemcpyHtoDAsync_v2") + count("cuMemcpyDtoHAsync_v2"),
        count("cuStreamWaitEvent"),
        count("cuEventRecord"),
    );
    ensure!(count("cuLaunchKernel") > 0 || !test_args.is_empty(), "no test has launched a kernel");
    Ok(())
}

/// The folder, then what the variable has already.
fn search_path(folder: &Path) -> String {
    let before = env::var("LD_LIBRARY_PATH").unwrap_or_default();
    format!("{}{}{before}", folder.display(), if before.is_empty() { "" } else { ":" })
}

/// How often each function was called, as the stand-in wrote at the end of the process.
fn read_counts(file: &Path) -> Result<BTreeMap<String, u64>> {
    let text =
        fs::read_to_string(file).context("the stand-in for the driver was not loaded: it wrote no counts")?;
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let (name, count) = line.split_once(' ').with_context(|| format!("no count of calls: {line:?}"))?;
        *counts.entry(name.to_string()).or_default() += count.parse::<u64>()?;
    }
    Ok(counts)
}

/// A program against the stand-in.
struct Case {
    name: &'static str,
    /// A part of what is said about the planted mistake; empty if there is none.
    says: &'static str,
}

const fn right(name: &'static str) -> Case {
    Case { name, says: "" }
}

const fn planted(name: &'static str, says: &'static str) -> Case {
    Case { name, says }
}

const CASES: &[Case] = &[
    right("deferred_work"),
    right("pageable_copies"),
    right("kernels_run"),
    right("streams_wait"),
    right("default_streams"),
    right("graphs_replay"),
    right("captures_fork_and_join"),
    right("captures_end_by_what_is_forbidden"),
    right("bad_arguments_are_refused"),
    right("images_are_read"),
    right("pools_have_attributes"),
    right("captured_step"),
    planted(
        "captured_step_waits_for_an_event_from_outside",
        "cuStreamWaitEvent: a stream that is being captured waits for an event that was recorded outside of the capture; \
         the capture is invalid now: error 905, CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
    ),
    planted(
        "captured_step_records_an_event_that_is_asked_for",
        "cuEventQuery: the event was last recorded in a capture: it can be waited for in that capture only: error 907, \
         CUDA_ERROR_CAPTURED_EVENT",
    ),
    right("steps_on_one_stream"),
    planted("steps_wait_and_record", "not so: a step on one stream waits for no event"),
    right("staging_outlives_its_copy"),
    planted(
        "staging_freed_under_a_copy",
        "found in cuMemFreeHost: page-locked memory of 16 bytes is freed before cuMemcpyDtoHAsync_v2 has run, which copies \
         to it",
    ),
    planted(
        "staging_rewritten_under_a_copy",
        "found in cuMemcpyHtoDAsync_v2: the host has written to the page-locked source before the copy ran",
    ),
    planted(
        "graph_outlives_its_memory",
        "found in cuMemcpyDtoHAsync_v2: a graph copies from or to page-locked memory that has been freed",
    ),
    planted("launch_after_free", "found in places: it uses memory that an earlier call has freed"),
    planted(
        "kernel_reads_freed_memory",
        "of 12288 bytes that were freed: error 700, CUDA_ERROR_ILLEGAL_ADDRESS",
    ),
    planted(
        "kernel_leaves_its_memory",
        "0 bytes behind the end of 8192 bytes of device memory: error 700, CUDA_ERROR_ILLEGAL_ADDRESS",
    ),
    planted(
        "kernel_leaves_its_memory_by_little",
        "something was written behind the end of 12272 bytes of device memory",
    ),
];

/// `cargo xtask emulate --driver --self-test`: right calls must pass, planted mistakes must be found. Prints a table.
///
/// # Errors
///
/// If a right case fails or a mistake is not found.
pub(crate) fn self_test() -> Result<()> {
    let build = Build { sources: Sources::DriverSelfTest, variant: Variant::Plain, threads: GPU_THREADS };
    let (Some(compiler), Some(library)) = (library::compiler(), library::build_if_possible(build)?) else {
        return Ok(());
    };
    let source = crate::root()?.join("kernels/emulator/driver/self_test/cases.cpp");
    let program = library::program(&compiler, build, &source, &library)?;
    let folder = library::folder_of(&library)?;
    let mut complaints = Vec::new();
    for case in CASES {
        let mut command = Command::new(&program);
        command.arg(case.name).env("LD_LIBRARY_PATH", search_path(&folder));
        let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let verdict = match (case.says, output.status.success()) {
            ("", true) => "ok",
            ("", false) => "FAILED",
            (says, false) if said.contains(says) => "found",
            _ => "MISSED",
        };
        println!("{:54}{verdict}", case.name);
        if !matches!(verdict, "ok" | "found") {
            complaints
                .push(format!("\n== {} ({}; expected: {:?})\n{said}", case.name, output.status, case.says));
        }
    }
    println!("ok: passed; found: the planted mistake");
    ensure!(complaints.is_empty(), "the self-test of the stand-in failed\n{}", complaints.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_several_programs_are_added_up() {
        let file = env::temp_dir().join(format!("tpgm-counts-{}", std::process::id()));
        fs::write(&file, "cuInit 1\ncuLaunchKernel 20\ncuInit 2\n").unwrap();
        let counts = read_counts(&file).unwrap();
        assert_eq!((counts["cuInit"], counts["cuLaunchKernel"], counts.len()), (3, 20, 2));
        let error = read_counts(&file).unwrap_err().to_string();
        assert!(error.contains("was not loaded"), "{error}");
    }

    #[test]
    fn every_case_is_in_the_program() {
        let root = crate::root().unwrap();
        let source = fs::read_to_string(root.join("kernels/emulator/driver/self_test/cases.cpp")).unwrap();
        let (_, list) = source.split_once("constexpr Case CASES[]").unwrap();
        let names: Vec<&str> =
            list.split("CASE(").skip(1).map(|rest| rest.split(')').next().unwrap_or_default()).collect();
        assert_eq!(names, CASES.iter().map(|case| case.name).collect::<Vec<_>>());
    }
}
