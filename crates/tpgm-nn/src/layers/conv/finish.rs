//! What follows a convolution while its result is in the cache: the shift of each channel, and the activation.

use super::layout::grown;
use crate::layers::activation::{between, hard_swish_at};
use crate::layers::conv_norm::ConvActivation;
use crate::layers::float::{Float, logistic, vectorized};

impl ConvActivation {
    /// Whether the slope is known from the result. If not, what the activation was applied to is kept.
    pub(super) fn slope_from_result(self) -> bool {
        !matches!(self, ConvActivation::HardSwish | ConvActivation::Silu)
    }
}

vectorized! {
    /// Adds the shift of each channel to rows of channels.
    pub(super) fn add_shift<C>(shift: &[C], y: &mut [C]) {
        for y in y.chunks_mut(shift.len().max(1)) {
            for (y, &shift) in y.iter_mut().zip(shift) {
                *y += shift;
            }
        }
    }
}

vectorized! {
    /// Adds the shift of each channel to rows of channels, and applies an activation.
    pub(super) fn shift_and_activate<C>(shift: &[C], activation: ConvActivation, y: &mut [C]) {
        let six = C::from_f64(6.0);
        for y in y.chunks_mut(shift.len().max(1)) {
            let pairs = y.iter_mut().zip(shift);
            match activation {
                ConvActivation::None => pairs.for_each(|(y, &shift)| *y += shift),
                ConvActivation::Relu => pairs.for_each(|(y, &shift)| {
                    let x = *y + shift;
                    *y = if x < C::ZERO { C::ZERO } else { x };
                }),
                ConvActivation::Relu6 => pairs.for_each(|(y, &shift)| *y = between(*y + shift, C::ZERO, six)),
                ConvActivation::HardSwish => pairs.for_each(|(y, &shift)| *y = hard_swish_at(*y + shift).0),
                ConvActivation::Silu => pairs.for_each(|(y, &shift)| {
                    let x = *y + shift;
                    *y = x * logistic(x).0;
                }),
            }
        }
    }
}

vectorized! {
    /// The activation of what was kept of it.
    pub(super) fn activate<C>(activation: ConvActivation, kept: &[C], y: &mut [C]) {
        let pairs = y.iter_mut().zip(kept);
        match activation {
            ConvActivation::HardSwish => pairs.for_each(|(y, &x)| *y = hard_swish_at(x).0),
            ConvActivation::Silu => pairs.for_each(|(y, &x)| *y = x * logistic(x).0),
            // The result itself is kept.
            ConvActivation::None | ConvActivation::Relu | ConvActivation::Relu6 => y.copy_from_slice(kept),
        }
    }
}

vectorized! {
    /// Applies an activation in place.
    pub(super) fn activate_in_place<C>(activation: ConvActivation, y: &mut [C]) {
        let six = C::from_f64(6.0);
        match activation {
            ConvActivation::None => {}
            ConvActivation::Relu => y.iter_mut().for_each(|y| *y = if *y < C::ZERO { C::ZERO } else { *y }),
            ConvActivation::Relu6 => y.iter_mut().for_each(|y| *y = between(*y, C::ZERO, six)),
            ConvActivation::HardSwish => y.iter_mut().for_each(|y| *y = hard_swish_at(*y).0),
            ConvActivation::Silu => y.iter_mut().for_each(|y| *y = *y * logistic(*y).0),
        }
    }
}

vectorized! {
    /// The gradient in front of an activation, from the one behind it.
    pub(super) fn slope<C>(activation: ConvActivation, kept: &[C], grad: &[C], to: &mut [C]) {
        let six = C::from_f64(6.0);
        let all = to.iter_mut().zip(grad).zip(kept);
        match activation {
            ConvActivation::None => to.copy_from_slice(grad),
            ConvActivation::Relu => all.for_each(|((to, &grad), &y)| *to = if y > C::ZERO { grad } else { C::ZERO }),
            ConvActivation::Relu6 => all.for_each(|((to, &grad), &y)| {
                let passed = if y < six { grad } else { C::ZERO };
                *to = if y > C::ZERO { passed } else { C::ZERO };
            }),
            ConvActivation::HardSwish => all.for_each(|((to, &grad), &x)| *to = grad * hard_swish_at(x).1),
            ConvActivation::Silu => all.for_each(|((to, &grad), &x)| {
                let (s, slope) = logistic(x);
                *to = grad * (s + x * slope);
            }),
        }
    }
}

/// Rows that are summed in the compute type before the sum is added to one in f64.
const ROWS: usize = 32;

/// Multiplies the gradient of rows of channels by the slope of the activation, and adds up what comes out for each channel.
pub(super) fn slope_and_sums<C: Float>(
    activation: ConvActivation,
    kept: &[C],
    grad: &mut [C],
    sums: &mut [f64],
    room: &mut Vec<C>,
) {
    let channels = sums.len();
    let piece = (ROWS * channels).max(1);
    for (i, grad) in grad.chunks_mut(piece).enumerate() {
        let room = grown(room, channels);
        room.fill(C::ZERO);
        slope_and_sum(activation, &kept[i * piece..i * piece + grad.len()], grad, room);
        sums.iter_mut().zip(room.iter()).for_each(|(sum, x)| *sum += x.to_f64());
    }
}

/// Adds up rows of channels.
pub(super) fn column_sums<C: Float>(grad: &[C], sums: &mut [f64], room: &mut Vec<C>) {
    let channels = sums.len();
    for grad in grad.chunks((ROWS * channels).max(1)) {
        let room = grown(room, channels);
        room.fill(C::ZERO);
        sum_rows(grad, room);
        sums.iter_mut().zip(room.iter()).for_each(|(sum, x)| *sum += x.to_f64());
    }
}

vectorized! {
    fn sum_rows<C>(rows: &[C], sums: &mut [C]) {
        for row in rows.chunks(sums.len().max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
        }
    }
}

vectorized! {
    fn slope_and_sum<C>(activation: ConvActivation, kept: &[C], grad: &mut [C], sums: &mut [C]) {
        let n = sums.len().max(1);
        let six = C::from_f64(6.0);
        for (grad, kept) in grad.chunks_mut(n).zip(kept.chunks(n)) {
            let all = grad.iter_mut().zip(kept).zip(sums.iter_mut());
            match activation {
                ConvActivation::None => all.for_each(|((grad, _), sum)| *sum += *grad),
                ConvActivation::Relu => all.for_each(|((grad, &y), sum)| {
                    *grad = if y > C::ZERO { *grad } else { C::ZERO };
                    *sum += *grad;
                }),
                ConvActivation::Relu6 => all.for_each(|((grad, &y), sum)| {
                    let passed = if y < six { *grad } else { C::ZERO };
                    *grad = if y > C::ZERO { passed } else { C::ZERO };
                    *sum += *grad;
                }),
                ConvActivation::HardSwish => all.for_each(|((grad, &x), sum)| {
                    *grad = *grad * hard_swish_at(x).1;
                    *sum += *grad;
                }),
                ConvActivation::Silu => all.for_each(|((grad, &x), sum)| {
                    let (s, slope) = logistic(x);
                    *grad = *grad * (s + x * slope);
                    *sum += *grad;
                }),
            }
        }
    }
}
