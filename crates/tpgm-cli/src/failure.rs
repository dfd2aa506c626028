//! What went wrong, what to do, and the exit code that says so.

use std::error::Error;
use std::process::ExitCode;

use tpgm_core::DType;
use tpgm_files::weight_space as merge;

/// An option or its value is wrong: what clap ends with, too.
const USAGE: u8 = 2;
/// A file cannot be read or written.
const FILE: u8 = 3;
/// Checkpoints do not fit together, or hold what cannot be measured or merged.
const CONTENT: u8 = 4;

/// Why a command did not do what it was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u8,
    /// The error and its causes.
    chain: Vec<String>,
    /// What to do, where the message does not say it.
    advice: Option<&'static str>,
}

impl Failure {
    /// An option that makes no sense.
    pub(crate) fn usage(problem: impl Into<String>) -> Self {
        Self { code: USAGE, chain: vec![problem.into()], advice: None }
    }

    /// What the checkpoints hold cannot be used.
    pub(crate) fn content(problem: impl Into<String>) -> Self {
        Self { code: CONTENT, chain: vec![problem.into()], advice: None }
    }

    fn of(code: u8, error: &dyn Error, advice: Option<&'static str>) -> Self {
        let mut chain = vec![error.to_string()];
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many messages end with their cause.
            if !chain.last().is_some_and(|last| last.ends_with(&text)) {
                chain.push(text);
            }
            cause = error.source();
        }
        Self { code, chain, advice }
    }

    fn text(&self) -> String {
        let mut lines = format!("error: {}", self.chain.join("\n  because: "));
        if let Some(advice) = self.advice {
            lines += "\n  try: ";
            lines += advice;
        }
        lines
    }

    /// Prints it, without a stack of frames whatever `RUST_BACKTRACE` says.
    #[expect(clippy::print_stderr, reason = "a program talks to its user")]
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("{}", self.text());
        ExitCode::from(self.code)
    }
}

/// Whether a file is wrong, or what was asked of it.
fn code_of(error: &tpgm_files::Error) -> u8 {
    if matches!(error, tpgm_files::Error::BadOption { .. }) { USAGE } else { FILE }
}

impl From<tpgm_files::Error> for Failure {
    fn from(error: tpgm_files::Error) -> Self {
        Self::of(code_of(&error), &error, None)
    }
}

impl From<merge::Error> for Failure {
    fn from(error: merge::Error) -> Self {
        use merge::Error as E;

        let (code, advice) = match &error {
            E::Core(tpgm_core::Error::NonFiniteValue { .. }) => (CONTENT, None),
            E::Core(_) | E::MergeInputs { .. } | E::NothingLeft { .. } | E::Rename { .. } => (USAGE, None),
            E::Files(error) => (code_of(error), None),
            E::MissingTensor { .. } => (CONTENT, Some(MISSING)),
            E::TensorMismatch { .. } => (CONTENT, Some(MISMATCH)),
            E::NotMergeable { .. } | E::IntegerMatrix { .. } => (CONTENT, Some(INTEGERS)),
            E::Overflow { dtype: DType::F16 | DType::BF16, .. } => (CONTENT, Some("`--dtype f32`")),
            E::Overflow { dtype: DType::F32, .. } => (CONTENT, Some("`--dtype f64`")),
            E::NothingInCommon { .. } => (CONTENT, Some(NOTHING)),
            _ => (CONTENT, None),
        };
        Self::of(code, &error, advice)
    }
}

const MISSING: &str = "`--copy PATTERN` to take it from the first model, `--drop PATTERN` to leave it out, or \
                       `--rename FROM=TO` if it is there by another name";
const MISMATCH: &str =
    "a new head of another shape: `--copy PATTERN` to take it as it is, or for distances `--new PATTERN`";
const INTEGERS: &str = "`--copy PATTERN` to take it as it is, `--drop PATTERN` to leave it out, or for distances `--new PATTERN`";
const NOTHING: &str = "`tpgm inspect` on both, and `--rename FROM=TO`: `'bert.*=*'` takes a prefix off";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let io = std::io::Error::other("disk on fire");
        let failure = Failure::from(tpgm_files::Error::Io { path: "a.bin".into(), source: io });
        assert_eq!(failure.text(), "error: a.bin: disk on fire");
    }
}
