//! What an audit found that is not an error.

use std::fmt;

use tpgm_core::{Buffer, Slice};

use super::error::Result;
use crate::params::Param;

/// What an audit found. Suspicious things that may be right are listed here; `Display` names them.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct AuditReport {
    /// The loss.
    pub loss: f64,
    /// How many tensors are to be trained.
    pub trainable: usize,
    /// Tensors that were allowed to have no gradient, and have none.
    pub without: Vec<String>,
    /// Tensors whose gradient is zero everywhere. Right for one LoRA factor before the first step, for dead units and
    /// for tensors that this batch does not use; wrong for most others.
    pub zero: Vec<String>,
    /// Fused projections (three times as many rows as columns, and their biases) of which some thirds, counted from 0,
    /// have a zero gradient while others do not: for example the query and key thirds where softmax has no backward.
    pub zero_thirds: Vec<(String, Vec<usize>)>,
    /// How many gradients agree with finite differences; 0 if these were not asked for.
    pub checked: usize,
    /// Tensors whose finite differences are drowned by rounding errors or kinks, so that they say nothing.
    pub inconclusive: Vec<String>,
}

impl AuditReport {
    /// # Errors
    ///
    /// A gradient that is not finite.
    pub(super) fn new(loss: f64, params: &[Param], present: &[(&Param, Buffer)]) -> Result<Self> {
        let mut report = Self { loss, trainable: params.len(), ..Self::default() };
        let has = |name: &str| present.iter().any(|(param, _)| param.name() == name);
        report.without =
            params.iter().map(Param::name).filter(|name| !has(name)).map(str::to_owned).collect();
        let bad: Vec<&str> = present
            .iter()
            .filter(|(_, grad)| !finite(grad.as_slice()))
            .map(|(param, _)| param.name())
            .collect();
        if let [first, ..] = bad[..] {
            let error = tpgm_core::Error::NonFiniteGradient { tensor: first.to_owned(), count: bad.len() };
            return Err(error.into());
        }
        for (param, grad) in present {
            let grad = grad.as_slice();
            if grad.is_empty() {
                continue;
            }
            if zero(grad) {
                report.zero.push(param.name().to_owned());
            } else if is_fused(param, params) {
                let third = grad.len() / 3;
                let zeros = (0..3).filter(|i| zero(grad.sub(i * third..(i + 1) * third)));
                let zeros: Vec<usize> = zeros.collect();
                if !zeros.is_empty() {
                    report.zero_thirds.push((param.name().to_owned(), zeros));
                }
            }
        }
        Ok(report)
    }

    /// True if nothing looks suspicious.
    pub fn is_clean(&self) -> bool {
        self.zero.is_empty() && self.zero_thirds.is_empty() && self.inconclusive.is_empty()
    }
}

/// Query, key and value in one matrix, or its bias.
fn is_fused(param: &Param, params: &[Param]) -> bool {
    match param.var().dims() {
        [rows, columns] => *rows == 3 * columns,
        [rows] => {
            let weight = param.name().strip_suffix("bias").map(|stem| format!("{stem}weight"));
            let weight = params.iter().find(|other| Some(other.name()) == weight.as_deref());
            weight.is_some_and(|weight| weight.var().dims() == [*rows, rows / 3] && rows.is_multiple_of(3))
        }
        _ => false,
    }
}

fn finite(grad: Slice<'_>) -> bool {
    match grad {
        Slice::F64(data) => data.iter().all(|x| x.is_finite()),
        Slice::F32(data) => data.iter().all(|x| x.is_finite()),
        Slice::F16(data) => data.iter().all(|x| x.is_finite()),
        Slice::BF16(data) => data.iter().all(|x| x.is_finite()),
    }
}

fn zero(grad: Slice<'_>) -> bool {
    match grad {
        Slice::F64(data) => data.iter().all(|x| *x == 0.0),
        Slice::F32(data) => data.iter().all(|x| *x == 0.0),
        Slice::F16(data) => data.iter().all(|x| x.to_f32() == 0.0),
        Slice::BF16(data) => data.iter().all(|x| x.to_f32() == 0.0),
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let got = self.trainable - self.without.len();
        write!(f, "loss {}; {got} of {} trainable tensors get a gradient", self.loss, self.trainable)?;
        if self.checked > 0 {
            write!(f, "; {} agree with finite differences", self.checked)?;
        }
        for name in &self.without {
            write!(f, "\n  no gradient, as allowed: {name}")?;
        }
        for name in &self.zero {
            write!(f, "\n  zero everywhere: {name}")?;
        }
        for (name, thirds) in &self.zero_thirds {
            write!(f, "\n  zero in thirds {thirds:?} of its rows: {name}")?;
        }
        for name in &self.inconclusive {
            write!(f, "\n  too small or too rough for finite differences: {name}")?;
        }
        Ok(())
    }
}
