//! Names of one library as those of another, by pattern.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::{OpenOptions, Weights};

/// Gives tensors other names: what matches `from` is called `to`, and each `*` of `to` stands for what the `*` at its place in
/// `from` stood for, as few characters as fit. `bert.*` to `*` takes a prefix off, `*.gamma` to `*.weight` changes an ending.
///
/// Written `from=to`:
///
/// ```
/// use tpgm_files::weight_space::Rename;
/// let rename: Rename = "*.LayerNorm.gamma=*.LayerNorm.weight".parse()?;
/// assert_eq!(rename.apply("encoder.LayerNorm.gamma").as_deref(), Some("encoder.LayerNorm.weight"));
/// assert_eq!(rename.apply("encoder.dense.weight"), None);
/// # Ok::<(), tpgm_files::weight_space::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rename {
    from: String,
    to: String,
}

impl Rename {
    /// What matches `from` is called `to`.
    ///
    /// # Errors
    ///
    /// [`Error::Rename`] unless both have the same number of `*`, or for an empty `from`.
    pub fn new(from: impl Into<String>, to: impl Into<String>) -> Result<Self> {
        let this = Self { from: from.into(), to: to.into() };
        let stars = |pattern: &str| pattern.matches('*').count();
        let problem = if this.from.is_empty() || this.to.is_empty() {
            "one side is empty"
        } else if this.from.contains('?') || this.to.contains('?') {
            "only `*` can be used here"
        } else if stars(&this.from) != stars(&this.to) {
            "both sides need the same number of `*`"
        } else {
            return Ok(this);
        };
        Err(Error::Rename { rename: this.to_string(), problem })
    }

    /// The new name; `None` if the pattern does not match the whole of `name`, or leaves nothing of it.
    pub fn apply(&self, name: &str) -> Option<String> {
        let mut pieces = self.from.split('*');
        let mut rest = name.strip_prefix(pieces.next()?)?;
        let pieces: Vec<&str> = pieces.collect();
        let mut stars = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            // The last piece is the end of the name, so its star takes what is left.
            let at = if i + 1 < pieces.len() {
                rest.find(piece)?
            } else {
                rest.len() - rest.strip_suffix(piece).map(|_| piece.len())?
            };
            stars.push(&rest[..at]);
            rest = &rest[at + piece.len()..];
        }
        if !rest.is_empty() {
            return None;
        }
        let mut to = self.to.split('*');
        let mut renamed = to.next()?.to_owned();
        for (star, piece) in stars.into_iter().zip(to) {
            renamed += star;
            renamed += piece;
        }
        (!renamed.is_empty()).then_some(renamed)
    }
}

/// Rules for the names of one or several checkpoints, and which of them were of use.
#[derive(Debug)]
pub struct Renames<'a> {
    rules: &'a [Rename],
    used: Vec<bool>,
}

impl<'a> Renames<'a> {
    /// Rules that were of no use yet.
    pub fn new(rules: &'a [Rename]) -> Self {
        Self { rules, used: vec![false; rules.len()] }
    }

    /// Opens a checkpoint with the new names of its tensors.
    ///
    /// # Errors
    ///
    /// As [`Weights::renamed_with`].
    pub fn open(&mut self, path: &Path, options: &OpenOptions) -> crate::Result<Weights> {
        Weights::renamed_with(path, options, |name| self.apply(name))
    }

    /// The name after all rules, each of which sees what those before it made.
    fn apply(&mut self, name: &str) -> String {
        let mut name = name.to_owned();
        for (rule, used) in self.rules.iter().zip(&mut self.used) {
            if let Some(new) = rule.apply(&name) {
                *used = true;
                name = new;
            }
        }
        name
    }

    /// Checks that every rule matched a tensor of one of the checkpoints that were opened, of which `first` is shown.
    ///
    /// # Errors
    ///
    /// [`tpgm_core::Error::PatternMatchesNothing`] with the rule.
    pub fn check_used(&self, first: &Weights) -> Result<()> {
        let Some((rule, _)) = self.rules.iter().zip(&self.used).find(|(_, used)| !**used) else {
            return Ok(());
        };
        Err(tpgm_core::Error::PatternMatchesNothing {
            pattern: rule.to_string(),
            tensors: first.names().count(),
            first: first.names().next().unwrap_or_default().to_owned(),
        }
        .into())
    }
}

impl fmt::Display for Rename {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.from, self.to)
    }
}

impl FromStr for Rename {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((from, to)) => Self::new(from, to),
            None => Err(Error::Rename { rename: text.to_owned(), problem: "it has no `=`" }),
        }
    }
}

impl TryFrom<String> for Rename {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Rename> for String {
    fn from(rename: Rename) -> Self {
        rename.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(rename: &str, name: &str) -> Option<String> {
        rename.parse::<Rename>().unwrap().apply(name)
    }

    #[test]
    fn stars_carry_what_they_stood_for() {
        for (rename, name, expected) in [
            ("bert.*=*", "bert.encoder.w", Some("encoder.w")),
            ("bert.*=*", "roberta.bert.w", None),
            ("bert.*=*", "bert.", None),
            ("*=model.*", "w", Some("model.w")),
            ("*.gamma=*.weight", "a.gamma", Some("a.weight")),
            ("*.gamma=*.weight", "a.gamma.b", None),
            ("*.gamma=*.weight", "a.gamma.gamma", Some("a.gamma.weight")),
            ("a.*.b.*=*/*", "a.x.b.y.b.z", Some("x/y.b.z")),
            ("aa*aa=*", "aaa", None),
            ("head=classifier", "head", Some("classifier")),
            ("head=classifier", "heads", None),
        ] {
            assert_eq!(apply(rename, name).as_deref(), expected, "{rename} {name}");
        }
    }

    #[test]
    fn rules_are_applied_in_turn() {
        let rules = ["bert.*=*", "*.gamma=*.weight", "never.*=*"].map(|rule| rule.parse().unwrap());
        let mut renames = Renames::new(&rules);
        assert_eq!(renames.apply("bert.a.gamma"), "a.weight");
        assert_eq!(renames.apply("b.beta"), "b.beta");
        assert_eq!(renames.used, [true, true, false]);
    }

    #[test]
    fn senseless_patterns_are_named() {
        for (text, problem) in [
            ("a", "no `=`"),
            ("=b", "empty"),
            ("a=", "empty"),
            ("a.*=b", "same number"),
            ("a?=b", "only `*`"),
        ] {
            let error = text.parse::<Rename>().unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains(text), "{error}");
        }
    }
}
