//! `cargo xtask fuzz`: readers of untrusted files under libFuzzer.
//!
//! The targets are functions of the crate `tpgm-fuzz`. They are built as the tests are, with the same dependencies; only the
//! crates of this workspace are instrumented, by a wrapper around the compiler.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::test::FEATURES;
use crate::{cargo, make_executable, root};

/// Options of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Minutes for each target
    #[arg(long, default_value_t = 1.0, conflicts_with = "seconds")]
    minutes: f64,
    /// Seconds for each target, for a short turn
    #[arg(long)]
    seconds: Option<u64>,
    /// Run one input, for example one that was found, and say what happens
    #[arg(long, value_name = "FILE", requires = "targets")]
    input: Option<PathBuf>,
    /// List the targets
    #[arg(long)]
    list: bool,
    /// Targets; all of them if none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// A target, as `fuzz/targets.json` has it.
#[derive(Debug, Clone, Deserialize)]
struct Target {
    name: String,
    reads: String,
    /// Folders and files with inputs to start from, from the root of the workspace.
    seeds: Vec<String>,
    /// How the names of these inputs end.
    endings: Vec<String>,
}

/// What a target may take of the machine's memory.
const MEMORY_MIB: u64 = 1024;

/// Longer inputs are slower, and say nothing new about formats like these.
const LONGEST_INPUT: u64 = 1 << 16;

/// An input that takes longer than this is a finding.
const LONGEST_SECONDS: u64 = 20;

/// The crates of this workspace that are optimized in tests.
const INSTRUMENTED: [&str; 6] =
    ["tpgm-core", "tpgm-cuda", "tpgm-files", "tpgm-nn", "tpgm-candle", "tpgm-examples"];

/// Passes calls of the compiler on, with what libFuzzer learns of an execution: which edges were taken, and what was compared.
const WRAPPER: &str = r#"#!/bin/sh
# Instruments for `cargo xtask fuzz`.
case " $* " in
*" --crate-type proc-macro "* | *" --crate-name build_script_build "*) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
"#;

/// Why this cannot run here, if so: libFuzzer is C++.
pub(crate) fn missing() -> Result<Option<&'static str>> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let found = Command::new(compiler).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = cfg!(target_os = "linux") && found.is_ok_and(|status| status.success());
    Ok((!there).then_some("libFuzzer takes Linux and a C++ compiler (`c++`, or the one that CXX names)"))
}

/// How a target did.
struct Outcome {
    executions: u64,
    seconds: f64,
    corpus: usize,
    peak_mib: u64,
    /// Where the input lies that ended it, if one did.
    found: Option<PathBuf>,
}

/// Fuzzes targets and prints a table.
///
/// # Errors
///
/// The fuzzer cannot be built, or a target has an input that makes it panic, abort, hang or take too much memory: the message
/// says where the input is and how to run it again.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        targets()?.iter().for_each(|target| println!("{:<12} {}", target.name, target.reads));
        return Ok(());
    }
    if let Some(reason) = missing()? {
        bail!(reason);
    }
    let chosen = chosen(&args.targets)?;
    let folder = root()?.join("target/fuzz");
    let fuzzer = build(&folder, args.seconds.is_some())?;
    if let Some(input) = &args.input {
        for target in &chosen {
            let status = call(&fuzzer, target).arg(input).status().context("cannot start the fuzzer")?;
            ensure!(status.success(), "`{}` on `{}`: {status}", target.name, input.display());
        }
        return Ok(());
    }
    let seconds = args.seconds.unwrap_or((args.minutes * 60.0).round() as u64).max(1);
    println!("{:<12} {:>12} {:>8} {:>7} {:>9}", "target", "executions", "per s", "corpus", "memory");
    let (mut total, mut found) = (0, vec![]);
    // A fuzzer has one thread.
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let outcomes = chosen.chunks(processors).flat_map(|some| {
        let fuzz = |target| fuzz(&fuzzer, target, &folder, seconds);
        std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|target| scope.spawn(move || fuzz(target))).collect();
            running
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect::<Vec<_>>()
        })
    });
    for (target, outcome) in chosen.iter().zip(outcomes) {
        let outcome = outcome?;
        total += outcome.executions;
        println!(
            "{:<12} {:>12} {:>8.0} {:>7} {:>5} MiB  {}",
            target.name,
            outcome.executions,
            outcome.executions as f64 / outcome.seconds,
            outcome.corpus,
            outcome.peak_mib,
            if outcome.found.is_some() { "FOUND" } else { "ok" },
        );
        found.extend(outcome.found.map(|input| (target.name.clone(), input)));
    }
    println!("{total} executions");
    for (name, input) in &found {
        let input = input.strip_prefix(root()?).unwrap_or(input).display();
        println!("to repeat: cargo xtask fuzz {name} --input {input}");
    }
    ensure!(found.is_empty(), "{} targets have an input that they do not survive", found.len());
    Ok(())
}

