//! Tensors chosen by patterns.

use std::collections::BTreeSet;

use wildmatch::WildMatch;

use super::error::Result;
use crate::Weights;

/// Patterns of names: `*` stands for any number of characters, `?` for one.
pub(super) struct Patterns<'a>(&'a [String]);

impl<'a> Patterns<'a> {
    pub(super) fn new(patterns: &'a [String]) -> Self {
        Self(patterns)
    }

    /// The names that match a pattern. A pattern that matches none of them is an error.
    pub(super) fn matches<'n>(
        &self,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Result<BTreeSet<&'n str>> {
        let mut matched = BTreeSet::new();
        for pattern in self.0 {
            let matcher = WildMatch::new(pattern);
            let before =
                names.clone().filter(|name| matcher.matches(name)).map(|name| matched.insert(name)).count();
            if before == 0 {
                return Err(tpgm_core::Error::PatternMatchesNothing {
                    pattern: pattern.clone(),
                    tensors: names.clone().count(),
                    first: names.clone().next().unwrap_or_default().to_owned(),
                }
                .into());
            }
        }
        Ok(matched)
    }
}

/// The tensors of a checkpoint that match a pattern (`*`, `?`).
///
/// # Errors
///
/// [`tpgm_core::Error::PatternMatchesNothing`] for a pattern that matches none.
pub fn matching<'w>(weights: &'w Weights, patterns: &[String]) -> Result<BTreeSet<&'w str>> {
    Patterns::new(patterns).matches(weights.names())
}
