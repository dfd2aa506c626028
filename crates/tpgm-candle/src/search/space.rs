//! What is searched.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// The values that a parameter may take, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Range {
    /// Real numbers above 0, even in their logarithm: learning rates, weights of losses.
    Log {
        /// Above 0.
        low: f64,
        /// Above `low`.
        high: f64,
    },
    /// Real numbers, all alike.
    Uniform {
        /// Finite.
        low: f64,
        /// Above `low`.
        high: f64,
    },
    /// Integers.
    Integer {
        /// The smallest.
        low: i64,
        /// The largest, above `low`.
        high: i64,
    },
}

impl Range {
    /// Beyond this not every integer is a number of 64 bits.
    pub(super) const LARGEST: i64 = 1 << 53;

    pub(super) fn check(&self, name: &str) -> Result<()> {
        let (low, high, good, requirement) = match *self {
            Range::Log { low, high } => {
                (low, high, 0.0 < low && low < high && high.is_finite(), "finite, above 0, and rising")
            }
            Range::Uniform { low, high } => {
                (low, high, low < high && (high - low).is_finite(), "finite and rising")
            }
            Range::Integer { low, high } => {
                let good = low < high && -Self::LARGEST <= low && high <= Self::LARGEST;
                (low as f64, high as f64, good, "rising, and within 2^53 of 0")
            }
        };
        if good { Ok(()) } else { Err(Error::Range { name: name.to_owned(), low, high, requirement }) }
    }

    /// Where the sampler looks: logarithms of a log range, an integer in the middle of its unit.
    pub(super) fn inner(&self) -> (f64, f64) {
        match *self {
            Range::Log { low, high } => (low.ln(), high.ln()),
            Range::Uniform { low, high } => (low, high),
            Range::Integer { low, high } => (low as f64 - 0.5, high as f64 + 0.5),
        }
    }

    /// The parameter's value at a point where the sampler looked.
    pub(super) fn value(&self, inner: f64) -> f64 {
        match *self {
            Range::Log { low, high } => kept(inner.exp()).clamp(low, high),
            Range::Uniform { low, high } => kept(inner).clamp(low, high),
            // Zero is added so that it has no sign.
            Range::Integer { low, high } => inner.round().clamp(low as f64, high as f64) + 0.0,
        }
    }

    /// The sampler's point of a value. The sampler's ranges do not have their upper end.
    pub(super) fn point(&self, value: f64) -> f64 {
        let (low, high) = self.inner();
        self.inner_value(value).clamp(low, high.next_down())
    }

    /// The logarithm of a value of a log range, else the value.
    pub(super) fn inner_value(&self, value: f64) -> f64 {
        if matches!(self, Range::Log { .. }) { value.ln() } else { value }
    }

    pub(super) fn contains(&self, value: f64) -> bool {
        match *self {
            Range::Log { low, high } | Range::Uniform { low, high } => (low..=high).contains(&value),
            Range::Integer { low, high } => {
                value.fract() == 0.0 && (low as f64..=high as f64).contains(&value)
            }
        }
    }
}

/// A number to ten digits, as the journal's reader will see it: a resumed study then suggests the same.
pub(super) fn kept(value: f64) -> f64 {
    serde_json::from_str(&format!("{value:.9e}")).unwrap_or(value)
}

/// Parameters by name, each with its [`Range`].
///
/// ```
/// use tpgm_candle::search::Space;
/// let space = Space::default().log("lr", 1e-6, 1e-3).uniform("weight_decay", 0.0, 1.0).integer("rank", 1, 16);
/// # assert_eq!(space.ranges().len(), 3);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Space {
    ranges: BTreeMap<String, Range>,
    /// The first name that was given twice.
    #[serde(skip)]
    twice: Option<String>,
}

impl Space {
    /// Adds a parameter. What is wrong with it is said when a study is made.
    #[must_use]
    pub fn range(mut self, name: impl Into<String>, range: Range) -> Self {
        let name = name.into();
        if self.ranges.insert(name.clone(), range).is_some() {
            self.twice.get_or_insert(name);
        }
        self
    }

    /// Adds real numbers above 0, even in their logarithm.
    #[must_use]
    pub fn log(self, name: impl Into<String>, low: f64, high: f64) -> Self {
        self.range(name, Range::Log { low, high })
    }

    /// Adds real numbers, all alike.
    #[must_use]
    pub fn uniform(self, name: impl Into<String>, low: f64, high: f64) -> Self {
        self.range(name, Range::Uniform { low, high })
    }

    /// Adds integers, both ends included.
    #[must_use]
    pub fn integer(self, name: impl Into<String>, low: i64, high: i64) -> Self {
        self.range(name, Range::Integer { low, high })
    }

    /// The parameters.
    pub fn ranges(&self) -> &BTreeMap<String, Range> {
        &self.ranges
    }

    /// Checks every range.
    ///
    /// # Errors
    ///
    /// [`Error::EmptySpace`], [`Error::DuplicateName`] or [`Error::Range`].
    pub fn validate(&self) -> Result<()> {
        if let Some(name) = &self.twice {
            return Err(Error::DuplicateName { name: name.clone() });
        }
        if self.ranges.is_empty() {
            return Err(Error::EmptySpace);
        }
        self.ranges.iter().try_for_each(|(name, range)| range.check(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_has_no_negative_zero() {
        let range = Range::Integer { low: -1, high: 3 };
        let values = [-1.4, -0.3, 0.2, 2.6].map(|inner| range.value(inner));
        assert_eq!(values, [-1.0, 0.0, 0.0, 3.0]);
        assert!(values[1].is_sign_positive(), "{:?}", values[1]);
    }
}
