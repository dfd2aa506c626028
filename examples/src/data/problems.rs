//! Samples that cannot be read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow, bail};

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

    /// Adds the samples that were passed over to an error: they are often its reason.
    ///
    /// # Errors
    ///
    /// That of `result`.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| if self.count() > 0 { anyhow!("{error:#}\n{self}") } else { error })
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
    fn they_explain_an_error() {
        let problems = Problems::default();
        let none = || problems.explain(Err::<(), _>(anyhow!("0 classes").context("t.csv")));
        assert_eq!(none().unwrap_err().root_cause().to_string(), "0 classes");
        problems.note("t.csv:1".to_owned(), "no text").unwrap();
        assert_eq!(
            none().unwrap_err().to_string(),
            "t.csv: 0 classes\n1 samples were passed over:\n  t.csv:1: no text"
        );
        assert_eq!(problems.explain(Ok(3)).unwrap(), 3);
    }

    #[test]
    fn they_are_errors_if_asked_for() {
        let error = Problems::new(Strictness::Fail).note("a.jpg".to_owned(), "cut off").unwrap_err();
        assert_eq!(error.to_string(), "a.jpg: cut off");
    }
}