fn targets() -> Result<Vec<Target>> {
    let path = root()?.join("fuzz/targets.json");
    let text = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("`{}` is not a list of targets", path.display()))
}

fn chosen(names: &[String]) -> Result<Vec<Target>> {
    let targets = targets()?;
    let known = || targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = names.iter().find(|name| !targets.iter().any(|target| target.name == **name)) {
        bail!("there is no target `{unknown}`; there are {}", known());
    }
    Ok(targets.into_iter().filter(|target| names.is_empty() || names.contains(&target.name)).collect())
}

/// The files that a target starts from.
fn seeds(target: &Target) -> Result<Vec<PathBuf>> {
    let root = root()?;
    let mut open: Vec<PathBuf> = target.seeds.iter().map(|seed| root.join(seed)).collect();
    let mut found = vec![];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            for entry in entries {
                open.push(entry.with_context(|| format!("cannot read `{}`", path.display()))?.path());
            }
        } else if target.endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "target `{}` has no seeds", target.name);
    Ok(found)
}

/// Builds the fuzzer and says where it is. Optimizing what it instruments takes longer than a short turn.
fn build(folder: &Path, short: bool) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    let wrapper = folder.join("instrument.sh");
    fs::write(&wrapper, WRAPPER).with_context(|| format!("cannot write `{}`", wrapper.display()))?;
    make_executable(&wrapper)?;
    // No reader downloads anything, and what does would be built anew beside libFuzzer.
    let features: Vec<&str> =
        FEATURES.split(',').filter(|feature| *feature != "tpgm-examples/hf-hub").collect();
    let features = format!("{},tpgm-fuzz/libfuzzer", features.join(","));
    let level = if short { 0 } else { 1 };
    let output = cargo(&["test", "--workspace", "--features", &features, "--test", "fuzzer", "--no-run"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(INSTRUMENTED.iter().flat_map(|name| {
            ["--config".to_owned(), format!("profile.dev.package.{name}.opt-level={level}")]
        }))
        .current_dir(root()?)
        .env("RUSTC_WORKSPACE_WRAPPER", &wrapper)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the fuzzer does not build");
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = executable.filter(|message| message["target"]["name"] == "fuzzer");
    let executable =
        executable.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?))).next_back();
    executable.context("cargo names no executable of the fuzzer")
}

fn call(fuzzer: &Path, target: &Target) -> Command {
    let mut command = Command::new(fuzzer);
    command.env("TPGM_FUZZ_TARGET", &target.name).env("RUST_BACKTRACE", "0");
    command.args([
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-max_len={LONGEST_INPUT}"),
        format!("-timeout={LONGEST_SECONDS}"),
    ]);
    command
}

fn fuzz(fuzzer: &Path, target: &Target, folder: &Path, seconds: u64) -> Result<Outcome> {
    let (corpus, inputs) =
        (folder.join("corpus").join(&target.name), folder.join("seeds").join(&target.name));
    let found = folder.join("found").join(&target.name);
    // Seeds may have changed since the last time; what was found by then may be mended.
    for stale in [&inputs, &found] {
        let _ = fs::remove_dir_all(stale);
    }
    for needed in [&corpus, &inputs, &found] {
        fs::create_dir_all(needed).with_context(|| format!("cannot make `{}`", needed.display()))?;
    }
    for (i, seed) in seeds(target)?.iter().enumerate() {
        let copy = inputs.join(i.to_string());
        fs::copy(seed, &copy).with_context(|| format!("cannot copy `{}`", seed.display()))?;
    }
    let log = folder.join(format!("{}.log", target.name));
    let file = fs::File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
    let start = Instant::now();
    let mut command = call(fuzzer, target);
    let status = command
        .args([format!("-max_total_time={seconds}"), format!("-artifact_prefix={}/", found.display())])
        .args(["-print_final_stats=1", "-verbosity=1"])
        .args([&corpus, &inputs])
        .stdout(Stdio::null())
        .stderr(file)
        .status()
        .context("cannot start the fuzzer")?;
    let text = fs::read(&log).with_context(|| format!("cannot read `{}`", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let number = |name: &str| {
        let line = text.lines().rev().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse::<u64>().ok())
    };
    let mut inputs = fs::read_dir(&found).into_iter().flatten().flatten().map(|entry| entry.path());
    // libFuzzer also keeps inputs that are slow beside others; only those that are too slow end it.
    let slow =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("slow-unit"));
    let input = inputs.find(|path| !slow(path));
    ensure!(
        status.success() || input.is_some(),
        "the fuzzer of `{}` ended with {status}; its output is in `{}`",
        target.name,
        log.display()
    );
    Ok(Outcome {
        executions: number("stat::number_of_executed_units:").unwrap_or_default(),
        seconds: start.elapsed().as_secs_f64(),
        corpus: fs::read_dir(&corpus).map_or(0, Iterator::count),
        peak_mib: number("stat::peak_rss_mb:").unwrap_or_default(),
        found: input,
    })
}
