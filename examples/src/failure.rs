//! How a program says what went wrong.

use std::process::ExitCode;

use anyhow::Error;

/// What `main` returns: an error is printed with its causes, and never with a stack of frames, which says nothing to whoever
/// gave a wrong path. Many people have `RUST_BACKTRACE=1` set.
#[allow(clippy::print_stderr, reason = "a program talks to its user")]
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, a line each. Causes that the line before ends with are left out.
fn describe(error: &Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let cause = without_frames(&cause.to_string());
        if text.is_empty() {
            text = format!("error: {cause}");
        } else if !last.ends_with(&cause) {
            text += &format!("\n  because: {cause}");
        }
        last = cause;
    }
    text
}

/// candle puts the frames of its errors into their text.
fn without_frames(text: &str) -> String {
    let is_first_frame = |line: &str| line.starts_with(' ') && line.trim_start().starts_with("0: ");
    let lines: Vec<_> = text.lines().take_while(|line| !is_first_frame(line)).collect();
    lines.join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let error: anyhow::Result<()> = Err(Error::msg("no such file"));
        let error =
            error.context("cannot read `a.csv`: no such file").context("the training set").unwrap_err();
        assert_eq!(describe(&error), "error: the training set\n  because: cannot read `a.csv`: no such file");
    }

    #[test]
    fn frames_are_no_part_of_it() {
        let text = "shape mismatch in matmul, lhs: [2, 3], rhs: [2, 3]\n   0: candle_core::error::Error::bt\n             at \
                    ./error.rs:264:9\n   1: candle_core::tensor::Tensor::matmul\n";
        let error = Error::msg(text).context("a step");
        assert_eq!(
            describe(&error),
            "error: a step\n  because: shape mismatch in matmul, lhs: [2, 3], rhs: [2, 3]"
        );
    }
}
