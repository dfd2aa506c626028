//! What an optimizer was made with, as data.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tpgm_core::{AdamW, Constraint, EngineOptions, Gradients, Group, Rule};

use super::error::{Error, Result};

/// Everything that decides what a [`RobustOptimizer`](crate::RobustOptimizer) computes, besides weights, anchors and
/// state. Saved beside the state, it tells whether the state fits.
///
/// The number of threads is not part of it: it changes no bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct OptimizerConfig {
    /// The rule. Default [`AdamW`] with its defaults.
    pub rule: Rule,
    /// The constraint. Default none.
    pub constraint: Constraint,
    /// Groups in order, those that mark zero and missing anchors included.
    pub groups: Vec<Group>,
    /// Masters of half-precision weights, and the size of a piece of work.
    pub engine: EngineOptions,
    /// Bound of the global gradient norm. Default none.
    pub max_grad_norm: Option<f64>,
    /// Batches whose mean gradient makes one step, at least 1. Default 1.
    pub accumulate: usize,
    /// What losses are multiplied by before the backward pass, and gradients divided by after it. Default 1.
    pub loss_scale: f64,
    /// Whether gradients are checked. Default: they are.
    pub gradients: Gradients,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            rule: AdamW::default().into(),
            constraint: Constraint::None,
            groups: Vec::new(),
            engine: EngineOptions::default(),
            max_grad_norm: None,
            accumulate: 1,
            loss_scale: 1.0,
            gradients: Gradients::default(),
        }
    }
}

impl OptimizerConfig {
    /// A rule under a constraint, everything else at its default.
    pub fn new(rule: impl Into<Rule>, constraint: impl Into<Constraint>) -> Self {
        Self { rule: rule.into(), constraint: constraint.into(), ..Self::default() }
    }

    /// Makes sure that state saved with `saved` may be loaded here.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigDiffers`] with the first option that differs.
    pub fn check(&self, saved: &OptimizerConfig) -> Result<()> {
        check_config(self, saved)
    }
}

/// Compares two configurations of the same type option by option.
pub(crate) fn check_config<T: Serialize>(here: &T, saved: &T) -> Result<()> {
    let json = |config: &T| serde_json::to_value(config).expect("a configuration is plain data");
    match first_difference(&json(saved), &json(here), "") {
        None => Ok(()),
        Some((option, saved, here)) => {
            Err(Error::ConfigDiffers { option, saved: saved.to_string(), here: here.to_string() })
        }
    }
}

fn first_difference(saved: &Value, here: &Value, path: &str) -> Option<(String, Value, Value)> {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let missing = &Value::Null;
    match (saved, here) {
        (Value::Object(saved), Value::Object(here)) => {
            let mut keys: Vec<&String> = here.keys().collect();
            keys.extend(saved.keys().filter(|key| !here.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let (saved, here) = (saved.get(key).unwrap_or(missing), here.get(key).unwrap_or(missing));
                first_difference(saved, here, &below(key))
            })
        }
        (Value::Array(saved), Value::Array(here)) => (0..saved.len().max(here.len())).find_map(|i| {
            let (saved, here) = (saved.get(i).unwrap_or(missing), here.get(i).unwrap_or(missing));
            first_difference(saved, here, &below(&i.to_string()))
        }),
        (Value::Number(a), Value::Number(b)) if same(a.as_f64(), b.as_f64()) => None,
        (saved, here) if saved == here => None,
        (saved, here) => Some((path.to_owned(), saved.clone(), here.clone())),
    }
}

/// A decimal number that was written and read again may be off by a unit in the last place.
fn same(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() <= 4.0 * f64::EPSILON * a.abs().max(b.abs()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use tpgm_core::{Ftp, Sgd};

    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let here = OptimizerConfig::new(AdamW::default().lr(0.1), Ftp { k: 0.5, ..Ftp::default() });
        assert!(here.check(&here).is_ok());
        let saved = OptimizerConfig::new(AdamW::default().lr(0.1), Ftp::default());
        assert_eq!(
            here.check(&saved).unwrap_err().to_string(),
            "the saved configuration has `constraint.ftp.k` = 1.0, but here it is 0.5"
        );
        let saved = OptimizerConfig { rule: Sgd::default().into(), ..here.clone() };
        let error = here.check(&saved).unwrap_err().to_string();
        assert!(error.contains("`rule.adamw` = null"), "{error}");
        let saved = OptimizerConfig { groups: vec![Group::new("a")], ..here.clone() };
        let error = here.check(&saved).unwrap_err().to_string();
        assert!(error.contains("`groups.0`") && error.ends_with("here it is null"), "{error}");
    }

    #[test]
    fn a_configuration_survives_json() {
        let config = OptimizerConfig {
            groups: vec![Group::new("head.*").no_anchor().lr(1e-2)],
            max_grad_norm: Some(0.3),
            accumulate: 4,
            ..OptimizerConfig::new(AdamW::default().lr(3.3e-4), Ftp::default())
        };
        let back: OptimizerConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        config.check(&back).unwrap();
        let empty: OptimizerConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, OptimizerConfig::default());
    }
}
