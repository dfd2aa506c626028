//! Settings that are given, instead of searched.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// Values of parameters, of which every combination is tried once. The last parameter changes fastest.
///
/// ```
/// use tpgm_candle::search::{Grid, Study};
///
/// let mut study = Study::grid(Grid::default().values("lr", [1e-4, 1e-3]).values("alpha", [0.1, 0.3]))?;
/// while study.left() > Some(0) {
///     let trial = study.ask()?;
///     let loss = (trial.value("lr")?.log10() + 3.0).powi(2) + trial.value("alpha")?; // a short training
///     study.tell(&trial, loss)?;
/// }
/// let best = study.best().expect("trials were told");
/// assert_eq!((best.trial, best.values["lr"], best.values["alpha"]), (2, 1e-3, 0.1));
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grid {
    axes: Vec<(String, Vec<f64>)>,
}

impl Grid {
    /// Adds a parameter. What is wrong with it is said when a study is made.
    #[must_use]
    pub fn values(mut self, name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        self.axes.push((name.into(), values.into_iter().collect()));
        self
    }

    /// Number of combinations.
    pub fn len(&self) -> u64 {
        if self.axes.is_empty() {
            0
        } else {
            self.axes.iter().map(|(_, values)| values.len() as u64).product()
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks the parameters.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyGrid`], [`Error::DuplicateName`] or [`Error::GridValue`].
    pub fn validate(&self) -> Result<()> {
        if self.axes.is_empty() {
            return Err(Error::EmptyGrid { name: None });
        }
        for (at, (name, values)) in self.axes.iter().enumerate() {
            if self.axes[..at].iter().any(|(other, _)| other == name) {
                return Err(Error::DuplicateName { name: name.clone() });
            }
            if values.is_empty() {
                return Err(Error::EmptyGrid { name: Some(name.clone()) });
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::GridValue { name: name.clone(), value: *value });
            }
        }
        Ok(())
    }

    /// A combination by its number, below [`Grid::len`].
    pub(super) fn point(&self, number: u64) -> BTreeMap<String, f64> {
        let mut rest = number;
        let mut value = |(name, values): &(String, Vec<f64>)| {
            let count = values.len() as u64;
            let value = values[(rest % count) as usize];
            rest /= count;
            (name.clone(), value)
        };
        self.axes.iter().rev().map(&mut value).collect()
    }
}
