//! Rules: the base optimizer that proposes a step.

use crate::error::{Error, Result};

/// How weight decay enters a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Decay {
    /// `lr * weight_decay * W` is part of the update, outside the moments (AdamW, arXiv 1711.05101).
    Decoupled,
    /// `weight_decay * W` is added to the gradient, before the moments (classical L2 regularization).
    Coupled,
}

/// Adam with decoupled weight decay (arXiv 1711.05101), optionally AMSGrad and coupled decay.
///
/// The update, with bias-corrected moments as in `torch.optim.AdamW`:
/// `lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps) + lr * weight_decay * W`.
///
/// Under [`Ftp`](crate::Ftp) this is the paper's AdamP (not the unrelated optimizer of that name, arXiv 2006.08217).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct AdamW {
    /// Learning rate. Default 1e-3, as PyTorch.
    pub lr: f64,
    /// Decay of the first moment, in `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Weight decay. **Default 0**: a pull towards zero and a constraint around the anchor work against each other.
    pub weight_decay: f64,
    /// How the weight decay enters. Default decoupled.
    pub decay: Decay,
    /// Use the running maximum of the second moment (AMSGrad). Default false.
    pub amsgrad: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decay: Decay::Decoupled,
            amsgrad: false,
        }
    }
}

/// Stochastic gradient descent with momentum, as `torch.optim.SGD`.
///
/// `d = g + weight_decay * W`; the buffer starts as `d`, later `buf = momentum * buf + (1 - dampening) * d`; the update
/// is `lr * (d + momentum * buf)` with Nesterov, else `lr * buf`, or `lr * d` without momentum.
///
/// Under [`Ftp`](crate::Ftp) this is the paper's SGDP.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Sgd {
    /// Learning rate. Default 1e-2 (TPGM and FTP on DomainNet).
    pub lr: f64,
    /// Momentum, at least 0. Default 0.9.
    pub momentum: f64,
    /// Dampening of the momentum, at most 1. Default 0.
    pub dampening: f64,
    /// Nesterov momentum; needs momentum and no dampening. Default false.
    pub nesterov: bool,
    /// Weight decay, coupled unless `decay` says otherwise. Default 0.
    pub weight_decay: f64,
    /// How the weight decay enters. Default coupled.
    pub decay: Decay,
}

impl Default for Sgd {
    fn default() -> Self {
        Self {
            lr: 1e-2,
            momentum: 0.9,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            decay: Decay::Coupled,
        }
    }
}

impl AdamW {
    /// Sets the learning rate.
    #[must_use]
    pub fn lr(mut self, lr: f64) -> Self {
        self.lr = lr;
        self
    }

    /// Sets the weight decay.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }
}

impl Sgd {
    /// Sets the learning rate.
    #[must_use]
    pub fn lr(mut self, lr: f64) -> Self {
        self.lr = lr;
        self
    }

    /// Sets the momentum.
    #[must_use]
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// Sets the weight decay.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// Switches Nesterov momentum on.
    #[must_use]
    pub fn nesterov(mut self) -> Self {
        self.nesterov = true;
        self
    }
}

/// The base optimizer of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Rule {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
    /// Stochastic gradient descent.
    Sgd(Sgd),
}

impl From<AdamW> for Rule {
    fn from(rule: AdamW) -> Self {
        Rule::AdamW(rule)
    }
}

impl From<Sgd> for Rule {
    fn from(rule: Sgd) -> Self {
        Rule::Sgd(rule)
    }
}

impl Rule {
    /// The learning rate it was configured with.
    pub fn lr(&self) -> f64 {
        match self {
            Rule::AdamW(rule) => rule.lr,
            Rule::Sgd(rule) => rule.lr,
        }
    }

    /// The weight decay it was configured with.
    pub fn weight_decay(&self) -> f64 {
        match self {
            Rule::AdamW(rule) => rule.weight_decay,
            Rule::Sgd(rule) => rule.weight_decay,
        }
    }

    /// How its weight decay enters.
    pub fn decay(&self) -> Decay {
        match self {
            Rule::AdamW(rule) => rule.decay,
            Rule::Sgd(rule) => rule.decay,
        }
    }

    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] with the name and value of the first option outside its range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Rule::AdamW(rule) => {
                at_least_zero("AdamW::lr", rule.lr)?;
                unit_interval("AdamW::beta1", rule.beta1)?;
                unit_interval("AdamW::beta2", rule.beta2)?;
                at_least_zero("AdamW::eps", rule.eps)?;
                at_least_zero("AdamW::weight_decay", rule.weight_decay)
            }
            Rule::Sgd(rule) => {
                at_least_zero("Sgd::lr", rule.lr)?;
                at_least_zero("Sgd::momentum", rule.momentum)?;
                at_least_zero("Sgd::weight_decay", rule.weight_decay)?;
                check("Sgd::dampening", rule.dampening, "a number of at most 1", |x| x <= 1.0)?;
                let plain = rule.momentum > 0.0 && rule.dampening == 0.0;
                check(
                    "Sgd::nesterov",
                    f64::from(u8::from(rule.nesterov)),
                    "off without momentum or with dampening",
                    |x| x == 0.0 || plain,
                )
            }
        }
    }
}

pub(crate) fn check(
    option: &'static str,
    value: f64,
    requirement: &'static str,
    holds: impl Fn(f64) -> bool,
) -> Result<()> {
    if value.is_finite() && holds(value) {
        Ok(())
    } else {
        Err(Error::InvalidOption { option, value, requirement })
    }
}

pub(crate) fn at_least_zero(option: &'static str, value: f64) -> Result<()> {
    check(option, value, "a finite number of at least 0", |x| x >= 0.0)
}

pub(crate) fn above_zero(option: &'static str, value: f64) -> Result<()> {
    check(option, value, "a finite number above 0", |x| x > 0.0)
}

pub(crate) fn unit_interval(option: &'static str, value: f64) -> Result<()> {
    check(option, value, "in [0, 1)", |x| (0.0..1.0).contains(&x))
}
