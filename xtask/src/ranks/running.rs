//! A program under way, line by line.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail};

/// How long a start of the program may take, on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(600);

/// A folder for Open MPI's own files: several starts at a time would remove that of the user from under each other.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("tpgm-ranks-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// How long a program that is told to end has for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lines of a program under way, which ends with this.
pub(super) struct Running {
    _scratch: Scratch,
    child: Child,
    lines: Receiver<String>,
    pub(super) seen: Vec<String>,
    begun: Instant,
}

impl Running {
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut child = command
            .env("TMPDIR", &scratch.0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the program")?;
        let (sender, lines) = channel();
        let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let lines = BufReader::new(stream).lines().map_while(Result::ok);
                lines.for_each(|line| drop(sender.send(line)));
            });
        }
        Ok(Self { _scratch: scratch, child, lines, seen: Vec::new(), begun: Instant::now() })
    }

    /// The next line; nothing at the end.
    pub(super) fn line(&mut self) -> Result<Option<String>> {
        match self.lines.recv_timeout(LIMIT.saturating_sub(self.begun.elapsed())) {
            Ok(line) => {
                self.seen.push(line.clone());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("it did not end within {LIMIT:?}:\n{}", self.seen.join("\n"))
            }
        }
    }

    /// All lines, and whether it ended well.
    pub(super) fn end(mut self) -> Result<(Vec<String>, bool)> {
        while self.line()?.is_some() {}
        let success = self.child.wait().context("waiting for the program")?.success();
        Ok((std::mem::take(&mut self.seen), success))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if ended(&mut self.child) {
            return;
        }
        // `mpirun` takes its ranks with it, if it is asked rather than killed.
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().ok();
        let begun = Instant::now();
        while !ended(&mut self.child) && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_with_what_reads_it() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap 'kill $sleep; exit' TERM; sleep 600 & sleep=$!; echo $sleep; wait"]);
        let mut running = Running::start(shell).unwrap();
        let sleep = running.line().unwrap().unwrap();
        let there =
            || Command::new("kill").args(["-0", &sleep]).stderr(Stdio::null()).status().unwrap().success();
        assert!(there());
        drop(running);
        let begun = Instant::now();
        while there() {
            assert!(begun.elapsed() < LIMIT);
            thread::sleep(Duration::from_millis(5));
        }
    }
}
