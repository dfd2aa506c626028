//! Progress bars and lines on the terminal.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where bars and lines go. Clones share the terminal, also between threads.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
    /// The lines so far, if they are kept.
    kept: Option<Arc<Mutex<Vec<String>>>>,
}

impl Progress {
    /// Bars on standard error where that is a terminal; lines on standard output.
    pub fn terminal() -> Self {
        Self { bars: MultiProgress::new(), kept: None }
    }

    /// No bars, and lines are kept: for tests.
    pub fn hidden() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        Self { bars, kept: Some(Arc::default()) }
    }

    /// The lines so far of [`Progress::hidden`].
    pub fn lines(&self) -> String {
        let kept =
            self.kept.as_ref().map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner).join("\n"));
        kept.unwrap_or_default()
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
        if let Some(kept) = &self.kept {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(text.as_ref().to_owned());
        }
    }
}
