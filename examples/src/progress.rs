//! Progress bars and lines on the terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where bars and lines go. Clones share the terminal, also between threads.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
}

impl Progress {
    /// Bars on standard error where that is a terminal; lines on standard output.
    pub fn terminal() -> Self {
        Self { bars: MultiProgress::new() }
    }

    /// No bars: for tests.
    pub fn hidden() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()) }
    }

    /// A bar of `steps` steps.
    pub fn bar(&self, title: &str, steps: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix:>16} {wide_bar} {pos}/{len} {msg:<24} {eta:>4}");
        let bar = ProgressBar::new(steps).with_prefix(title.to_owned());
        let bar = self.bars.add(bar.with_style(style.expect("the template is valid")));
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }

    /// A line above the bars.
    #[expect(clippy::print_stdout, reason = "the results of an example are for the terminal")]
    pub fn line(&self, text: impl AsRef<str>) {
        self.bars.suspend(|| println!("{}", text.as_ref()));
    }
}
