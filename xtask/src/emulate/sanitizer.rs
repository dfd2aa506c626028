//! How a program is started that loads a library compiled with a sanitizer.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::library::Variant;

/// What stands before the program on a command line; empty for a library without sanitizer.
///
/// # Errors
///
/// If the compiler does not have the sanitizer's library.
pub(crate) fn runner(compiler: &Path, variant: Variant) -> Result<Vec<String>> {
    let preload = match variant {
        Variant::Plain | Variant::Compensated => return Ok(Vec::new()),
        Variant::Ubsan => Vec::new(), // the library finds it by itself
        // The program is linked with neither, and exceptions are the business of both.
        Variant::Asan => vec![runtime(compiler, "libasan.so")?, runtime(compiler, "libstdc++.so.6")?],
        Variant::Tsan => vec![runtime(compiler, "libtsan.so")?],
    };
    let mut command = Vec::new();
    // The thread sanitizer of older compilers does not cope with addresses as random as newer kernels make them.
    if variant == Variant::Tsan
        && Command::new("setarch").args(["-R", "true"]).status().is_ok_and(|s| s.success())
    {
        command.extend(["setarch", "-R"].map(String::from));
    }
    command.push("env".into());
    if !preload.is_empty() {
        let paths: Vec<_> = preload.iter().map(|path| path.display().to_string()).collect();
        command.push(format!("LD_PRELOAD={}", paths.join(" ")));
    }
    command.extend(options(variant).iter().map(|option| (*option).into()));
    Ok(command)
}

fn options(variant: Variant) -> &'static [&'static str] {
    match variant {
        Variant::Plain | Variant::Compensated => &[],
        Variant::Ubsan => &["UBSAN_OPTIONS=print_stacktrace=1", "TPGM_EMULATOR_TIMEOUT=300"],
        // The test harness ends with memory of its threads in use.
        Variant::Asan => {
            &["ASAN_OPTIONS=detect_leaks=0", "UBSAN_OPTIONS=print_stacktrace=1", "TPGM_EMULATOR_TIMEOUT=300"]
        }
        // Rust's own locks are unknown to it, so what Rust does is left out. Four blocks at a time race more than two.
        Variant::Tsan => &[
            "TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1",
            "TPGM_EMULATOR_THREADS=4",
            "TPGM_EMULATOR_TIMEOUT=300",
        ],
    }
}

/// Where the compiler has a shared library.
fn runtime(compiler: &Path, name: &str) -> Result<PathBuf> {
    let output = Command::new(compiler).arg(format!("-print-file-name={name}")).output();
    let output = output.with_context(|| format!("cannot start {}", compiler.display()))?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    ensure!(path.is_absolute(), "{} has no {name}: install its sanitizers", compiler.display());
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}
