//! What is built for the GPU machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::toolkit::Toolkit;
use crate::cargo;

/// An executable that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// What the script calls it.
    pub(crate) name: &'static str,
}

/// All programs, by the archive that they go to.
#[derive(Debug)]
pub(crate) struct Programs {
    /// They need a driver and nothing else.
    pub(crate) core: Vec<Program>,
    /// They are linked with libraries of CUDA.
    pub(crate) candle: Vec<Program>,
}

/// One call of cargo, so that nothing is built twice with other features.
struct Build {
    packages: &'static [&'static str],
    features: &'static [&'static str],
    /// Name of the target, whether it is a test, and what the script calls it.
    programs: &'static [(&'static str, bool, &'static str)],
}

const CORE: Build = Build {
    packages: &["tpgm-cuda", "tpgm-benches"],
    features: &[],
    programs: &[("gpu", true, "test-tpgm-cuda"), ("side_by_side", false, "side_by_side")],
};

// Only the tests that use a GPU: the others look for files of the repository, and pass or fail here.
const CANDLE: Build = Build {
    packages: &["tpgm-candle", "tpgm-benches"],
    features: &["tpgm-candle/cuda", "tpgm-benches/end-to-end", "tpgm-benches/cuda"],
    programs: &[("cuda", true, "test-tpgm-candle"), ("end_to_end", false, "end_to_end")],
};

/// Builds in release, in a target folder of their own: candle's kernels stay there, whatever else is built.
///
/// # Errors
///
/// If something does not build.
pub(crate) fn build(target: &Path, toolkit: Option<&Toolkit>) -> Result<Programs> {
    let core = CORE.run(target, None)?;
    let candle = toolkit.map_or(Ok(Vec::new()), |toolkit| CANDLE.run(target, Some(toolkit)))?;
    Ok(Programs { core, candle })
}

impl Build {
    fn run(&self, target: &Path, toolkit: Option<&Toolkit>) -> Result<Vec<Program>> {
        let args = self.args();
        let mut command = cargo(&args);
        command.arg("--target-dir").arg(target).stderr(Stdio::inherit());
        if let Some(toolkit) = toolkit {
            toolkit.set(&mut command)?;
        }
        let output = command.output().context("cannot start cargo")?;
        ensure!(output.status.success(), "`cargo {}` ended with {}", args.join(" "), output.status);
        self.found_in(&String::from_utf8(output.stdout).context("the messages of cargo")?)
    }

    fn args(&self) -> Vec<&'static str> {
        let mut args = vec!["build", "--release", "--message-format=json-render-diagnostics"];
        args.extend(self.packages.iter().flat_map(|package| ["--package", package]));
        args.extend(self.features.iter().flat_map(|feature| ["--features", feature]));
        args.extend(self.programs.iter().flat_map(|&(target, test, _)| {
            let kind = if test { "--test" } else { "--bin" };
            [kind, target]
        }));
        args
    }

    /// The programs that cargo's messages, one JSON object per line, tell of.
    fn found_in(&self, messages: &str) -> Result<Vec<Program>> {
        let mut built = Vec::new();
        for line in messages.lines() {
            let message: Value =
                serde_json::from_str(line).with_context(|| format!("a message of cargo: {line}"))?;
            let Some(path) = message["executable"].as_str() else { continue };
            let target = message["target"]["name"].as_str().context("a message of cargo has no target")?;
            let test = message["profile"]["test"].as_bool().unwrap_or_default();
            built.push((target.to_owned(), test, path.to_owned()));
        }
        let program = |&(target, test, name): &(&str, bool, &'static str)| {
            let found = built.iter().find(|(built, is_test, _)| built == target && *is_test == test);
            let (.., path) =
                found.with_context(|| format!("cargo built no `{target}`, the script's {name}"))?;
            Ok(Program { path: path.into(), name })
        };
        self.programs.iter().map(program).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_binaries_come_from_one_call() {
        assert_eq!(
            CORE.args()[3..],
            ["--package", "tpgm-cuda", "--package", "tpgm-benches", "--test", "gpu", "--bin", "side_by_side"]
        );
        assert!(CANDLE.args().windows(2).any(|pair| pair == ["--features", "tpgm-candle/cuda"]));
    }

    #[test]
    fn executables_are_found_and_named() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"side_by_side"},"profile":{"test":true},"executable":"/t/side_by_side-1"}
{"reason":"compiler-artifact","target":{"name":"side_by_side"},"profile":{"test":false},"executable":"/t/side_by_side"}
{"reason":"compiler-artifact","target":{"name":"tpgm_cuda"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"gpu"},"profile":{"test":true},"executable":"/t/gpu-1"}
{"reason":"compiler-artifact","target":{"name":"cuda"},"profile":{"test":true},"executable":"/t/cuda-1"}
{"reason":"build-finished","success":true}"#;
        let found = CORE.found_in(messages).unwrap();
        let program = |name, path: &str| Program { name, path: path.into() };
        assert_eq!(
            found,
            [program("test-tpgm-cuda", "/t/gpu-1"), program("side_by_side", "/t/side_by_side")]
        );
        let error = CANDLE.found_in(messages).unwrap_err().to_string();
        assert_eq!(error, "cargo built no `end_to_end`, the script's end_to_end");
        assert!(CORE.found_in("no JSON").is_err());
    }
}
