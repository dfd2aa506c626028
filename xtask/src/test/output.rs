//! Where the output of a stage goes.

use std::io::{self, Read as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};

/// Where a stage's output goes.
pub(super) enum Output {
    /// To the terminal
    Shown,
    /// To memory, until it is shown: it would be in the middle of another stage's
    Kept(Vec<u8>),
}

impl Output {
    pub(super) fn kept() -> Self {
        Output::Kept(Vec::new())
    }

    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        match self {
            Output::Shown => println!("{line}"),
            Output::Kept(text) => writeln!(text, "{line}")?,
        }
        Ok(())
    }

    /// Runs a command to its end.
    pub(super) fn run(&mut self, mut command: Command) -> io::Result<ExitStatus> {
        let Output::Kept(text) = self else {
            return command.status();
        };
        let (mut reader, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        // It has the pipe's end, too, and reading would not stop.
        drop(command);
        reader.read_to_end(text)?;
        child.wait()
    }

    /// Shows what was kept.
    pub(super) fn show(self) -> io::Result<()> {
        match self {
            Output::Shown => Ok(()),
            Output::Kept(text) => io::stdout().write_all(&text),
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_says_is_kept_in_order() -> io::Result<()> {
        let mut output = Output::kept();
        output.say("first")?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; echo out again; exit 3"]);
        assert_eq!(output.run(command)?.code(), Some(3));
        output.say("last")?;
        let Output::Kept(text) = output else { unreachable!("it is kept") };
        assert_eq!(String::from_utf8_lossy(&text), "first\nout\nerr\nout again\nlast\n");
        Ok(())
    }
}
