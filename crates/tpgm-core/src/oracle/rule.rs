//! The base optimizers: what they would subtract from the weights.

use super::state::Moments;
use crate::rule::{AdamW, Decay, Sgd};

/// The update of [`AdamW`] at step `t` (from 1); moves the moments on.
///
/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, and with AMSGrad the running maximum of `v` in the root:
/// `lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`, plus `lr * weight_decay * W` if the decay is decoupled; if
/// coupled, `weight_decay * W` is part of `g`. `lr` and `weight_decay` are the tensor's own.
pub fn adamw_update(
    rule: &AdamW,
    lr: f64,
    weight_decay: f64,
    t: u64,
    weight: &[f64],
    grad: &[f64],
    moments: &mut Moments,
) -> Vec<f64> {
    let (b1, b2) = (rule.beta1, rule.beta2);
    let mean_correction = 1.0 - b1.powf(t as f64);
    let root_correction = (1.0 - b2.powf(t as f64)).sqrt();
    let (decoupled, coupled) = split_decay(rule.decay, weight_decay);
    let Moments { exp_avg, exp_avg_sq, max_exp_avg_sq, .. } = moments;
    exp_avg.resize(weight.len(), 0.0);
    exp_avg_sq.resize(weight.len(), 0.0);
    if rule.amsgrad {
        max_exp_avg_sq.resize(weight.len(), 0.0);
    }
    (0..weight.len())
        .map(|i| {
            let g = grad[i] + coupled * weight[i];
            exp_avg[i] = b1 * exp_avg[i] + (1.0 - b1) * g;
            exp_avg_sq[i] = b2 * exp_avg_sq[i] + (1.0 - b2) * g * g;
            let second = if rule.amsgrad {
                max_exp_avg_sq[i] = max_exp_avg_sq[i].max(exp_avg_sq[i]);
                max_exp_avg_sq[i]
            } else {
                exp_avg_sq[i]
            };
            let step = exp_avg[i] / (second.sqrt() / root_correction + rule.eps);
            lr / mean_correction * step + lr * decoupled * weight[i]
        })
        .collect()
}

/// The update of [`Sgd`]; moves the momentum buffer on.
///
/// `d = g + weight_decay * W` (coupled); the buffer starts as `d`, later `buf = momentum * buf + (1 - dampening) * d`;
/// `lr * (d + momentum * buf)` with Nesterov, else `lr * buf`, or `lr * d` without momentum; plus
/// `lr * weight_decay * W` if the decay is decoupled.
pub fn sgd_update(
    rule: &Sgd,
    lr: f64,
    weight_decay: f64,
    weight: &[f64],
    grad: &[f64],
    moments: &mut Moments,
) -> Vec<f64> {
    let (decoupled, coupled) = split_decay(rule.decay, weight_decay);
    let d: Vec<f64> = grad.iter().zip(weight).map(|(g, w)| g + coupled * w).collect();
    let buffer = &mut moments.momentum_buffer;
    let direction: Vec<f64> = if rule.momentum == 0.0 {
        d
    } else {
        if buffer.is_empty() {
            *buffer = d.clone();
        } else {
            for (b, d) in buffer.iter_mut().zip(&d) {
                *b = rule.momentum * *b + (1.0 - rule.dampening) * d;
            }
        }
        if rule.nesterov {
            d.iter().zip(buffer.iter()).map(|(d, b)| d + rule.momentum * b).collect()
        } else {
            buffer.clone()
        }
    };
    direction.iter().zip(weight).map(|(x, w)| lr * x + lr * decoupled * w).collect()
}

/// `(decoupled, coupled)`: one of them is the weight decay, the other 0.
fn split_decay(decay: Decay, weight_decay: f64) -> (f64, f64) {
    match decay {
        Decay::Decoupled => (weight_decay, 0.0),
        Decay::Coupled => (0.0, weight_decay),
    }
}
