//! How far a pass over long files is: a line on standard error, where that is a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use tpgm_files::weight_space::FilePass;

/// Time between two lines.
const EVERY: Duration = Duration::from_millis(100);
/// Letters of the bar.
const BAR: usize = 24;
/// Letters of a tensor's name, its end if it has more.
const NAME: usize = 36;

/// The line of one pass.
pub(crate) struct Progress {
    title: &'static str,
    shown: bool,
    start: Instant,
    next: Instant,
}

impl Progress {
    pub(crate) fn new(title: &'static str) -> Self {
        let start = Instant::now();
        // What takes no time flashes nothing.
        Self { title, shown: std::io::stderr().is_terminal(), start, next: start + 3 * EVERY }
    }

    /// Shows where the pass is.
    pub(crate) fn at(&mut self, pass: FilePass<'_>) {
        let now = Instant::now();
        if !self.shown || now < self.next {
            return;
        }
        self.next = now + EVERY;
        write(&line(self.title, pass, now - self.start));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            write("");
        }
    }
}

/// Writes over the line; a terminal that is gone is no reason to stop.
fn write(line: &str) {
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "\r{line}\x1b[K").and_then(|()| err.flush());
}

fn line(title: &str, FilePass { tensor, done, of }: FilePass<'_>, spent: Duration) -> String {
    let full = BAR * done / of.max(1);
    let skip = tensor.chars().count().saturating_sub(NAME);
    let name: String = tensor.chars().skip(skip).collect();
    let left = match done {
        0 => String::new(),
        done => format!("{:.0} s left", spent.as_secs_f64() / done as f64 * (of - done) as f64),
    };
    format!("{title} [{}{}] {done}/{of} {left} {name}", "=".repeat(full), " ".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_and_what_is_left() {
        let pass = FilePass { tensor: "encoder.layers.0.attention.self.query.weight", done: 5, of: 20 };
        let bar = "======                  ";
        assert_eq!(
            line("merging", pass, Duration::from_secs(10)),
            format!("merging [{bar}] 5/20 30 s left layers.0.attention.self.query.weight")
        );
        let pass = FilePass { tensor: "w", done: 0, of: 0 };
        assert!(line("measuring", pass, Duration::ZERO).ends_with("] 0/0  w"));
    }
}
