//! Learning rates over time.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::builder::check;
use super::error::Result;

/// A learning rate as a pure function of the step, counted from 0: nothing to save but this description and the step.
///
/// ```
/// use tpgm_candle::Schedule;
/// let schedule = Schedule::cosine(1e-3, 1000).warmup(99);
/// assert_eq!(schedule.lr(0), 1e-5); // 1/100 of it
/// assert_eq!(schedule.lr(99), 1e-3);
/// assert_eq!(schedule.lr(1000), 0.0);
/// // per step: opt.set_learning_rate(schedule.lr(opt.steps()));
/// ```
///
/// # Warm-up
///
/// With a warm-up of `w` steps the learning rate is `lr * (step + 1) / (w + 1)` for `step < w`: it rises evenly, is never
/// zero, and reaches `lr` at step `w`. The curve of [`Schedule::linear`] and [`Schedule::cosine`] begins there and still
/// ends at the given step; the positions of [`Schedule::step`] and [`Schedule::multi_step`] are counted from step 0.
/// [`Schedule::one_cycle`] has its own warm-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    lr: f64,
    #[serde(default)]
    warmup: u64,
    curve: Curve,
}

/// The curve after warm-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Curve {
    Constant,
    Linear { end_lr: f64, steps: u64 },
    Cosine { min_lr: f64, steps: u64 },
    OneCycle { steps: u64, warm_share: f64, start_factor: f64, end_factor: f64, anneal: Anneal },
    Step { every: u64, factor: f64 },
    MultiStep { milestones: Vec<u64>, factor: f64 },
}

/// How [`Schedule::one_cycle`] goes from one learning rate to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// Along half a cosine wave.
    #[default]
    Cosine,
    /// Along a line.
    Linear,
}

impl Schedule {
    fn new(lr: f64, curve: Curve) -> Self {
        Self { lr, warmup: 0, curve }
    }

    /// Always `lr`.
    pub fn constant(lr: f64) -> Self {
        Self::new(lr, Curve::Constant)
    }

    /// From `lr` along a line to `end_lr` at step `steps`, and `end_lr` from then on.
    pub fn linear(lr: f64, end_lr: f64, steps: u64) -> Self {
        Self::new(lr, Curve::Linear { end_lr, steps })
    }

    /// From `lr` along half a cosine wave to 0 (see [`Schedule::min_lr`]) at step `steps`, and that from then on:
    /// `min_lr + (lr - min_lr) * (1 + cos(pi * step / steps)) / 2` (SGDR, arXiv 1608.03983, equation 5, without restarts;
    /// `CosineAnnealingLR` of PyTorch).
    pub fn cosine(lr: f64, steps: u64) -> Self {
        Self::new(lr, Curve::Cosine { min_lr: 0.0, steps })
    }

    /// One cycle (arXiv 1708.07120, as PyTorch's `OneCycleLR`): from `max_lr / 25` up to `max_lr` in the first 30 % of
    /// `steps` steps, then down to `max_lr / 25e4` at the last one, both along half a cosine wave.
    pub fn one_cycle(max_lr: f64, steps: u64) -> Self {
        let curve = Curve::OneCycle {
            steps,
            warm_share: 0.3,
            start_factor: 1.0 / 25.0,
            end_factor: 1.0 / 25.0 / 1e4,
            anneal: Anneal::Cosine,
        };
        Self::new(max_lr, curve)
    }

    /// `lr * factor^floor(step / every)`.
    pub fn step(lr: f64, every: u64, factor: f64) -> Self {
        Self::new(lr, Curve::Step { every, factor })
    }

    /// `lr` times `factor` for every milestone that is not above the step. Milestones increase.
    pub fn multi_step(lr: f64, milestones: impl Into<Vec<u64>>, factor: f64) -> Self {
        Self::new(lr, Curve::MultiStep { milestones: milestones.into(), factor })
    }

    /// Sets the steps of warm-up. Default 0.
    #[must_use]
    pub fn warmup(mut self, steps: u64) -> Self {
        self.warmup = steps;
        self
    }

    /// Sets the learning rate at which [`Schedule::cosine`] ends; other curves have none and stay as they are.
    #[must_use]
    pub fn min_lr(mut self, lr: f64) -> Self {
        if let Curve::Cosine { min_lr, .. } = &mut self.curve {
            *min_lr = lr;
        }
        self
    }

