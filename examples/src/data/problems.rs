//! Samples that cannot be read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

/// What a sample that cannot be read means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// It is passed over, counted and named.
    #[default]
    PassOver,
    /// It is an error.
    Fail,
}

/// The samples that could not be read, by name. Shared between threads.
#[derive(Debug, Default)]
pub struct Problems {
    strictness: Strictness,
    found: Mutex<BTreeMap<String, String>>,
}

impl Problems {
    /// None so far.
    pub fn new(strictness: Strictness) -> Self {
        Self { strictness, found: Mutex::default() }
    }

    /// Notes that `sample` (a file, or a file and a line) is unusable, and why. The same sample counts once.
    ///
    /// # Errors
    ///
    /// If it is not to be passed over.
    pub fn note(&self, sample: String, why: impl fmt::Display) -> Result<()> {
        if self.strictness == Strictness::Fail {
            bail!("{sample}: {why}");
        }
        self.found.lock().unwrap_or_else(PoisonError::into_inner).entry(sample).or_insert(why.to_string());
        Ok(())
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// How many samples are named; the rest is only counted.
const NAMED: usize = 5;

impl fmt::Display for Problems {
    /// `2 samples were passed over:` and the first few on lines of their own; nothing if there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_empty() {
            return Ok(());
        }
        write!(f, "{} samples were passed over:", found.len())?;
        found.iter().take(NAMED).try_for_each(|(sample, why)| write!(f, "\n  {sample}: {why}"))?;
        match found.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_counted_once_and_the_first_few_are_named() {
        let problems = Problems::default();
        assert_eq!(problems.to_string(), "");
        for sample in [3, 1, 1, 2, 4, 5, 6] {
            problems.note(format!("train.csv:{sample}"), "no text").unwrap();
        }
        assert_eq!(problems.count(), 6);
        let text = problems.to_string();
        assert!(text.starts_with("6 samples were passed over:\n  train.csv:1: no text\n"), "{text}");
        assert!(text.ends_with("train.csv:5: no text\n  and 1 more"), "{text}");
    }

    #[test]
    fn they_are_errors_if_asked_for() {
        let error = Problems::new(Strictness::Fail).note("a.jpg".to_owned(), "cut off").unwrap_err();
        assert_eq!(error.to_string(), "a.jpg: cut off");
    }
}
