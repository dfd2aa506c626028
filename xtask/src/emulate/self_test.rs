//! `cargo xtask emulate --self-test`: right kernels must pass, planted mistakes must be found.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tpgm_cuda::Emulator;

use super::cases::{CASES, Case};
use super::library::{self, Build, FEW_THREADS, Sources, Variant};
use super::sanitizer;

/// Seconds after which a launch that polls is given up: one for the case that hangs, else so many that a busy machine does
/// not matter.
const TIMEOUT: (u32, u32) = (1, 60);

/// Runs all cases in all variants, each in a process of its own since a sanitizer ends it, and prints a table.
///
/// # Errors
///
/// If a right kernel fails or a mistake is not found.
pub(crate) fn run() -> Result<()> {
    let Some(compiler) = library::compiler() else {
        println!("skipped: no C++ compiler ($CXX or g++)");
        return Ok(());
    };
    // The sanitizers are tried where they are known to work.
    let variants = if cfg!(target_os = "linux") { &Variant::ALL[..] } else { &[Variant::Plain] };
    let mut columns = Vec::new();
    for &variant in variants {
        let build = Build { sources: Sources::SelfTest, variant, threads: FEW_THREADS };
        let library = library::build(&compiler, build)?;
        let mut runner = vec!["env".to_string()];
        runner.splice(0..0, sanitizer::runner(&compiler, variant)?);
        columns.push((variant, library, runner));
    }

    print!("{:28}", "");
    columns.iter().for_each(|(variant, ..)| print!("{:8}", variant.name()));
    println!();
    let mut complaints = Vec::new();
    for case in CASES {
        print!("{:28}", case.name);
        for (variant, library, runner) in &columns {
            let (verdict, complaint) = judge(case, *variant, library, runner)?;
            print!("{verdict:8}");
            complaints
                .extend(complaint.map(|text| format!("\n== {} ({})\n{text}", case.name, variant.name())));
        }
        println!();
    }
    println!("ok: passed; found: the planted mistake; -: not for this variant to find");
    ensure!(complaints.is_empty(), "the self-test of the emulator failed\n{}", complaints.join("\n"));
    Ok(())
}

/// A word for the table, and what there is to complain about.
fn judge(
    case: &Case,
    variant: Variant,
    library: &Path,
    runner: &[String],
) -> Result<(&'static str, Option<String>)> {
    let expected = case.found_by.iter().find(|(by, _)| *by == variant).map(|(_, text)| *text);
    if expected.is_none() && !case.found_by.is_empty() {
        return Ok(("-", None));
    }
    let timeout = if case.name == "higher_ticket" { TIMEOUT.0 } else { TIMEOUT.1 };
    let mut command = Command::new(&runner[0]);
    command.args(&runner[1..]).arg(format!("TPGM_EMULATOR_TIMEOUT={timeout}"));
    command.arg(env::current_exe().context("the path of xtask")?);
    command.args(["emulate", "--self-test-case", case.name]).env("TPGM_EMULATOR", library);
    let output = command.output().with_context(|| format!("cannot start {}", runner[0]))?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok(match (expected, output.status.success()) {
        (None, true) => ("ok", None),
        (None, false) => ("FAILED", Some(said)),
        (Some(text), false) if said.contains(text) => ("found", None),
        (Some(text), _) => ("MISSED", Some(format!("not found: {text:?} in\n{said}"))),
    })
}

/// Runs one case with the library of the environment.
///
/// # Errors
///
/// If there is no such case, or the kernel did not write what it should have.
pub(crate) fn run_case(name: &str) -> Result<()> {
    let case = CASES.iter().find(|case| case.name == name).with_context(|| format!("no case {name}"))?;
    (case.run)(&Emulator::from_env()?)
}