    /// Sets the shape of [`Schedule::one_cycle`]: the share of steps that go up, the first and the last learning rate as
    /// factors of the largest, and how to go. Other curves stay as they are.
    #[must_use]
    pub fn cycle(mut self, warm_share: f64, start_factor: f64, end_factor: f64, anneal: Anneal) -> Self {
        if let Curve::OneCycle { steps, .. } = self.curve {
            self.curve = Curve::OneCycle { steps, warm_share, start_factor, end_factor, anneal };
        }
        self
    }

    /// The learning rate of step `step`, counted from 0. After its end a curve keeps its last value.
    ///
    /// A schedule that [`Schedule::validate`] refuses gives some number, possibly NaN, which a step then refuses.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / (self.warmup as f64 + 1.0);
        }
        match &self.curve {
            Curve::Constant => self.lr,
            Curve::Linear { end_lr, steps } => {
                let done = self.progress(step, *steps);
                self.lr * (1.0 - done) + end_lr * done
            }
            Curve::Cosine { min_lr, steps } => cosine(self.lr, *min_lr, self.progress(step, *steps)),
            Curve::OneCycle { steps, warm_share, start_factor, end_factor, anneal } => {
                let last = *steps as f64 - 1.0;
                let (top, step) = ((warm_share * *steps as f64 - 1.0).max(0.0), (step as f64).min(last));
                let go: fn(f64, f64, f64) -> f64 = match anneal {
                    Anneal::Cosine => cosine,
                    Anneal::Linear => |from, to, done| from + (to - from) * done,
                };
                if step < top {
                    go(start_factor * self.lr, self.lr, step / top)
                } else if last > top {
                    go(self.lr, end_factor * self.lr, (step - top) / (last - top))
                } else {
                    self.lr
                }
            }
            Curve::Step { every, factor } => self.lr * power(*factor, step.checked_div(*every).unwrap_or(0)),
            Curve::MultiStep { milestones, factor } => {
                let passed = milestones.iter().filter(|milestone| **milestone <= step).count();
                self.lr * power(*factor, passed as u64)
            }
        }
    }

    /// Share of the way from the end of warm-up to `steps`, at most 1.
    fn progress(&self, step: u64, steps: u64) -> f64 {
        let (done, all) = ((step - self.warmup) as f64, steps.saturating_sub(self.warmup) as f64);
        if done >= all { 1.0 } else { done / all }
    }

    /// Checks every option.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](tpgm_core::Error::InvalidOption) with the first option outside its range: learning rates are at
    /// least 0, factors and shares in `[0, 1]`, lengths at least 1 and longer than the warm-up, milestones increase.
    pub fn validate(&self) -> Result<()> {
        let lr = |option, value| check(option, value, "a finite number of at least 0", |x| x >= 0.0);
        let factor = |option, value| check(option, value, "in [0, 1]", |x| (0.0..=1.0).contains(&x));
        let warmup = self.warmup as f64;
        let length = |steps: u64| {
            check("Schedule steps", steps as f64, "longer than the warm-up, at least 1", |x| {
                x >= 1.0 && x > warmup
            })
        };
        lr("Schedule lr", self.lr)?;
        match &self.curve {
            Curve::Constant => Ok(()),
            Curve::Linear { end_lr, steps } => {
                lr("Schedule end_lr", *end_lr)?;
                length(*steps)
            }
            Curve::Cosine { min_lr, steps } => {
                lr("Schedule min_lr", *min_lr)?;
                length(*steps)
            }
            Curve::OneCycle { steps, warm_share, start_factor, end_factor, .. } => {
                check("Schedule warmup", warmup, "0: one cycle has its own warm-up", |x| x == 0.0)?;
                factor("Schedule warm_share", *warm_share)?;
                factor("Schedule start_factor", *start_factor)?;
                factor("Schedule end_factor", *end_factor)?;
                length(*steps)
            }
            Curve::Step { every, factor: f } => {
                check("Schedule every", *every as f64, "at least 1", |x| x >= 1.0)?;
                factor("Schedule factor", *f)
            }
            Curve::MultiStep { milestones, factor: f } => {
                let unordered = milestones.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
                let value = unordered.unwrap_or(0) as f64;
                check("Schedule milestones", value, "above the one before", |_| unordered.is_none())?;
                factor("Schedule factor", *f)
            }
        }
    }
}

/// From `from` to `to` along half a cosine wave, `done` in `[0, 1]`.
fn cosine(from: f64, to: f64, done: f64) -> f64 {
    to + (from - to) * (1.0 + (PI * done).cos()) / 2.0
}

fn power(factor: f64, n: u64) -> f64 {
    factor.powi(n.min(i32::MAX as u64) as i32)
}
