//! Ctrl-C as a request: the run saves at the next step and says how to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

/// Steps that may still be taken. Clones share the request.
#[derive(Debug, Clone)]
pub struct Stop {
    steps_left: Arc<AtomicU64>,
}

impl Stop {
    /// Never, until [`Stop::request`].
    pub fn never() -> Self {
        Self::after(u64::MAX)
    }

    /// As if Ctrl-C were pressed after this many steps of all threads together.
    pub fn after(steps: u64) -> Self {
        Self { steps_left: Arc::new(AtomicU64::new(steps)) }
    }

    /// Asks to stop.
    pub fn request(&self) {
        self.steps_left.store(0, Ordering::SeqCst);
    }

    /// Whether to stop instead of taking a step; counts the step if not.
    pub fn before_step(&self) -> bool {
        let one_less = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        self.steps_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err()
    }

    /// Whether a stop was asked for.
    pub fn requested(&self) -> bool {
        self.steps_left.load(Ordering::SeqCst) == 0
    }

    /// The first Ctrl-C asks to stop; the second ends the process at once.
    ///
    /// # Errors
    ///
    /// The process has a handler already.
    pub fn on_ctrl_c(&self) -> Result<()> {
        let stop = self.clone();
        ctrlc::set_handler(move || {
            if stop.requested() {
                std::process::exit(130);
            }
            stop.request();
        })
        .context("cannot listen for Ctrl-C")
    }
}

/// The error of a run that was asked to stop.
#[derive(Debug)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_after_the_given_steps_and_for_every_clone() {
        let stop = Stop::after(2);
        let clone = stop.clone();
        assert_eq!([stop.before_step(), clone.before_step(), stop.before_step()], [false, false, true]);
        assert!(clone.requested());
    }

    #[test]
    fn a_request_stops_what_would_never_stop() {
        let stop = Stop::never();
        assert!(!stop.before_step() && !stop.requested());
        stop.request();
        assert!(stop.before_step());
    }
}
