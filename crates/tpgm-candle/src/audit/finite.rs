//! Gradients against differences of the loss.

use candle_core::{DType, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tpgm_core::Buffer;

use super::error::{Error, Result, SHOWN};
use super::loss_with;
use crate::memory::{to_buffer, to_tensor};
use crate::params::Param;

/// A gradient that differs from finite differences of the loss. Both are derivatives along one direction: some
/// entries of the tensor up, some down.
#[derive(Debug, Clone, PartialEq)]
pub struct WrongGradient {
    /// The tensor.
    pub name: String,
    /// What the gradient says.
    pub gradient: f64,
    /// What the loss does.
    pub difference: f64,
}

#[derive(Debug)]
pub(super) struct FiniteDifferences {
    /// Entries that are moved at a time.
    pub(super) entries: usize,
    /// By how much.
    pub(super) eps: f64,
}

/// Some entries of a tensor and the way each is moved: 1 or -1.
type Direction = Vec<(usize, f64)>;

/// A derivative along a direction, twice.
struct Comparison {
    gradient: f64,
    difference: f64,
    /// How far the two may be apart for reasons other than a wrong gradient.
    uncertainty: f64,
}

impl FiniteDifferences {
    /// Names of the tensors about which differences say nothing.
    pub(super) fn check(
        &self,
        gradients: &[(&Param, Buffer)],
        value: f64,
        loss: &mut dyn FnMut() -> candle_core::Result<Tensor>,
    ) -> Result<Vec<String>> {
        let again = loss_with(&[], loss)?;
        if again != value {
            return Err(Error::RandomLoss { first: value, second: again });
        }
        let (mut wrong, mut inconclusive) = (vec![], vec![]);
        for (param, gradient) in gradients {
            let gradient = gradient.to_f64();
            if gradient.is_empty() {
                continue;
            }
            let mut says_something = false;
            for direction in [self.largest(&gradient), self.random(&gradient)] {
                let compared = self.compare(param, &gradient, &direction, value, loss)?;
                says_something |= compared.says_something();
                if !compared.agrees(tolerance(param.var().dtype())) {
                    let Comparison { gradient, difference, .. } = compared;
                    wrong.push(WrongGradient { name: param.name().to_owned(), gradient, difference });
                    break;
                }
            }
            if !says_something {
                inconclusive.push(param.name().to_owned());
            }
        }
        if wrong.is_empty() { Ok(inconclusive) } else { Err(Error::WrongGradients { wrong }) }
    }

    /// Uphill along the largest entries: the clearest signal.
    fn largest(&self, gradient: &[f64]) -> Direction {
        let count = self.entries.min(gradient.len());
        let mut order: Vec<usize> = (0..gradient.len()).collect();
        order.select_nth_unstable_by(count - 1, |&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
        order.truncate(count);
        order.into_iter().map(|i| (i, if gradient[i] < 0.0 { -1.0 } else { 1.0 })).collect()
    }

    /// Anywhere: finds entries that should have a gradient and have none.
    fn random(&self, gradient: &[f64]) -> Direction {
        let mut rng = ChaCha8Rng::seed_from_u64(gradient.len() as u64);
        let mut chosen = std::collections::BTreeMap::new();
        for _ in 0..self.entries {
            let sign = if rng.random() { 1.0 } else { -1.0 };
            chosen.insert(rng.random_range(0..gradient.len()), sign);
        }
        chosen.into_iter().collect()
    }

    fn compare(
        &self,
        param: &Param,
        gradient: &[f64],
        direction: &Direction,
        value: f64,
        loss: &mut dyn FnMut() -> candle_core::Result<Tensor>,
    ) -> Result<Comparison> {
        let (_, wide) = self.slopes(param, gradient, direction, self.eps, loss)?;
        let half = 0.5 * self.eps;
        let (slope, narrow) = self.slopes(param, gradient, direction, half, loss)?;
        // A difference of step h is off by a multiple of h^2 where the loss is smooth: two steps cancel that and tell
        // its size. Near a kink both mean little, and differ.
        let difference = (4.0 * narrow - wide) / 3.0;
        // Rounding of the loss, in units of the last place: the sums behind it lose a few.
        let rounding = 16.0 * unit(param.var().dtype()) * value.abs() / half;
        Ok(Comparison { gradient: slope, difference, uncertainty: (narrow - wide).abs() + rounding })
    }

    /// Slope along a direction, by the gradient and by the loss at both ends of a step.
    fn slopes(
        &self,
        param: &Param,
        gradient: &[f64],
        direction: &Direction,
        step: f64,
        loss: &mut dyn FnMut() -> candle_core::Result<Tensor>,
    ) -> Result<(f64, f64)> {
        let var = param.var();
        let values = to_buffer(param.name(), var)?.to_f64();
        let dtype = crate::memory::core_dtype(param.name(), var.dtype())?;
        let moved = |step: f64| {
            let mut values = values.clone();
            direction.iter().for_each(|&(i, sign)| values[i] += sign * step);
            Buffer::from_f64(dtype, &values)
        };
        let (up, down) = (moved(step), moved(-step));
        let mut at = |buffer: &Buffer| {
            let tensor = to_tensor(buffer.as_slice(), var.shape(), var.device())?;
            loss_with(&[(param, tensor)], loss)
        };
        let difference = at(&up)? - at(&down)?;
        // The steps that were taken, after rounding to the type of the weights.
        let (up, down) = (up.as_slice(), down.as_slice());
        let predicted: f64 = direction.iter().map(|&(i, _)| gradient[i] * (up.get(i) - down.get(i))).sum();
        Ok((predicted / (2.0 * step), difference / (2.0 * step)))
    }
}

impl Comparison {
    fn size(&self) -> f64 {
        self.gradient.abs().max(self.difference.abs())
    }

    fn agrees(&self, tolerance: f64) -> bool {
        (self.gradient - self.difference).abs() <= tolerance * self.size() + self.uncertainty
    }

    fn says_something(&self) -> bool {
        self.uncertainty < 0.25 * self.size()
    }
}

/// Spacing of numbers just above 1, halved.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON / 2.0,
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => f64::from(f32::EPSILON) / 2.0,
    }
}

/// Relative error of a gradient that is computed in this type, at most. In f64 operations could do better, but candle's
/// `gelu_erf` has a constant with six digits in its backward pass.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-5,
        DType::F16 => 5e-2,
        DType::BF16 => 1e-1,
        _ => 1e-2,
    }
}

/// The message of [`Error::WrongGradients`].
pub(super) fn wrong_gradients_text(wrong: &[WrongGradient]) -> String {
    let mut text = format!("{} gradients differ from finite differences of the loss:", wrong.len());
    for WrongGradient { name, gradient, difference } in wrong.iter().take(SHOWN) {
        text += &format!("\n  {name}: the gradient says {gradient:.4e}, the loss {difference:.4e}");
    }
    if wrong.len() > SHOWN {
        text += &format!("\n  and {} more", wrong.len() - SHOWN);
    }
    text + "\nan operation between these and the loss has a wrong backward pass \
            (candle's max_pool2d is known for this: use that of `tpgm_candle::nn`)"
}
