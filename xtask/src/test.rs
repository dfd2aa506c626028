//! `cargo xtask test`: what CI runs and the README calls the test command.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo;

/// No options yet.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// One stage: a name, the arguments of cargo, and an environment variable for it.
struct Stage {
    name: &'static str,
    args: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
}

const fn stage(name: &'static str, args: &'static [&'static str]) -> Stage {
    Stage { name, args, env: None }
}

const STAGES: [Stage; 5] = [
    stage("formatting", &["fmt", "--all", "--check"]),
    stage("lints", &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]),
    stage("tests", &["test", "--workspace", "--all-features", "--lib", "--bins", "--tests", "--examples"]),
    stage("documentation tests", &["test", "--workspace", "--all-features", "--doc"]),
    Stage {
        name: "documentation",
        args: &["doc", "--workspace", "--all-features", "--no-deps"],
        env: Some(("RUSTDOCFLAGS", "-D warnings")),
    },
];

/// Runs every stage, also after one has failed, and ends with a summary.
///
/// # Errors
///
/// If a stage fails or cargo cannot be started.
pub(crate) fn run(_: &Args) -> Result<()> {
    let mut outcomes = Vec::new();
    for stage in &STAGES {
        println!("\n== {}: cargo {}", stage.name, stage.args.join(" "));
        let start = Instant::now();
        let mut command = cargo(stage.args);
        command.envs(stage.env);
        let status = command.status().context("cannot start cargo")?;
        outcomes.push((stage.name, status.success(), start.elapsed().as_secs()));
    }
    println!("\n== summary");
    for (name, success, seconds) in &outcomes {
        let verdict = if *success { "ok" } else { "FAILED" };
        println!("{verdict:<6}  {name} ({seconds} s)");
    }
    let failed: Vec<_> =
        outcomes.iter().filter_map(|&(name, success, _)| (!success).then_some(name)).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
